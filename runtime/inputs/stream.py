"""All images that a run is to score, one after the other, in memory that does not grow with them.

What is remembered of each is a digest of its source, so that no image is scored twice.
"""

import functools
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from drexperts.runtime.digests import SourceSet, digest_of
from drexperts.runtime.errors import UserError
from drexperts.runtime.inputs.folders import (
    NamedFile,
    check_named,
    files_named_by,
    first_link,
    nothing_found,
    suffix_of,
)
from drexperts.runtime.inputs.listed import ListedImage
from drexperts.runtime.inputs.parquet_files import PARQUET_SUFFIXES, parquet_images
from drexperts.runtime.inputs.parquet_layout import Columns
from drexperts.runtime.inputs.remote import files_at, is_remote, opened, remote_image
from drexperts.runtime.inputs.shards import Shard
from drexperts.runtime.inputs.tar_files import TAR_SUFFIXES, tar_images

_MOST_SUFFIXES = 1000  # of files that are passed over; further ones are counted together
_OTHERS = "…"
_OF_ARCHIVES = {suffix_of(f"x{suffix}") for suffix in TAR_SUFFIXES + PARQUET_SUFFIXES}


class Inputs:
    """The images that arguments and lists name: iterate once.

    Arguments are files, folders, glob patterns and URLs; see `find_images`. Archives (TAR_SUFFIXES)
    and Parquet files that are named, listed or match a pattern stand for the images in them; in a
    folder they are passed over. Each image comes once, in the order of the arguments, and sorted
    within a folder, a pattern or an archive's own order.

    named: arguments; each must name something
    listed: paths and URLs of image files and archives, taken as they are; a missing one is an
        image that cannot be read
    shard: leave out the image files and archives of other shards
    columns: of Parquet files
    largest: bytes of the largest image in an archive

    Attributes:
        named: the arguments
        is_done: says of a source whether its image need not be read; to be set by the caller
        repeated: images in archives that came again, with the same source, and were left out
        count, digest: how many image files and archives there are of all shards, and a digest of
            their names that does not depend on their order

    Raises UserError for what `find_images` refuses, and for two archives of the same file name,
    because the sources of their images could be the same.
    """

    def __init__(
        self,
        named: Iterable[str],
        listed: Iterable[str] = (),
        *,
        shard: Shard | None = None,
        columns: Columns | None = None,
        largest: int = 2**30,
    ) -> None:
        self.named, self._listed = list(named), listed
        self._shard, self._columns, self._largest = shard, columns or Columns(), largest
        self.is_done: Callable[[str], bool] = lambda source: False
        self._seen, self._others = SourceSet(), SourceSet()
        self._archives: dict[str, str] = {}
        self._passed_over: Counter[str] = Counter()
        self.repeated = self.count = self._digest = 0
        for argument in self.named:
            if not is_remote(argument):
                check_named(argument)

    @property
    def digest(self) -> str:
        """32 hex digits."""
        return f"{self._digest % 2**128:032x}"

    def passed_over_files(self) -> dict[str, int]:
        """How many other files there were so far of each suffix, the most frequent first."""
        return {suffix: count for suffix, count in self._passed_over.most_common() if count > 0}

    def nothing_found(self) -> UserError:
        """The error of inputs without an image."""
        others = self.passed_over_files()
        error = nothing_found(self.named or ["the list"], others)
        if not any(suffix in _OF_ARCHIVES for suffix in others):
            return error
        return UserError(f"{error}; name archives themselves, or by a pattern such as 'FOLDER/*'")

    def __iter__(self) -> Iterator[ListedImage]:
        for file in self._files():
            name = _archive_name(file)
            if name is None and not file.is_image:
                self._pass_over_file(file.path)
            elif self._is_ours(name or file.path, file.path):
                images = (
                    [self._image(file.path)] if name is None else self._members(name, file.path)
                )
                yield from filter(self._is_new, images)

    def _files(self) -> Iterator[NamedFile]:
        for argument in self.named:
            yield from files_at(argument) if is_remote(argument) else files_named_by(argument)
        for path in self._listed:
            yield NamedFile(path, named=True)

    def _is_ours(self, name: str, path: str) -> bool:
        """Count an image file or an archive; whether it belongs to this shard."""
        self.count += 1
        self._digest += int.from_bytes(digest_of(name), "big")
        if self._others and path in self._others:  # a folder gave it before it was named
            self._passed_over[suffix_of(path)] -= 1
        return self._shard is None or self._shard.takes(name)

    def _members(self, name: str, path: str) -> Iterator[ListedImage]:
        if not self._is_new_archive(name, path if is_remote(path) else os.path.abspath(path)):
            return iter(())
        open_it = functools.partial(opened, path)
        if name.lower().endswith(PARQUET_SUFFIXES):
            return parquet_images(name, open_it, self._columns, lambda each: self.is_done(each))
        return tar_images(name, open_it, self._largest, self._count_passed_over)

    def _is_new_archive(self, name: str, whole: str) -> bool:
        is_new = name not in self._archives
        if self._archives.setdefault(name, whole) != whole:
            raise UserError(
                f"{self._archives[name]!r} and {whole!r} have the same file name, with which the "
                "sources of their images begin: rename one, or score it into another file"
            )
        return is_new

    def _image(self, path: str) -> ListedImage:
        return remote_image(path, self._largest) if is_remote(path) else ListedImage(path)

    def _is_new(self, image: ListedImage) -> bool:
        is_new = self._seen.add(image.source)
        self.repeated += not is_new and image.read is not None
        return is_new

    def _pass_over_file(self, path: str) -> None:
        if path not in self._seen and self._others.add(path):
            self._count_passed_over(suffix_of(path))

    def _count_passed_over(self, suffix: str) -> None:
        is_known = suffix in self._passed_over or len(self._passed_over) < _MOST_SUFFIXES
        self._passed_over[suffix if is_known else _OTHERS] += 1


def _archive_name(file: NamedFile) -> str | None:
    """The file name of an archive that is to be read; None for other files."""
    suffixes = TAR_SUFFIXES + PARQUET_SUFFIXES
    name = os.path.basename(first_link(file.path))
    return name if name.lower().endswith(suffixes) and not file.in_folder else None
