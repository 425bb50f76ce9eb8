"""Files of weights: reading them safely, and comparing them key by key.

No pickled code runs: `.pt` and `.pth` files are read by torch's weights-only unpickler, which also
accepts a short list of inert types.
"""

import _codecs
import hashlib
import json
import re
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from stat import S_IMODE
from typing import Any, BinaryIO, cast

import numpy as np
import torch
from numpy._core.multiarray import scalar
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from drexperts.model.pickle_work import check_pickle
from drexperts.runtime.errors import WeightsError
from drexperts.runtime.files import written_whole
from drexperts.runtime.quoting import shortened

State = Mapping[str, Tensor]

_PICKLES = 5  # that a file in torch.save's old format begins with
# Bytes of tensors for each byte of a file; published files hold more than they use.
_MOST_SHARING = 2


def load_strictly(module: nn.Module, state: State, source: str) -> None:
    """Load `state`.

    Raises a WeightsError that names missing, extra and misshapen keys, or a tensor that is not of
    floating-point numbers or has one that is not finite in the module's dtype.
    """
    compare_layout(state, shapes_of(module), source)
    if odd := [f"{k} ({v.dtype})" for k, v in state.items() if not v.is_floating_point()]:
        raise WeightsError(f"{source} has weights that are not floating-point: {_listed(odd)}")
    module.load_state_dict(state)
    check_finite(module.state_dict(), source)


def weights_digest(state: State) -> str:
    """Such as "sha256:…": equal for equal weights, whatever file they are read from."""
    digest = hashlib.sha256()
    hash_tensors(digest, state)
    return f"sha256:{digest.hexdigest()}"


def hash_tensors(digest: "hashlib._Hash", state: State) -> None:
    """Add the name, dtype, shape and bytes of each tensor to a digest, sorted by name."""
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)


def shapes_of(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """The shape of each parameter and buffer, by name."""
    return {key: tuple(value.shape) for key, value in module.state_dict().items()}


def check_finite(state: State, source: str) -> None:
    """Raise a WeightsError that names the tensors which hold NaN or infinity."""
    if odd := [key for key, value in state.items() if not torch.isfinite(value).all()]:
        raise WeightsError(f"{source} has weights that are not finite: {_listed(odd)}")


def compare_layout(state: State, layout: Mapping[str, tuple[int, ...]], source: str) -> None:
    """Raise a WeightsError that names every key in which `state` differs from `layout`."""
    faults = {
        "missing": sorted(layout.keys() - state.keys()),
        "unexpected": sorted(state.keys() - layout.keys()),
        "of another shape": [
            f"{key} {list(state[key].shape)}, expected {list(layout[key])}"
            for key in sorted(layout.keys() & state.keys())
            if tuple(state[key].shape) != layout[key]
        ],
    }
    told = "; ".join(f"{kind}: {_listed(keys)}" for kind, keys in faults.items() if keys)
    if told:
        raise WeightsError(f"{source} does not fit the model. Keys {told}")


def _listed(keys: list[str], most: int = 20) -> str:
    more = f" and {len(keys) - most} more" if len(keys) > most else ""
    return ", ".join(shortened(key) for key in keys[:most]) + more


def shape_of(state: State, key: str, rank: int, source: str) -> tuple[int, ...]:
    """The shape of a key from which sizes are read. Raises WeightsError if it does not fit."""
    if key not in state or state[key].ndim != rank:
        found = f"has shape {list(state[key].shape)}" if key in state else "is missing"
        raise WeightsError(f"{source}: {key} {found}, expected {rank} dimensions")
    return tuple(state[key].shape)


def depth_of(state: State, prefix: str, source: str) -> int:
    """The number of blocks `prefix{0, 1, ...}.` in a state dict."""
    indices = {k.removeprefix(prefix).split(".")[0] for k in state if k.startswith(prefix)}
    depth = sum(index.isdigit() for index in indices)
    if depth == 0:
        raise WeightsError(f"{source}: no key starts with {prefix}0")
    return depth


def subset(state: State, prefix: str) -> dict[str, Tensor]:
    """The keys that start with `prefix`, without the prefix."""
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


# What published files hold besides tensors: NumPy scalars, under old and new import paths.
_INERT: list[Any] = [
    (scalar, "numpy.core.multiarray.scalar"),
    (scalar, "numpy._core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("f8", "f4", "i8", "i4", "?")),
    _codecs.encode,
    # The authors' training code pickles its settings beside the weights in this dict.
    (OrderedDict, "yacs.config.CfgNode"),
]


def read_torch_file(path: Path) -> dict[str, Any]:
    """The dict that `torch.save` wrote, without unpickling arbitrary objects.

    It is memory-mapped if the format allows, so that optimiser state in it costs no memory.
    """
    try:
        mapped = zipfile.is_zipfile(path)
        if mapped:
            _check_archive(path)
        else:
            _check_old_format(path)
        with torch.serialization.safe_globals(_INERT):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except FileNotFoundError as error:
        raise WeightsError(f"there is no file {path}: check the path") from error
    except Exception as error:  # of zip, pickle, the system or torch, depending on the damage
        raise WeightsError(f"{path} cannot be read as weights: {_reason(error)}") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{path} holds a {type(content).__name__}, expected a state dict")
    return content


def _check_archive(path: Path) -> None:
    """Raise a ValueError for an archive that unpacks to more than it is, or takes long to read.

    torch packs nothing.
    """
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        size = path.stat().st_size
        if sum(max(m.file_size, m.compress_size) for m in members) > size:
            raise ValueError(f"its parts unpack to more than its {size} bytes")
        if any(m.compress_type != zipfile.ZIP_STORED for m in members):
            raise ValueError("its parts are compressed, which torch.save never does")
        for member in members:
            if member.filename.lower().endswith("data.pkl"):  # torch ignores the case as well
                with archive.open(member) as pickle:
                    check_pickle(cast(BinaryIO, pickle))


def _check_old_format(path: Path) -> None:
    """Raise a ValueError for a file of pickles that takes long to read."""
    with open(path, "rb") as stream:
        for _ in range(_PICKLES):
            if stream.peek(1):
                check_pickle(stream)


def _check_extent(state: State, path: Path) -> None:
    """Raise a WeightsError for tensors that are far larger together than their file.

    Many keys may share one storage, and a view may repeat one number: copies of them have no bound.
    """
    size, claimed = path.stat().st_size, sum(v.numel() * v.element_size() for v in state.values())
    if claimed > _MOST_SHARING * size:
        raise WeightsError(f"{path} has {size} bytes, but its tensors claim {claimed}")


def _reason(error: Exception) -> str:
    """What went wrong, without torch's advice to trust the file."""
    told = re.search(r"WeightsUnpickler error:\s*(.*?)(?: was not an allowed|\n|$)", str(error))
    if told:
        return told.group(1)
    if str(error).startswith("Weights only load failed"):
        return "it holds objects other than weights"
    return shortened(str(error).split("\n")[0], 200) or type(error).__name__


def read_torch_tensors(path: Path, *wrappers: str) -> dict[str, Tensor]:
    """The tensors in a file of `torch.save`, see `tensors_of`."""
    try:
        state = tensors_of(read_torch_file(path), *wrappers)
    except WeightsError as error:
        raise error if str(path) in str(error) else WeightsError(f"{path}: {error}") from error
    _check_extent(state, path)
    return state


def tensors_of(checkpoint: Mapping[str, Any], *wrappers: str) -> dict[str, Tensor]:
    """The state dict under the first of `wrappers` that a checkpoint has, without `module.`."""
    if not isinstance(checkpoint, Mapping):
        raise WeightsError(f"expected a state dict, got a {type(checkpoint).__name__}")
    inner = next((checkpoint[name] for name in wrappers if name in checkpoint), checkpoint)
    if not isinstance(inner, Mapping):
        raise WeightsError(f"expected a state dict of tensors, got a {type(inner).__name__}")
    odd = [k for k, v in inner.items() if not (isinstance(k, str) and _is_dense(v))]
    if odd:
        names = _listed([k if isinstance(k, str) else type(k).__name__ for k in odd])
        raise WeightsError(f"expected a state dict of tensors, but {names} are not tensors")
    return {key.removeprefix("module."): value for key, value in inner.items()}


def _is_dense(value: Any) -> bool:
    return (
        isinstance(value, Tensor) and value.layout == torch.strided and value.device.type == "cpu"
    )


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a `.safetensors` file."""
    with _opened(path) as file:
        return {k: file.get_tensor(k) for k in file.keys()}, file.metadata() or {}  # noqa: SIM118


def read_safetensors_metadata(path: Path) -> dict[str, str]:
    """The metadata of a `.safetensors` file, without its tensors."""
    with _opened(path) as file:
        return file.metadata() or {}


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        path.open("rb").close()  # safetensors reports an unreadable file as missing
        with safe_open(path, framework="pt") as file:
            yield file
    except FileNotFoundError as error:
        raise WeightsError(f"there is no file {path}: check the path") from error
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} cannot be read as safetensors: {_reason(error)}") from error


def write_safetensors(state: State, metadata: dict[str, str], path: Path) -> None:
    """Write tensors and metadata atomically. Raises OSError if that fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with written_whole(path) as aside:
            aside.touch()
            mode = aside.stat().st_mode  # save_file would change it to 0600
            save_file({k: v.contiguous() for k, v in state.items()}, aside, metadata)
            aside.chmod(S_IMODE(mode))
            _sort_header(aside)
    except SafetensorError as error:
        raise OSError(f"{path} cannot be written: {error}") from error


def _sort_header(path: Path) -> None:
    """Sort the metadata, which the library writes in random order: equal content, equal bytes.

    A safetensors file begins with the length of its header in 8 bytes. The header is JSON and may
    end in spaces.
    """
    with open(path, "rb+") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(text) <= length
        file.seek(8)
        file.write(text.ljust(length))
