"""What `drexperts.export` offers, and what importing it needs."""

import subprocess
import sys

import drexperts.export

WITHOUT_TORCH = """
import sys
for name in ("torch", "timm", "onnx", "onnx_ir"):
    sys.modules[name] = None
import drexperts.export
drexperts.export.write_triton_repository
drexperts.export.EngineOptions
"""


def test_the_package_and_the_model_repository_need_no_torch():
    done = subprocess.run([sys.executable, "-P", "-c", WITHOUT_TORCH], capture_output=True)
    assert done.returncode == 0, done.stderr


def test_every_public_name_is_there():
    for name in drexperts.export.__all__:
        assert getattr(drexperts.export, name).__name__ == name
