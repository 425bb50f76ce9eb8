"""Files at URLs, such as s3:// and memory://, through fsspec."""

import functools
import importlib
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import IO, Any

from drexperts.runtime.errors import ImageError, MissingDependencyError, UserError
from drexperts.runtime.inputs.folders import NamedFile
from drexperts.runtime.inputs.listed import ListedImage
from drexperts.runtime.installing import install_command

_CHAIN = "::"  # between URLs, as in tar://a.png::s3://bucket/all.tar


def is_remote(path: str) -> bool:
    """Whether a path is a URL for fsspec, and not a file of that name."""
    return "://" in path and not os.path.exists(path)


def opened(path: str) -> AbstractContextManager[IO[bytes]]:
    """A file for reading, local or not.

    Raises OSError and what fsspec raises, and MissingDependencyError without fsspec.
    """
    # The object that `fsspec.open` returns must live as long as its file: it holds the chain.
    return _fsspec().open(path, "rb") if is_remote(path) else open(path, "rb")


def remote_image(url: str, largest: int) -> ListedImage:
    """The image at a URL, of at most `largest` bytes; a decoder's thread fetches it."""
    return ListedImage(url, lambda: functools.partial(_fetched, url, largest))


def _fetched(url: str, largest: int) -> bytes:
    try:
        with opened(url) as stream:
            data = stream.read(largest + 1)
    except UserError:
        raise
    except Exception as cause:  # each file system has its own
        reason = " ".join(str(cause).split()) or type(cause).__name__
        raise ImageError(f"cannot read {url}: {type(cause).__name__}: {reason}") from cause
    if len(data) > largest:
        raise ImageError(f"cannot read {url}: it has more than {largest} bytes")
    return data


def file_system(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it. Raises what fsspec raises."""
    system, path = _fsspec().core.url_to_fs(url)
    return system, path


def files_at(url: str) -> Iterator[NamedFile]:
    """The files that a URL names: itself, all below a folder, or those that match a pattern.

    Hidden files and what lies in hidden folders are left out. The names of a folder or a pattern
    are listed at once, and sorted.

    Raises UserError for a URL that fsspec cannot list.
    """
    try:
        system, path = file_system(url)
        is_folder = system.isdir(path)
        if not is_folder and not any(letter in path for letter in "*?["):
            yield NamedFile(url, named=True)
            return
        names = sorted(system.find(path) if is_folder else system.glob(path))
    except UserError:
        raise
    except Exception as cause:  # as above
        raise _unusable(url, cause) from cause
    if not names:
        raise UserError(f"{url!r} names no file: check the address")
    for name in names:
        if not _is_hidden(name, path):
            yield NamedFile(_address(url, system, name), in_folder=is_folder)


def _address(url: str, system: Any, name: str) -> str:
    """The URL of a file that was found at `url`."""
    first, chain, rest = url.partition(_CHAIN)
    if not chain:
        return str(system.unstrip_protocol(name))
    return f"{first.partition('://')[0]}://{name}{chain}{rest}"


def _is_hidden(name: str, folder: str) -> bool:
    return any(part.startswith(".") for part in name.removeprefix(folder).split("/"))


def _unusable(url: str, cause: Exception) -> UserError:
    reason = " ".join(str(cause).split()) or type(cause).__name__
    return UserError(f"cannot list {url!r}: {reason}; check the address and the access to it")


def _fsspec() -> Any:
    try:
        return importlib.import_module("fsspec")
    except ImportError as cause:
        raise MissingDependencyError(
            f"URLs such as s3:// need fsspec: {install_command('remote')}"
        ) from cause
