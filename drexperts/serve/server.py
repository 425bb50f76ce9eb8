"""A bundle behind a URL until a signal ends it."""

import asyncio
import contextlib
import functools
import logging
import math
import os
import signal
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import uvicorn

from drexperts import runtime
from drexperts.runtime.batching import Batcher
from drexperts.runtime.decoding.limits import DecodingLimits
from drexperts.runtime.errors import MissingDependencyError, UserError
from drexperts.runtime.installing import install_command
from drexperts.serve.guard import MOST_HEADERS, check_open
from drexperts.serve.http.app import application
from drexperts.serve.http.envelope import Envelope
from drexperts.serve.http.protocol import Http
from drexperts.serve.listening import address, listen
from drexperts.serve.logs import logging_to_stderr
from drexperts.serve.metrics import Metrics
from drexperts.serve.requests import OnRequest
from drexperts.serve.service import Service
from drexperts.serve.settings import ServeSettings
from drexperts.serve.warming import warm

if TYPE_CHECKING:
    from drexperts.serve.grpc.server import GrpcServer

# After the drain: for the last answers to be sent, and for calls of the engine to end.
_GRACE = 2.0
_LOOK = 0.2  # seconds between looks at the engine
_EXPIRED = 75  # the exit status of a drain that took too long; EX_TEMPFAIL
_log = logging.getLogger("drexperts.serve")


class _Server(uvicorn.Server):
    """A server after whose end this process goes on, whatever signal ended it.

    stopping: is set once it accepts nothing more
    get_ready: is called once it listens, in a thread; what it raises ends the server
    """

    def __init__(
        self,
        config: uvicorn.Config,
        service: Service,
        stopping: threading.Event,
        get_ready: Callable[[], object],
        grpc: "GrpcServer | None" = None,
    ) -> None:
        super().__init__(config)
        self._get_ready = get_ready
        self._service, self._stopping, self._grpc = service, stopping, grpc
        self.failure: BaseException | None = None

    def handle_exit(self, sig: int, frame: object) -> None:
        if self.should_exit:  # the second signal
            os._exit(128 + sig)
        self.end()

    def end(self, failure: BaseException | None = None) -> None:
        """Accept nothing more; a failure is what `serve` raises then."""
        self._service.stopping = self.should_exit = True
        self.failure = self.failure or failure
        self._stopping.set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        if self._grpc is not None:
            await self._grpc.start()
        await super().startup(sockets)
        self._watching = asyncio.create_task(self._watch())

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let requests in flight end, until the drain is over; then they fail."""
        drain = self._service.settings.drain
        loop = asyncio.get_running_loop()
        over = loop.call_later(drain, lambda: loop.run_in_executor(None, self._fail_the_rest))
        ending = [super().shutdown(sockets)]
        if self._grpc is not None:
            ending.append(self._grpc.stop(drain + _GRACE))
        await asyncio.gather(*ending)
        over.cancel()
        self._watching.cancel()

    def _fail_the_rest(self) -> None:
        _log.warning("the drain is over: what is left fails")
        self._service.batcher.close(timeout=0)

    async def _watch(self) -> None:
        """Get ready, then look whether the engine has failed for good."""
        try:
            await asyncio.to_thread(self._get_ready)
        except Exception as error:
            _log.error("the engine failed its test: %s", error)
            self.end(error)
            return
        while not self.should_exit:
            if (failure := self._service.batcher.failure) is not None:
                self.end(failure)  # the Batcher has logged it
            await asyncio.sleep(_LOOK)


def serve(
    bundle: str | os.PathLike[str],
    settings: ServeSettings | None = None,
    *,
    device: str = "auto",
    batch: int | None = None,
    threads: int | None = None,
    on_start: Callable[[str], object] | None = None,
) -> None:
    """Answer requests until SIGTERM or Ctrl-C, then finish those in flight.

    It is live once it listens, and ready once the engine is warm and has passed its test. If what
    is in flight takes longer than the drain, it fails; if even that hangs, the process ends.

    device, batch, threads: as for `runtime.load`
    on_start: called with the URL of each protocol once it listens

    Raises UserError for a port that is taken and for unusable tokens and certificates,
    MissingDependencyError for gRPC without its libraries, what `runtime.load` raises, and the
    engine's error once it has failed for good.
    """
    settings = settings or ServeSettings()
    check_open(settings.host, settings.tokens, settings.no_token)
    _check_tls(settings)
    _check_grpc(settings)
    limits = DecodingLimits(max_pixels=settings.max_pixels)
    stopping, server = threading.Event(), None
    with (
        _ended_while_it_starts(),
        logging_to_stderr(settings.log_json),
        _ended_by_force(stopping, settings.drain + 2 * _GRACE),
        contextlib.closing(listen(settings.host, settings.port)) as listener,
        runtime.load(
            bundle,
            device,
            batch=batch,
            threads=threads,
            isolated=True,
            decoders=settings.decoders,
            limits=limits,
        ) as scorer,
        Batcher(
            scorer,
            max_pending_crops=settings.queue,
            decoders=settings.decoders,
            max_delay=settings.max_delay,
            observer=(metrics := Metrics(scorer)),
        ) as batcher,
    ):
        service = Service(batcher, settings, metrics.scored)
        metrics.watch(service)
        app = application(service, metrics.requested, [metrics.route()])
        get_ready = functools.partial(warm, service)
        grpc = _grpc_server(service, metrics.requested, on_start)
        server = _Server(_config(app, settings), service, stopping, get_ready, grpc)
        if on_start is not None:
            scheme = "http" if settings.tls_cert is None else "https"
            on_start(f"{scheme}://{address(settings.host, listener.getsockname()[1])}")
        server.run(sockets=[listener])
        batcher.close(timeout=_GRACE)
    if server is not None and server.failure is not None:
        raise server.failure


class _EndedError(BaseException):
    """A signal came before the server ran."""


@contextlib.contextmanager
def _ended_while_it_starts() -> Iterator[None]:
    """A signal that comes before uvicorn takes signals ends the `with` in good order."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: object) -> None:
        raise _EndedError

    before = {each: signal.signal(each, end) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    except _EndedError:
        _log.info("ended before it was ready")
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _config(app: Envelope, settings: ServeSettings) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=Http,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        h11_max_incomplete_event_size=MOST_HEADERS,
        timeout_graceful_shutdown=math.ceil(settings.drain + _GRACE),
        ssl_certfile=settings.tls_cert,
        ssl_keyfile=settings.tls_key,
    )


@contextlib.contextmanager
def _ended_by_force(stopping: threading.Event, seconds: float) -> Iterator[None]:
    """End this process if this `with` has not ended so long after `stopping` was set.

    An engine that hangs cannot be freed, and no thread that waits for it ends.
    """
    ended = threading.Event()

    def watch() -> None:
        stopping.wait()
        if not ended.wait(seconds):
            _log.error("the engine did not end in time: the process ends without it")
            for handler in logging.getLogger("drexperts").handlers:
                handler.flush()
            os._exit(_EXPIRED)

    threading.Thread(target=watch, daemon=True, name="drexperts-end").start()
    try:
        yield
    finally:
        ended.set()
        stopping.set()


def _check_tls(settings: ServeSettings) -> None:
    if settings.tls_cert is None or settings.tls_key is None:
        return
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(settings.tls_cert, settings.tls_key)
    except (OSError, ssl.SSLError) as cause:
        raise UserError(
            f"the certificate {str(settings.tls_cert)!r} with the key {str(settings.tls_key)!r} "
            f"cannot be used: {cause}"
        ) from cause


def _check_grpc(settings: ServeSettings) -> None:
    """Find out what is missing for gRPC before the bundle is loaded, which takes a while."""
    if settings.grpc_port is None:
        return
    try:
        from drexperts.serve.grpc.server import free_address
    except ModuleNotFoundError as cause:
        needed = f"gRPC needs {cause.name}: {install_command('grpc')}"
        raise MissingDependencyError(needed) from cause
    free_address(settings)


def _grpc_server(
    service: Service, on_request: OnRequest, on_start: Callable[[str], object] | None
) -> "GrpcServer | None":
    if service.settings.grpc_port is None:
        return None
    from drexperts.serve.grpc.server import GrpcServer

    return GrpcServer(service, on_request, on_start)
