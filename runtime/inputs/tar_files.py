"""The images in a tar archive, read as a stream from its first byte to its last."""

import bz2
import gzip
import io
import lzma
import posixpath
import tarfile
from collections.abc import Callable, Iterator
from typing import IO, Any, Self

from drexperts.runtime.errors import DrexpertsError
from drexperts.runtime.inputs.folders import SUFFIXES, suffix_of
from drexperts.runtime.inputs.listed import ListedImage, Opener, failing, failure
from drexperts.runtime.work import Fetch

_BUFFER = 2**18  # bytes
_LONGEST_HEADER = 2**20  # bytes of a long name, or of an extended header
_EXTENDED = frozenset({b"x", b"g", b"X", b"L", b"K"})  # types whose data are such
# Not in the type information of `tarfile`: a block of zeros, and no block at all.
_ZEROS, _NOTHING = tarfile.EOFHeaderError, tarfile.EmptyHeaderError  # type: ignore[attr-defined]
# Unlike `tarfile`, these check sums, and read files that were compressed in pieces.
_COMPRESSED: dict[bytes, Callable[[Any], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\0": lzma.open,
}
_NO_FILE = "it is a link or a device; pack the archive again with `tar -h --hard-dereference`"


def tar_images(
    name: str, opened: Opener, largest: int, pass_over: Callable[[str], object]
) -> Iterator[ListedImage]:
    """The images among the members of an archive, and one that fails if it is broken.

    What precedes the damage is read, and so are archives behind the end of the first, as `cat`
    joins them. Nothing is written to the disk, and no more than one member is in memory.
    Directories and hidden files are skipped; other members are passed over. A link that is named
    like an image fails: what it links to may be anywhere in the archive.

    name: the archive's path, with which the source of each image begins
    opened: opens the archive; what it returns closes it
    largest: bytes of the largest image; a larger one fails without being read
    pass_over: called with the suffix of each other member
    """
    read = 0
    try:
        with opened() as stream, _archive(stream) as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # it keeps all of them
                if _is_hidden(member.name) or member.isdir():
                    continue
                if suffix_of(member.name) not in SUFFIXES:
                    pass_over(suffix_of(member.name))
                    continue
                read += 1
                yield _image(name, archive, member, largest)
    except DrexpertsError:
        raise
    except Exception as cause:  # on hostile bytes nearly anything
        reason = str(cause) or type(cause).__name__
        yield failing(name, f"{reason}; {read} images before the damage were read: replace it")


def _archive(stream: IO[bytes]) -> "_Archive":
    pieces: Any = _Pieces(stream)
    # Names are bytes: those that are not UTF-8 are kept, whatever the locale.
    return _Archive.open(
        mode="r|",
        fileobj=pieces,
        bufsize=_BUFFER,
        tarinfo=_Header,
        encoding="utf-8",
        errors="surrogateescape",
        ignore_zeros=True,
    )


class _Pieces:
    """A file, decompressed, that is read in pieces of any size: all that precedes damage is read.

    A longer read would be lost as a whole.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        buffered = io.BufferedReader(stream, _BUFFER)  # type: ignore[type-var]
        start = buffered.peek(8)
        openers = (opener for first, opener in _COMPRESSED.items() if start.startswith(first))
        self._stream = next(openers, lambda plain: plain)(buffered)

    def read(self, size: int) -> bytes:
        return self._stream.read1(size)


class _Archive(tarfile.TarFile):
    """An archive that is read to its last byte; see `_Header`."""

    ended = False  # whether the last block was its end mark


class _Header(tarfile.TarInfo):
    """A header, of which damage is an error: `tarfile` takes it for the end of the archive.

    A block of zeros is an end mark only if nothing follows: it may as well be where a disk lost
    what was written, or where another archive was appended.
    """

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> Self:
        assert isinstance(tarfile_, _Archive)
        ended, tarfile_.ended = tarfile_.ended, False
        try:
            return super().fromtarfile(tarfile_)
        except _ZEROS:
            tarfile_.ended = True
            raise
        except tarfile.HeaderError as cause:
            if ended and isinstance(cause, _NOTHING):
                tarfile_.ended = True
                raise
            raise tarfile.ReadError(_reason(str(cause))) from cause

    def _proc_member(self, tarfile_: tarfile.TarFile) -> tarfile.TarInfo:
        # The method that `tarfile` lets subclasses override. It reads extended headers whole.
        if self.type in _EXTENDED and self.size > _LONGEST_HEADER:
            raise tarfile.ReadError(f"a header of {self.size} bytes")
        if self.size < 0:
            raise tarfile.ReadError("a member of negative size")
        found: tarfile.TarInfo = super()._proc_member(tarfile_)  # type: ignore[misc]
        return found


def _reason(message: str) -> str:
    return "it was cut off" if message in ("empty header", "truncated header") else message


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/") if part not in (".", ".."))


def _image(
    archive_name: str, archive: tarfile.TarFile, member: tarfile.TarInfo, largest: int
) -> ListedImage:
    source = f"{archive_name}/{_key(member.name)}"
    if not member.isreg():
        return failing(source, _NO_FILE)
    if member.size > largest:
        return failing(source, f"it has {member.size} bytes, and {largest} may be read")

    def read() -> bytes | Fetch:
        try:
            return _contents(archive, member)
        except Exception as cause:  # as above
            return failure(source, f"its archive is damaged there ({cause})")

    return ListedImage(source, read, passing=True)


def _key(name: str) -> str:
    return posixpath.normpath(name) if name.startswith("./") else name


def _contents(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    stream = archive.extractfile(member)
    data = b"" if stream is None else stream.read()
    if len(data) != member.size:
        raise tarfile.ReadError("unexpected end of data")
    return data
