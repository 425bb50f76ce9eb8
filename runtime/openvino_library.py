"""OpenVINO, imported without its telemetry.

Importing `openvino` also imports `openvino_telemetry`, which opens internet sockets and writes an
identifier into the user's home. Where that module cannot be imported, OpenVINO uses a stub of it.
"""

import functools
import importlib
import logging
import os
import sys
from typing import Any

from drexperts.runtime.errors import MissingDependencyError
from drexperts.runtime.installing import install_command
from drexperts.runtime.quoting import printable, shortened

_TELEMETRY = "openvino_telemetry"
# Variables that oneDNN, which computes for OpenVINO, reads by either prefix, and the values that
# change nothing. FPMATH_MODE lets it compute float32 in bfloat16, which no compiled model shows.
_PREFIXES = ("ONEDNN_", "DNNL_")
_HARMLESS = {
    "DEFAULT_FPMATH_MODE": ("", "STRICT"),
    "MAX_CPU_ISA": ("", "ALL", "DEFAULT"),
}
_log = logging.getLogger(__name__)
_warned = False


def import_openvino() -> Any:
    """The module `openvino`, whose telemetry is kept from loading for the rest of the process.

    Logs a warning, once, if the application imported it before drexperts with its telemetry.

    Raises MissingDependencyError if it is not installed.
    """
    global _warned
    if "openvino" not in sys.modules:
        sys.modules.setdefault(_TELEMETRY, None)  # type: ignore[arg-type]
    try:
        openvino = importlib.import_module("openvino")
    except (ImportError, OSError) as cause:  # OSError: a shared library of it is missing
        raise MissingDependencyError(
            f"this engine needs OpenVINO: {install_command('openvino')}"
        ) from cause
    if sys.modules.get(_TELEMETRY) is not None and not _warned:
        _warned = True
        _log.warning(
            "openvino was imported before drexperts, so that its telemetry has started: uninstall "
            "openvino-telemetry, or load a bundle first"
        )
    return openvino


def openvino_core() -> Any:
    """The `openvino.Core` of this process, which is never freed.

    For CPUs with AMX each one gives the thread that makes it another stack for signals, and takes
    it back when it is freed. Of two, the second would then leave the stack of the first, which is
    gone, and the next signal with a handler in Python would end the process.

    Raises MissingDependencyError as `import_openvino`.
    """
    return _core(import_openvino())


@functools.cache
def _core(openvino: Any) -> Any:
    return openvino.Core()


def forcing_variable() -> str | None:
    """Which variable of the environment changes how OpenVINO computes, and what to do about it.

    None if there is none, so that it computes as the graph and the CPU say.
    """
    for prefix in _PREFIXES:
        for name, harmless in _HARMLESS.items():
            value = os.environ.get(variable := prefix + name, "")
            if value.upper() not in harmless:
                given = printable(shortened(value))
                return (
                    f"the environment has {variable}={given}, which changes the types or the "
                    f"instructions that OpenVINO computes with: unset {variable}"
                )
    return None


def openvino_version() -> str | None:
    """The installed version, such as "2026.4.1"; None if it is not installed."""
    try:
        openvino = import_openvino()
    except MissingDependencyError:
        return None
    # The build follows: "2026.4.1-22982-e213a147257-releases/2026/4".
    return str(openvino.__version__).partition("-")[0]
