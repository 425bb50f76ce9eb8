"""Files at URLs, such as s3:// and memory://, through fsspec."""

import functools
import importlib
import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import IO, Any

from drexperts.runtime.errors import ImageError, MissingDependencyError, UserError
from drexperts.runtime.inputs.folders import NamedFile
from drexperts.runtime.inputs.listed import ListedImage
from drexperts.runtime.installing import install_command


def is_remote(path: str) -> bool:
    """Whether a path is a URL for fsspec, and not a file of that name."""
    return "://" in path and not os.path.exists(path)


def without_file(path: str) -> str:
    """The path in a file:// URL: results there are appended to and locked as other files are."""
    return path.removeprefix("file://") if path.startswith("file:///") else path


def opened(path: str) -> AbstractContextManager[IO[bytes]]:
    """A file for reading, local or not.

    Raises OSError and what fsspec raises, and MissingDependencyError without fsspec, or what that
    needs for this URL.
    """
    if not is_remote(path):
        return open(path, "rb")
    with _packages_named(path):
        # The object that this returns must live as long as its file: it holds the chain.
        return _fsspec().open(path, "rb")


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
    """The file system of a URL, and the path in it. Raises what `opened` raises."""
    with _packages_named(url):
        system, path = _fsspec().core.url_to_fs(url)
    return system, path


def files_at(url: str) -> Iterator[NamedFile]:
    """The files that a URL names: itself, all below a folder, or those that match a pattern.

    Folders that match a pattern stand for what is below them. Hidden files and what lies in hidden
    folders are left out. All names are listed at once, and sorted.

    Raises UserError for a URL that fsspec cannot list.
    """
    try:
        system, path = file_system(url)
        is_folder = system.isdir(path)
        if not is_folder and not _is_pattern(url, path):
            yield NamedFile(url, named=True)
            return
        found = _below(system, path) if is_folder else _matching(system, path)
    except UserError:
        raise
    except Exception as cause:  # as above
        raise _unusable(url, cause) from cause
    if not found:
        raise UserError(f"{url!r} names no file: check the address")
    above = path if is_folder else _fixed(path)
    for name, in_folder in sorted(found.items()):
        yield NamedFile(_address(url, system, name, above), in_folder=in_folder)


def _is_pattern(url: str, path: str) -> bool:
    # What follows a question mark in a web address is not the name of a file.
    return any(letter in path for letter in ("*[" if url.startswith("http") else "*?["))


def _matching(system: Any, pattern: str) -> dict[str, bool]:
    """The files that match a pattern or lie in a folder that does, and whether they do the latter.

    What is above the first wildcard may be hidden, and so may what the pattern itself spells.
    """
    fixed = _fixed(pattern)
    found = dict[str, bool]()
    for name, info in system.glob(pattern, detail=True).items():
        if _is_hidden(name, fixed) and "/." not in pattern[len(fixed) :]:
            continue
        found |= _below(system, name) if info["type"] == "directory" else {name: False}
    return found


def _below(system: Any, folder: str) -> dict[str, bool]:
    return {name: True for name in system.find(folder) if not _is_hidden(name, folder)}


def _fixed(pattern: str) -> str:
    """The folder above the first wildcard."""
    return re.split(r"[*?[]", pattern)[0].rpartition("/")[0]


def _address(url: str, system: Any, name: str, above: str) -> str:
    """The URL of a file that was found at `url`, spelled as that is.

    above: the folder in which it was found, in the file system
    """
    links = url.split("::")
    place = next(place for place, link in enumerate(links) if "://" in link)
    link = links[place]
    spelled = _fixed(link) if _is_pattern(link, link) else link.rstrip("/")
    if above.strip("/") and name.startswith(f"{above}/") and "://" in spelled:
        links[place] = spelled + name.removeprefix(above)
    elif len(links) == 1:
        return str(system.unstrip_protocol(name))
    else:
        links[place] = f"{link.partition('://')[0]}://{name}"
    return "::".join(links)


def _is_hidden(name: str, folder: str) -> bool:
    return any(part.startswith(".") for part in name.removeprefix(folder).split("/"))


def _unusable(url: str, cause: Exception) -> UserError:
    reason = " ".join(str(cause).split()) or type(cause).__name__
    return UserError(f"cannot list {url!r}: {reason}; check the address and the access to it")


@contextmanager
def _packages_named(url: str) -> Iterator[None]:
    """Turn the error of fsspec without a package that it needs into one that ends the run."""
    try:
        yield
    except ImportError as cause:
        raise MissingDependencyError(f"cannot open {url!r}: {cause}") from cause


def _fsspec() -> Any:
    try:
        return importlib.import_module("fsspec")
    except ImportError as cause:
        raise MissingDependencyError(
            f"URLs such as s3:// need fsspec: {install_command('remote')}"
        ) from cause
