"""Every error that this package raises on purpose: the user's mistakes, and our own bugs."""

from drexperts.runtime.quoting import printable, shortened

_LONGEST = 4000  # characters of a message: it may quote a file, which may hold anything


class DrexpertsError(Exception):
    """The base class of every error that this package raises on purpose."""

    def __str__(self) -> str:
        return printable(shortened(super().__str__(), _LONGEST), kept="\n\t")


class UserError(DrexpertsError):
    """The user's mistake. The message says what to do next."""


class ConfigError(UserError):
    """A configuration value that is invalid, or that contradicts another."""


class MissingDependencyError(UserError):
    """An optional package is not installed. The message gives the command that brings it."""


class ImageError(UserError):
    """An image that cannot be read. The message names the source and the cause."""


class DecoderFailedError(ImageError):
    """An image on which the decoder crashed, or took more memory or time than it may."""


class DataError(UserError):
    """Labels or images that cannot be used. The message names them and says what to do."""


class WeightsError(UserError):
    """A weights file that is missing, unreadable, or does not match the model."""


class BundleError(UserError):
    """A bundle that is missing, changed, unproven, or of an unknown schema."""


class ChangedFileError(BundleError):
    """A file of a bundle that is missing, or whose hash differs from the manifest's."""


class NotTakenError(BundleError):
    """An engine that this machine cannot run, or that the caller did not ask for or trust."""


class DeviceError(UserError):
    """The GPU or its driver failed while in use. The message says what can be done."""


class CudaError(DeviceError):
    """A CUDA call failed.

    lost: whether this process lost the GPU, so that it must be restarted
    """

    def __init__(self, message: str, *, lost: bool = False) -> None:
        super().__init__(message)
        self.lost = lost


class OutOfMemoryError(CudaError):
    """The GPU's memory, or the memory that can be pinned for it, is full."""


class QueueFullError(UserError):
    """More is waiting to be scored than may wait. The same call may succeed later."""


class DeadlineError(UserError):
    """It was not begun within the time that the caller gave it, and was dropped."""


class ClosedError(UserError):
    """What was asked is closed, or was closed before it was done."""


class BuildError(UserError):
    """The library could not build the engine. The message quotes what the library reported."""


class PlanError(UserError):
    """An engine file that is damaged, or that differs from what its graph asks for."""


class UnreadablePlanError(PlanError):
    """An engine file whose layout this version cannot read, so that it was not inspected."""


class ArgumentError(UserError, ValueError):
    """An argument that does not fit an operation. The message begins with its name."""


class BackendError(UserError, RuntimeError):
    """A kernel backend that cannot run here. The message says why, and which one can."""


class TrainingError(UserError):
    """Training that cannot continue. The message says what to change."""


class NotFiniteError(TrainingError):
    """A loss that is infinite or NaN. Its batch changed nothing."""


class LostProcessError(UserError):
    """Another process of a distributed run ended, or cannot be reached."""


class StoppedError(DrexpertsError):
    """A signal stopped the work. What was done is kept, and the message says how to continue.

    status: the exit status by a shell's convention, 128 plus the signal's number
    """

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message, signal)  # pickle rebuilds the error from these arguments
        self.status = 128 + signal

    def __str__(self) -> str:
        return str(self.args[0])


class OutputError(DrexpertsError):
    """Standard output or standard error cannot be written.

    closed: whether its reader has gone, as `head` does
    """

    def __init__(self, cause: OSError) -> None:
        super().__init__(f"the output cannot be written: {cause.strerror or cause}")
        self.closed = isinstance(cause, BrokenPipeError)


class InternalError(DrexpertsError):
    """A bug of ours."""

    def __str__(self) -> str:
        return f"{super().__str__()}. This is a bug in drexperts: please report it"
