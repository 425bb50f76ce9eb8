"""A bundle's folder while it is changed: by one process, and without what killed ones left."""

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from drexperts.runtime.locks import locked
from drexperts.runtime.manifest import read_manifest

# What a build may leave when it is killed: an engine that no manifest names, or a part of a file.
_OWN = re.compile(
    r"(tensorrt(-rtx)?-(fp32|fp16|bf16)-|\.+)[0-9a-f]{8}\.engine(\.(part-)?[0-9a-f]{8})?"
    r"|openvino-(fp32|bf16|int8)-[0-9a-f]{8}\.onnx"
    r"|\.manifest\.json\.(part-)?[0-9a-f]{8}"
)


@contextmanager
def bundle_to_change(bundle: Path) -> Iterator[Path]:
    """Hold a bundle's folder, without links in its path, until the block ends.

    Raises BundleError if there is no bundle, and UserError while another process changes it.
    """
    read_manifest(bundle)
    bundle = bundle.resolve()
    with locked(bundle):
        _clear_up(bundle)
        yield bundle


def is_leftover(path: Path) -> bool:
    """Whether a file was left by a build that was killed."""
    return _OWN.fullmatch(path.name) is not None


def _clear_up(bundle: Path) -> None:
    named = {engine.file for engine in read_manifest(bundle).engines}
    for path in bundle.iterdir():
        if is_leftover(path) and path.name not in named:
            with suppress(OSError):  # such as a folder of that name
                path.unlink()
