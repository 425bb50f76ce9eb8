"""The images that paths, folders and glob patterns name."""

import glob
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, NoReturn

from drexperts.runtime.decoding.formats import heif
from drexperts.runtime.errors import UserError

# File name suffixes of the formats that `decoding` reads.
SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".gif", ".bmp"}
    | {".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".avifs"}
    | {".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"}
    | ({".heic", ".heif", ".hif"} if heif.available() else set())
)

_NAMED_SUFFIXES = 5  # of those passed over, in a message


class FoundImages(NamedTuple):
    """What a search found.

    paths: the images, sorted, each once
    passed_over: how many other files there are of each suffix, in lower case, the most frequent
        suffix first; "" stands for no suffix
    """

    paths: list[Path]
    passed_over: dict[str, int]


class NamedFile(NamedTuple):
    """A file that an argument names, or that lies in a folder or matches a pattern.

    in_folder: whether it was found in a folder, so that nobody named it
    named: whether the argument is this file's own path
    """

    path: str
    in_folder: bool = False
    named: bool = False

    @property
    def is_image(self) -> bool:
        """Whether it is to be read as an image."""
        return self.named or suffix_of(self.path) in SUFFIXES


def find_images(arguments: Iterable[str]) -> FoundImages:
    """The images that files, folders and glob patterns name, and a count of the other files.

    A file that is named itself is always an image. Folders, with their sub-folders, and patterns
    give files with a suffix in SUFFIXES and count the others; hidden files, hidden folders and
    links to folders inside a folder are skipped.

    Raises UserError for an argument that names nothing, and if there is no image at all.
    """
    named = list(arguments)
    images: dict[str, Path] = {}
    others: dict[str, str] = {}
    for file in (file for argument in named for file in files_named_by(argument)):
        if file.is_image:
            images.setdefault(os.path.abspath(file.path), Path(file.path))
        else:
            others[os.path.abspath(file.path)] = suffix_of(file.path)
    counts = Counter(others[path] for path in sorted(others.keys() - images.keys()))
    passed_over = dict(counts.most_common())
    if not images:
        raise nothing_found(named, passed_over)
    return FoundImages(sorted(images.values()), passed_over)


def nothing_found(named: Iterable[str], passed_over: Mapping[str, int]) -> UserError:
    """The error of arguments that name no image."""
    there = f" ({count_passed_over(passed_over)})" if passed_over else ""
    return UserError(
        f"no image in {', '.join(map(repr, named))}{there}: folders and patterns are searched "
        f"for {' '.join(sorted(SUFFIXES))}; name a file itself to score it whatever its suffix"
    )


def count_passed_over(passed_over: Mapping[str, int]) -> str:
    """Such as "5 files passed over (.heic 2, .jxl 2, no suffix 1)"; at most five suffixes."""
    total = sum(passed_over.values())
    named = [f"{_shown(suffix)} {count}" for suffix, count in passed_over.items()]
    rest = ["…"] * (len(named) > _NAMED_SUFFIXES)
    files = "1 file" if total == 1 else f"{total} files"
    return f"{files} passed over ({', '.join(named[:_NAMED_SUFFIXES] + rest)})"


def _shown(suffix: str) -> str:
    return (suffix if suffix.isprintable() else ascii(suffix))[:20] or "no suffix"


def files_named_by(argument: str) -> Iterator[NamedFile]:
    """The files that an argument names, in an order that depends on their names alone.

    Paths are spelled as `Path` spells them, such as "a.jpg" for "./a.jpg". What is in a folder of a
    folder is listed when that is reached, so that the first files are there before a large tree is
    known.

    Raises UserError for an argument that names nothing, and for a folder that cannot be listed.
    """
    check_named(argument)
    if os.path.isdir(argument):
        yield from _files_below(Path(argument))
    elif os.path.exists(argument):
        yield NamedFile(str(Path(argument)), named=True)
    else:
        for match in sorted(map(Path, glob.glob(argument, recursive=True))):
            yield from _files_below(match) if match.is_dir() else [NamedFile(str(match))]


def check_named(argument: str) -> None:
    """Raise UserError for an argument that names nothing."""
    if not os.path.exists(argument) and not any(glob.iglob(argument, recursive=True)):
        raise UserError(f"{argument!r} names no file or folder: check the path")


def _files_below(folder: Path) -> Iterator[NamedFile]:
    """Sorted as their paths are by `Path`, which compares them folder by folder."""
    above = "" if folder == Path() else str(folder)
    for name, is_folder in _listed(folder):
        if is_folder:
            yield from _files_below(folder / name)
        else:
            yield NamedFile(os.path.join(above, name), in_folder=True)


def _listed(folder: Path) -> list[tuple[str, bool]]:
    """The names in a folder, sorted, and whether each is a folder; links to folders are left out.

    Only names are kept of the entries: a folder may hold a million.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted(
                (entry.name, _is_folder(entry))
                for entry in entries
                if not entry.name.startswith(".") and not (entry.is_symlink() and _is_folder(entry))
            )
    except OSError as cause:
        _cannot_list(cause)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or to where we may not look: an image that cannot be read
        return False


def _cannot_list(cause: OSError) -> NoReturn:
    raise UserError(
        f"cannot list the folder {str(cause.filename)!r}: {cause.strerror}; "
        "make it readable or name other folders"
    ) from cause


def suffix_of(path: str) -> str:
    """The suffix of a file name, in lower case, such as ".jpg"; "" if it has none."""
    return os.path.splitext(first_link(path))[1].lower()


def first_link(path: str) -> str:
    """What a chain of URLs names, such as tar://a.png of tar://a.png::s3://bucket/all.tar.

    Links without an address, such as simplecache::, name what the next one names.
    """
    return next((link for link in path.split("::") if "://" in link), path)
