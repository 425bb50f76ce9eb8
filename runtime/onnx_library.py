"""ONNX Runtime, imported without its telemetry.

Importing `onnxruntime` 1.31 writes a device's number into the user's cache and later looks names up
in the internet, unless the environment variable ORT_DISABLE_TELEMETRY is 1 by then: turning
telemetry off in the imported library is too late. `drexperts/__init__.py` sets the variable, so
that libraries which import ONNX Runtime on our behalf find it as well.
"""

import importlib
import logging
import os
from typing import Any

from drexperts.runtime.errors import MissingDependencyError
from drexperts.runtime.installing import install_command

_log = logging.getLogger(__name__)
_warned = False


def import_onnxruntime() -> Any:
    """The module `onnxruntime`, with its telemetry off unless the application chose otherwise.

    Logs a warning, once, if the application imported it before drexperts with telemetry on.

    Raises MissingDependencyError if it is not installed.
    """
    global _warned
    try:
        onnxruntime = importlib.import_module("onnxruntime")
    except ImportError as cause:
        raise MissingDependencyError(
            f"this bundle needs ONNX Runtime: {install_command('cpu')}"
        ) from cause
    choice = os.environ.get("ORT_DISABLE_TELEMETRY")
    if choice in (None, "1"):
        onnxruntime.disable_telemetry_events()
    if choice is None and not _warned:
        _warned = True
        _log.warning(
            "onnxruntime was imported before drexperts, so that its telemetry has started: set "
            "ORT_DISABLE_TELEMETRY=1 in the environment, or import drexperts first"
        )
    return onnxruntime
