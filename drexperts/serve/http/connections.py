"""How many connections a server may have, so that it never runs out of file descriptors."""

import sys

_MOST = 1024
_LEAST = 16  # with fewer descriptors than that leaves, something else fails first
_OTHERS = 128  # descriptors for the engine, the processes that decode, the log
_REFUSED = 128  # connections that are told that there are too many


def most_connections(*, also_refused: bool = False) -> int:
    """Connections that are served; with those that are refused, how many may be open."""
    most = _MOST
    if sys.platform != "win32":
        import resource

        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != resource.RLIM_INFINITY:
            most = max(_LEAST, min(most, soft - _OTHERS - _REFUSED))
    return most + _REFUSED if also_refused else most
