"""`drx` with engines that a white image disturbs: `python faulty_engines.py fails VERB …`."""

import sys
import threading
from typing import Any

from drexperts.cli.main import main
from drexperts.runtime import selection
from drexperts.runtime.errors import DeviceError
from drexperts.serve import server


class Faulty:
    """An engine that works until it is given a crop that is white all over."""

    def __init__(self, session: Any, how: str) -> None:
        self._session, self._how = session, how

    def run(self, pixels: Any) -> Any:
        if pixels.min() == 255:
            if self._how == "fails":
                raise DeviceError("the GPU is lost")
            threading.Event().wait()
        return self._session.run(pixels)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)


def run(how: str, arguments: list[str]) -> int:
    backend = selection.BACKENDS["onnx"]
    selection.BACKENDS["onnx"] = backend._replace(
        open=lambda *given: Faulty(backend.open(*given), how)
    )
    server._GRACE = 0.5
    return main(arguments)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1], sys.argv[2:]))
