"""The memory that bodies of requests share, of all protocols."""

from drexperts.serve.failures import CLOSE, RequestError


class BodyMemory:
    """Bytes that the bodies of all requests hold. For one event loop.

    most: bytes that they may hold at once
    """

    def __init__(self, most: int) -> None:
        self.most, self.held = most, 0

    def take(self, size: int) -> None:
        """Raises RequestError if so much is not free."""
        if self.held + size > self.most:
            message = "the server holds as many bodies as it may: try again"
            raise RequestError(503, "busy", message, {"Retry-After": "1"} | CLOSE)
        self.held += size

    def give(self, size: int) -> None:
        """Free what was taken."""
        self.held -= size
