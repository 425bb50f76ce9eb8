"""PyAV, which reads videos with FFmpeg's libraries, imported where it is used."""

import importlib
from typing import Any

from drexperts.runtime.errors import MissingDependencyError
from drexperts.runtime.installing import install_command


def import_av() -> Any:
    """The module `av`. Raises MissingDependencyError if it is not installed."""
    try:
        return importlib.import_module("av")
    except ImportError as cause:
        raise MissingDependencyError(f"videos need PyAV: {install_command('video')}") from cause


def video_version() -> str:
    """What turns a video into pixels, such as "drexperts video 2, PyAV 18.1.0, libavcodec ...".

    Raises MissingDependencyError.
    """
    av = import_av()
    libraries = [
        f"{name} {'.'.join(map(str, av.library_versions[name]))}"
        for name in ("libavformat", "libavcodec", "libswscale")
    ]
    return ", ".join([_READER, f"PyAV {av.__version__}", *libraries])


# Raised when this package reads other pixels, or other times, from the same video.
_READER = "drexperts video 2"
