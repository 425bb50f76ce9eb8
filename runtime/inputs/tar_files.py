"""The images in a tar archive, read as a stream from its first byte to its last."""

import posixpath
import tarfile
from collections.abc import Callable, Iterator
from typing import IO, Self

from drexperts.runtime.errors import DrexpertsError
from drexperts.runtime.inputs.folders import SUFFIXES, suffix_of
from drexperts.runtime.inputs.listed import ListedImage, Opener, failing, failure
from drexperts.runtime.work import Fetch

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")

_BUFFER = 2**18  # bytes
_LONGEST_HEADER = 2**20  # bytes of a long name, or of an extended header
_EXTENDED = frozenset({b"x", b"g", b"X", b"L", b"K"})  # types whose data are such
_END = tarfile.EOFHeaderError  # type: ignore[attr-defined]  # not in its type information


def tar_images(
    name: str, opened: Opener, largest: int, pass_over: Callable[[str], object]
) -> Iterator[ListedImage]:
    """The images among the members of an archive, and one that fails if it is broken.

    What precedes the damage is read. Nothing is written to the disk, and no more than one member
    is in memory. Directories and hidden files are skipped; other members are passed over.

    name: the archive's file name, with which the source of each image begins
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
                if not member.isreg() or suffix_of(member.name) not in SUFFIXES:
                    pass_over(suffix_of(member.name))
                    continue
                read += 1
                yield _image(name, archive, member, largest)
    except DrexpertsError:
        raise
    except Exception as cause:  # on hostile bytes nearly anything
        reason = str(cause) or type(cause).__name__
        yield failing(name, f"{reason}; {read} images before the damage were read: replace it")


def _archive(stream: IO[bytes]) -> tarfile.TarFile:
    # Names are bytes: those that are not UTF-8 are kept, whatever the locale.
    return tarfile.open(
        mode="r|*",
        fileobj=stream,
        bufsize=_BUFFER,
        tarinfo=_Header,
        encoding="utf-8",
        errors="surrogateescape",
    )


class _Header(tarfile.TarInfo):
    """A header, of which damage is an error: `tarfile` takes it for the end of the archive."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tarfile_)
        except _END:
            raise
        except tarfile.HeaderError as cause:
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
