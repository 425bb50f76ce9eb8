"""What can go wrong, in two families: the user's mistake, and ours."""


class DrexpertsError(Exception):
    """Base of every error this package raises on purpose."""


class UserError(DrexpertsError):
    """The user's mistake. The message says what to do next."""


class BundleError(UserError):
    """A bundle that is missing, changed, of another schema, or not verified."""


class ImageError(UserError):
    """An image that cannot be read. The message names the source and the cause."""


class MissingDependencyError(UserError):
    """An optional package is not installed. The message names the pip extra."""


class WeightsError(UserError):
    """A weights file that is missing or does not match the model."""


class ConfigError(UserError):
    """A configuration value that cannot be."""


class DeviceError(UserError):
    """The GPU or its driver failed while in use. The message says what can be done."""


class StoppedError(DrexpertsError):
    """A signal asked for the end, and what was done is kept. The message says how to go on."""

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message, signal)  # all that makes it again from a pickle
        self.status = 128 + signal  # as a shell has it

    def __str__(self) -> str:
        return str(self.args[0])


class InternalError(DrexpertsError):
    """Our bug."""

    def __str__(self) -> str:
        return f"{super().__str__()}. This is a bug in drexperts: please report it"
