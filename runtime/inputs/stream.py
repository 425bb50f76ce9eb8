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
from drexperts.runtime.inputs.listed import ListedImage, failing
from drexperts.runtime.inputs.parquet_files import parquet_images
from drexperts.runtime.inputs.parquet_layout import Columns
from drexperts.runtime.inputs.remote import files_at, is_remote, opened, remote_image
from drexperts.runtime.inputs.shards import Shard
from drexperts.runtime.inputs.tar_files import tar_images
from drexperts.runtime.inputs.video_files import VIDEO_SUFFIXES, Videos, video_frames
from drexperts.runtime.sources import ARCHIVE_SUFFIXES, PARQUET_SUFFIXES
from drexperts.runtime.wording import remedy

_MOST_SUFFIXES = 1000  # of files that are passed over; further ones are counted together
_OTHERS = "…"
_OF_ARCHIVES = {suffix_of(f"x{suffix}") for suffix in ARCHIVE_SUFFIXES}


class Inputs:
    """The images that arguments and lists name: iterate once.

    Arguments are files, folders, glob patterns and URLs; see `find_images`. Archives, tar or
    Parquet, that are named, listed or match a pattern stand for the images in them; in a folder
    they are passed over. Each image comes once, in the order of the arguments, and sorted within a
    folder or a pattern, or in an archive's own order. An archive in which a key comes again is
    followed by an image that fails, and is named like it: the later images could not be told from
    the first, and are left out.

    named: arguments; each must name something
    listed: paths and URLs of image files and archives, taken as they are; a missing one is an
        image that cannot be read
    shard: leave out the image files and archives of other shards
    columns: of Parquet files
    largest: bytes of the largest image in an archive
    videos: read all files as videos, and those in folders and patterns by their suffixes; frames
        stand for them as images do for archives, see `video_frames`. None for images.

    Attributes:
        named: the arguments
        is_done: says of a source whether its image need not be read; to be set by the caller
        repeated: images in archives that were left out, because their keys came before
        count, digest: how many image files and archives there are of all shards, and a digest of
            their names that does not depend on their order

    Raises UserError for what `find_images` refuses.
    """

    def __init__(
        self,
        named: Iterable[str],
        listed: Iterable[str] = (),
        *,
        shard: Shard | None = None,
        columns: Columns | None = None,
        largest: int = 2**30,
        videos: Videos | None = None,
    ) -> None:
        self.named, self._listed, self._videos = list(named), listed, videos
        self._shard, self._columns, self._largest = shard, columns or Columns(), largest
        self.is_done: Callable[[str], bool] = lambda source: False
        self._seen, self._archives, self._others = SourceSet(), SourceSet(), SourceSet()
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
        if self._videos is not None:
            return UserError(
                f"no video in {', '.join(map(repr, self.named))}: folders and patterns are searched"
                f" for {' '.join(sorted(VIDEO_SUFFIXES))}; name a file itself to read it whatever "
                "its suffix"
            )
        error = nothing_found(self.named or ["the list"], others)
        if not any(suffix in _OF_ARCHIVES for suffix in others):
            return error
        return UserError(f"{error}; name archives themselves, or by a pattern such as 'FOLDER/*'")

    def __iter__(self) -> Iterator[ListedImage]:
        for file in self._files():
            if self._holds_images(file):
                if self._is_ours(file.path) and self._archives.add(file.path):
                    yield from self._members_once(file.path)
            elif self._videos is not None or not file.is_image:
                self._pass_over_file(file.path)
            elif self._is_ours(file.path) and self._seen.add(file.path):
                yield self._image(file.path)

    def _files(self) -> Iterator[NamedFile]:
        for argument in self.named:
            yield from files_at(argument) if is_remote(argument) else files_named_by(argument)
        for path in filter(None, self._listed):
            yield NamedFile(path, named=True)

    def _holds_images(self, file: NamedFile) -> bool:
        """Whether a file is to be read as an archive or a video."""
        if self._videos is not None:
            return file.named or suffix_of(file.path) in VIDEO_SUFFIXES
        return not file.in_folder and _file_name(file.path).endswith(ARCHIVE_SUFFIXES)

    def _is_ours(self, path: str) -> bool:
        """Count an image file, an archive or a video; whether it belongs to this shard."""
        self.count += 1
        self._digest += int.from_bytes(digest_of(path), "big")
        if self._others and path in self._others:  # a folder gave it before it was named
            self._passed_over[suffix_of(path)] -= 1
        return self._shard is None or self._shard.takes(path)

    def _members_once(self, path: str) -> Iterator[ListedImage]:
        again = list[str]()  # the first source that came again
        for image in self._members(path):
            if self._seen.add(image.source):
                yield image
            else:
                again = again or [image.source]
                self.repeated += 1
        # One failure for an archive: that it is damaged was said before.
        if again and self._seen.add(path):
            yield failing(path, _repeats(path, again[0]))

    def _members(self, path: str) -> Iterator[ListedImage]:
        open_it = functools.partial(opened, path)
        if self._videos is not None:
            return video_frames(path, open_it, self._videos, lambda each: self.is_done(each))
        if _is_parquet(path):
            return parquet_images(path, open_it, self._columns, lambda each: self.is_done(each))
        return tar_images(path, open_it, self._largest, self._count_passed_over)

    def _image(self, path: str) -> ListedImage:
        return remote_image(path, self._largest) if is_remote(path) else ListedImage(path)

    def _pass_over_file(self, path: str) -> None:
        if path not in self._seen and self._others.add(path):
            self._count_passed_over(suffix_of(path))

    def _count_passed_over(self, suffix: str) -> None:
        is_known = suffix in self._passed_over or len(self._passed_over) < _MOST_SUFFIXES
        self._passed_over[suffix if is_known else _OTHERS] += 1


def _is_parquet(path: str) -> bool:
    return _file_name(path).endswith(PARQUET_SUFFIXES)


def _file_name(path: str) -> str:
    return os.path.basename(first_link(path)).lower()


def _repeats(path: str, source: str) -> str:
    """Why an archive is a row with an error although all of it was read."""
    again = "pack it again, each image with a name of its own"
    if _is_parquet(path):
        option = remedy("--key-column", "key_column=")
        again = f"name a column in which no value comes twice by {option}"
    return f"the key of {source!r} comes again, and only its first image was scored: {again}"
