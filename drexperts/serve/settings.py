"""How a server listens, and what it accepts."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """How a server listens, and what it accepts.

    host, port: where it listens; port 0 takes a free one
    queue: crops that may wait or run; a request beyond it is answered with 503
    max_delay: seconds for which a batch that is not full waits for more crops
    decoders: images that are decoded at once
    timeout: seconds until which a request must be in the engine
    max_body: bytes of a request's body
    drain: seconds that requests in flight have to finish after SIGTERM
    """

    host: str = "127.0.0.1"
    port: int = 8000
    queue: int = 512
    max_delay: float = 0.0
    decoders: int = 2
    timeout: float = 30.0
    max_body: int = 32 * 2**20
    drain: float = 20.0
