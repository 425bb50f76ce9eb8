"""The public names of data, evaluation and training, which are imported on first use."""

import importlib
import subprocess
import sys

import pytest

PACKAGES = ("data", "evaluation", "training")


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_exists_and_is_no_module(package: str) -> None:
    module = importlib.import_module(f"drexperts.{package}")
    for name in module.__all__:
        assert type(getattr(module, name)).__name__ != "module", name
    with pytest.raises(AttributeError):
        _ = module.nothing


def test_importing_the_packages_needs_no_torch() -> None:
    blocked = "import sys; sys.modules['torch'] = None; "
    imports = "; ".join(f"import drexperts.{package}" for package in PACKAGES)
    subprocess.run([sys.executable, "-P", "-c", blocked + imports], check=True)
