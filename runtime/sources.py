"""What the `source` of a row names, a file or an image in one, and when two name the same.

An image in an archive is named by the archive's path, a slash, and its key there; a frame of a
video by the video's path, a slash, and its time.
"""

import os
import re

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
PARQUET_SUFFIXES = (".parquet",)
ARCHIVE_SUFFIXES = TAR_SUFFIXES + PARQUET_SUFFIXES

# Where the path of an archive ends in the source of an image in it.
_END = re.compile(rf"(?:{'|'.join(map(re.escape, ARCHIVE_SUFFIXES))})/", re.IGNORECASE)


def canonical(source: str) -> str:
    """The same text for every spelling of a source, in one working directory.

    Only the path of a file or archive is spelled anew. Keys and URLs are not paths: in them "a//b"
    and "a/b" are two names. The time of a frame has one spelling, so it may pass for a file's name.
    """
    match = _END.search(source)
    if match is None:
        return _absolute(source)
    end = match.end() - 1
    return _absolute(source[:end]) + source[end:]


def _absolute(path: str) -> str:
    if "://" in path:
        return path
    absolute = os.path.abspath(path)
    # What is above a link is not what is above the link's name. No file has a name with a NUL.
    if ".." in path.split("/") and "\0" not in path:
        folder = os.path.realpath(os.path.dirname(path))
        if folder != os.path.realpath(os.path.dirname(absolute)):
            return os.path.join(folder, os.path.basename(path))
    return absolute
