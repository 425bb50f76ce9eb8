"""Bundles at URLs: what is needed of them is downloaded once, into the user's cache folder.

A bundle's folder there is named by the digest of its manifest, which has the hash of every file: a
bundle that changed has another folder. Whatever is there is compared with these hashes whenever it
is used, so a file that was cut off or changed is downloaded again.
"""

import contextlib
import hashlib
import logging
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from drexperts.runtime.errors import BundleError, ChangedFileError, UserError
from drexperts.runtime.files import written_whole
from drexperts.runtime.inputs.remote import is_remote, opened
from drexperts.runtime.manifest import (
    FILE_NAME,
    MAX_ENGINE_BYTES,
    MAX_MANIFEST_BYTES,
    Engine,
    Manifest,
    digest,
    parse_manifest,
    read_manifest,
    sha256_of,
)
from drexperts.runtime.places import cache_folder

_FOLDER = "bundles"
_PIECE = 2**20  # bytes read at once
_MOST_BYTES = 8 * 2**30  # of all bundles together
_MOST_BUNDLES = 32
_ABANDONED = 3600  # seconds without a byte after which a download is not going on
_log = logging.getLogger(__name__)


def manifest_of(bundle: str | os.PathLike[str], pinned: str | None = None) -> Manifest:
    """The manifest of a bundle's folder, or at its URL.

    Arguments and errors are those of `read_manifest`; UserError for a URL that cannot be read. With
    `pinned`, what was downloaded before is not asked for again.
    """
    url = os.fspath(bundle)
    if not is_remote(url):
        return read_manifest(bundle, pinned)
    if pinned is not None:
        with contextlib.suppress(BundleError, OSError):
            return read_manifest(_folder(pinned), pinned)
    address = _address(url, FILE_NAME)
    try:
        content = b"".join(_pieces(address, MAX_MANIFEST_BYTES))
    except FileNotFoundError as cause:
        raise BundleError(
            f"{url!r} is not a bundle: {address!r} was not found; check the address and the "
            "connection"
        ) from cause
    manifest = parse_manifest(content, address, pinned)
    file = _folder(digest(manifest)) / FILE_NAME
    if not _holds(file, content):
        with _kept(file) as aside:
            aside.write_bytes(content)
    return manifest


def _holds(file: Path, content: bytes) -> bool:
    with contextlib.suppress(OSError):
        return file.stat().st_size == len(content) and file.read_bytes() == content
    return False


def absolute(bundle: str | os.PathLike[str]) -> str:
    """A bundle's URL, or the absolute path of its folder."""
    name = os.fspath(bundle)
    return name if is_remote(name) else os.path.abspath(name)


def engine_file(bundle: str | os.PathLike[str], manifest: Manifest, engine: Engine) -> Path:
    """The file of an engine of a bundle, which is downloaded if it is at a URL and not here yet.

    What opens the file must compare it with the engine's hash all the same.

    Raises ChangedFileError if what is at the URL is missing or has another hash, and UserError for
    a URL that cannot be read and a cache folder that cannot be written.
    """
    url = os.fspath(bundle)
    path = local_folder(bundle, manifest) / engine.file
    if not is_remote(url):
        return path
    with contextlib.suppress(OSError):
        if sha256_of(path) == engine.sha256:
            with contextlib.suppress(OSError):  # a cache that can only be read is as good
                os.utime(path.parent)  # it is not the one that was not used for longest
            return path
    _drop_unfinished(path.parent)
    address = _address(url, engine.file)
    _log.info("downloading %s", address)
    with _kept(path) as aside:
        if _downloaded(address, aside) != engine.sha256:
            raise ChangedFileError(
                f"{address!r} is not the file of which the manifest there has the SHA-256: upload "
                "the bundle again, its manifest last, or wait until it is there whole"
            )
    _drop_others(path.parent)
    return path


def local_folder(bundle: str | os.PathLike[str], manifest: Manifest) -> Path:
    """Where the files of a bundle are, or at a URL those of them that were downloaded.

    Raises UserError for a user without a home folder.
    """
    return _folder(digest(manifest)) if is_remote(os.fspath(bundle)) else Path(bundle)


def _folder(digest: str) -> Path:
    try:
        return cache_folder() / _FOLDER / digest.removeprefix("sha256:")
    except OSError as cause:
        raise _no_cache(cause) from cause


@contextlib.contextmanager
def _kept(path: Path) -> Iterator[Path]:
    """Yield where to write a file of the cache, which is there whole or not at all."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with written_whole(path) as aside:
            yield aside
    except OSError as cause:
        raise _no_cache(cause) from cause


def _no_cache(cause: OSError) -> UserError:
    return UserError(
        f"a bundle at a URL is kept in the user's cache, which cannot be written: {cause}; make "
        "room there, set XDG_CACHE_HOME to another folder, or copy the bundle to this machine"
    )


def _downloaded(address: str, target: Path) -> str:
    """The SHA-256 of the bytes at a URL, after they were written."""
    found = hashlib.sha256()
    try:
        with open(target, "xb") as stream:
            for piece in _pieces(address, MAX_ENGINE_BYTES):
                found.update(piece)
                stream.write(piece)
    except FileNotFoundError as cause:
        raise ChangedFileError(f"{address!r} was not found: upload the bundle again") from cause
    return found.hexdigest()


def _pieces(address: str, most: int) -> Iterator[bytes]:
    """The bytes at a URL. Raises FileNotFoundError, and UserError for all else."""
    read = 0
    try:
        with opened(address) as stream:
            while piece := stream.read(_PIECE):
                read += len(piece)
                if read > most:
                    raise UserError(f"{address!r} has more than {most} bytes: it is no bundle")
                yield piece
    except (UserError, FileNotFoundError):
        raise
    except Exception as cause:  # each file system has its own
        reason = " ".join(str(cause).split()) or type(cause).__name__
        raise UserError(
            f"cannot read {address!r}: {type(cause).__name__}: {reason}; check the address, the "
            "connection and the access to it, and try again"
        ) from cause


def _address(url: str, name: str) -> str:
    """The URL of a file in a folder at a URL, which may be a chain of them."""
    links = url.split("::")
    # Links without an address, such as simplecache::, are of what the next one names.
    place = next((place for place, link in enumerate(links) if "://" in link), 0)
    scheme, _, path = links[place].partition("://")
    folder = path.rstrip("/")
    links[place] = f"{scheme}://{folder}/{name}" if folder else f"{links[place]}{name}"
    return "::".join(links)


def _drop_unfinished(folder: Path) -> None:
    """Remove what killed downloads left. Those that go on were written to a moment ago."""
    for part in folder.glob(".*.part-*"):
        with contextlib.suppress(OSError):
            if time.time() - part.stat().st_mtime > _ABANDONED:
                part.unlink()


def _drop_others(kept: Path) -> None:
    """Remove the bundles that were not used for longest, beyond the limits."""
    total = 0
    with contextlib.suppress(OSError):  # another process removed one
        folders = [path for path in kept.parent.iterdir() if path.is_dir()]
        folders.sort(key=lambda path: path.stat().st_mtime, reverse=True)
        for number, folder in enumerate(folders, 1):
            total += sum(file.stat().st_size for file in folder.iterdir())
            if folder != kept and (total > _MOST_BYTES or number > _MOST_BUNDLES):
                shutil.rmtree(folder, ignore_errors=True)
