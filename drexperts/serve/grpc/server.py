"""gRPC beside HTTP, in the same event loop: from its start to its end."""

import contextlib
from collections.abc import Callable
from typing import Any

import grpc

from drexperts.runtime.errors import UserError
from drexperts.serve.grpc.envelope import GrpcEnvelope
from drexperts.serve.grpc.receiving import Receiver
from drexperts.serve.grpc.service import methods
from drexperts.serve.guard import Guard
from drexperts.serve.listening import address, listen
from drexperts.serve.requests import OnRequest
from drexperts.serve.service import Service
from drexperts.serve.settings import ServeSettings

_MOST_CALLS = 1024
_HEALTH_SECONDS = 2.0  # for a message that says nothing but the name of a service
_OPTIONS = (
    # Or a second server on the port would not fail, but take a share of the calls.
    ("grpc.so_reuseport", 0),
    # Or gRPC would come to accept megabytes of messages that nobody has asked it for yet.
    ("grpc.http2.bdp_probe", 0),
    # None: compressed messages can be a thousand times larger than what is received.
    ("grpc.compression_enabled_algorithms_bitset", 1),
    ("grpc.server_handshake_timeout_ms", 10_000),
    # Clients that are gone without a word are noticed.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
)
_LARGEST = 2**31 - 1  # bytes of a message, for gRPC


class GrpcServer:
    """Answers over gRPC with a Service.

    on_request: is told of each call that ended
    on_start: called with the URL once it listens
    """

    def __init__(
        self,
        service: Service,
        on_request: OnRequest,
        on_start: Callable[[str], object] | None = None,
    ) -> None:
        self._settings = settings = service.settings
        receiver = Receiver(service.bodies, settings.max_body, settings.timeout)
        guard = Guard(settings.tokens)
        health = Receiver(service.bodies, settings.max_body, _HEALTH_SECONDS)
        self._envelope = GrpcEnvelope(methods(service), guard, receiver, health, on_request)
        self._on_start = on_start
        self._server: Any = None

    async def start(self) -> None:
        """Listen, in the event loop that runs. Raises UserError for a port that is taken."""
        settings = self._settings
        largest = ("grpc.max_receive_message_length", min(settings.max_body, _LARGEST))
        server = grpc.aio.server(options=(*_OPTIONS, largest), maximum_concurrent_rpcs=_MOST_CALLS)
        server.add_generic_rpc_handlers((self._envelope,))
        port = _listening(server, settings)
        await server.start()
        self._server = server
        if self._on_start is not None:
            scheme = "grpc" if settings.tls_cert is None else "grpcs"
            self._on_start(f"{scheme}://{address(settings.host, port)}")

    async def stop(self, seconds: float) -> None:
        """Accept nothing more, and give what is in flight so long to end."""
        await self._server.stop(seconds)


def free_address(settings: ServeSettings) -> str:
    """Where gRPC can listen. Raises UserError if it cannot."""
    port = settings.grpc_port or 0
    with contextlib.closing(listen(settings.host, port)) as free:
        return address(free.getsockname()[0], port)


def _listening(server: Any, settings: ServeSettings) -> int:
    """The port on which a server listens."""
    where = free_address(settings)
    try:
        if settings.tls_cert is None or settings.tls_key is None:
            return int(server.add_insecure_port(where))
        pair = settings.tls_key.read_bytes(), settings.tls_cert.read_bytes()
        return int(server.add_secure_port(where, grpc.ssl_server_credentials([pair])))
    except RuntimeError as cause:
        raise UserError(f"gRPC cannot listen on {where}: choose another port") from cause
