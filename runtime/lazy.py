"""Public names of a package that are imported on first use."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def lazy_exports(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of a package whose public names are defined in its modules.

    A module is imported when one of its names is used, so that `import drexperts.export` needs no
    torch.

    package: the package's `__name__`
    homes: the module of each public name, relative to the package
    """

    def getattribute(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{homes[name]}"), name)

    return getattribute
