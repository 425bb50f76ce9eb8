"""A stand-in for NVIDIA's management library, in place of the module `pynvml`."""

from collections.abc import Callable
from typing import Any


class NvmlError(Exception):
    pass


class FakeNvml:
    """NVML on a machine with some GPUs.

    gpus: by index, what `nvmlDeviceGet...` returns by the rest of its name. A function with another
        argument has both in a tuple. What is missing is not supported.
    """

    NVMLError = NvmlError
    NVMLError_LibraryNotFound = type("LibraryNotFound", (NvmlError,), {})
    NVMLError_DriverNotLoaded = type("DriverNotLoaded", (NvmlError,), {})
    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = "sm", "memory", "gpu"

    def __init__(self, *gpus: dict[Any, Any], fails: str | None = None) -> None:
        self.gpus = gpus
        self._fails = fails

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def told(handle: int, *arguments: object) -> Any:
            key = name.removeprefix("nvmlDeviceGet")
            try:
                return self.gpus[handle][(key, *arguments) if arguments else key]
            except (KeyError, IndexError):
                raise NvmlError("Not Supported") from None

        return told

    def nvmlInit(self) -> None:  # noqa: N802
        if self._fails is not None:
            raise getattr(self, self._fails)("reason")

    def nvmlShutdown(self) -> None:  # noqa: N802
        pass

    def nvmlSystemGetDriverVersion(self) -> str:  # noqa: N802
        return "580.1"

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        if index >= len(self.gpus):
            raise NvmlError("Not Found")
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:  # noqa: N802
        return [gpu["UUID"] for gpu in self.gpus].index(uuid)
