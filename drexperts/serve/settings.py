"""How a server listens, and what it accepts."""

from dataclasses import dataclass
from pathlib import Path

from drexperts.runtime.errors import UserError
from drexperts.runtime.scorer import DECODERS


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """How a server listens, and what it accepts.

    host, port: where it listens; port 0 takes a free one
    grpc_port: where it listens for gRPC, 0 for a free port; None is HTTP only
    queue: crops that may wait or run; a request beyond it is answered with 503
    max_delay: seconds for which a batch that is not full waits for more crops
    max_pixels: pixels of an image
    decoders: processes that decode images
    timeout: seconds for a body to arrive, and then for a request to be answered
    max_body: bytes of a request's body
    body_memory: bytes of all bodies in memory; a request beyond it is answered with 503
    max_images: images in one request
    drain: seconds that requests in flight have to finish after SIGTERM
    tokens: any of them lets a request in; none lets in all
    no_token: whether to listen without tokens where other machines reach the server
    hosts: names under which the server is asked; `*` is any. With none it answers under its
        addresses and those of the loopback, and under any name to clients with a token
    tls_cert, tls_key: files in PEM; None is plain HTTP
    model_name: of the Open Inference Protocol, whose second model is this with `_crops`
    page: whether there is a page for people at `/`
    log_json: whether the log is JSON, one line per event

    Raises UserError for values that cannot be.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    grpc_port: int | None = None
    queue: int = 512
    max_delay: float = 0.0
    max_pixels: int = 100_000_000
    decoders: int = DECODERS
    timeout: float = 30.0
    max_body: int = 32 * 2**20
    body_memory: int = 256 * 2**20
    max_images: int = 64
    drain: float = 20.0
    tokens: tuple[str, ...] = ()
    no_token: bool = False
    hosts: tuple[str, ...] = ()
    tls_cert: Path | None = None
    tls_key: Path | None = None
    model_name: str = "drexperts"
    page: bool = True
    log_json: bool = False

    def __post_init__(self) -> None:
        for port in (self.port, self.grpc_port or 0):
            if not 0 <= port < 65536:
                raise UserError(f"a port must be 0 to 65535, got {port}")
        for name in ("timeout", "drain"):
            if not 0 < getattr(self, name) < 86400:
                raise UserError(f"{name} must be more than 0 seconds and less than a day")
        for name in ("queue", "max_pixels", "max_images"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 1 <= self.max_body <= self.body_memory:
            raise UserError("max_body must be at least 1 byte, and at most body_memory")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise UserError("TLS needs a certificate and its key: give --tls-cert and --tls-key")
