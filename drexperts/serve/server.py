"""A bundle behind a URL until a signal ends it."""

import contextlib
import os
import socket
from collections.abc import Callable

import numpy as np
import uvicorn

from drexperts import runtime
from drexperts.runtime.batching import Batcher
from drexperts.runtime.errors import UserError
from drexperts.runtime.scorer import Scorer
from drexperts.serve.app import application
from drexperts.serve.service import Service
from drexperts.serve.settings import ServeSettings


class _Server(uvicorn.Server):
    """A server after whose end this process goes on, whatever signal ended it."""

    def handle_exit(self, sig: int, frame: object) -> None:
        if self.should_exit:  # the second signal
            os._exit(128 + sig)
        self.should_exit = True


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

    device, batch, threads: as for `runtime.load`
    on_start: called with the URL once the engine is warm

    Raises UserError for a port that is taken, and what `runtime.load` raises.
    """
    settings = settings or ServeSettings()
    with (
        contextlib.closing(_listening(settings)) as listener,
        runtime.load(bundle, device, batch=batch, threads=threads, isolated=True) as scorer,
        Batcher(
            scorer,
            max_pending_crops=settings.queue,
            decoders=settings.decoders,
            max_delay=settings.max_delay,
        ) as batcher,
    ):
        service = Service(batcher, settings)
        _warm(scorer)
        service.warm = True
        if on_start is not None:
            on_start(f"http://{settings.host}:{listener.getsockname()[1]}")
        config = uvicorn.Config(
            application(service),
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=int(settings.drain),
        )
        _Server(config).run(sockets=[listener])


def _listening(settings: ServeSettings) -> socket.socket:
    try:
        return socket.create_server((settings.host, settings.port))
    except OSError as cause:
        raise UserError(
            f"{settings.host}:{settings.port} cannot be listened on: {cause.strerror or cause}; "
            "choose another port, or end the program that has it"
        ) from cause


def _warm(scorer: Scorer) -> None:
    """Run every batch size once, so that no request waits for a first time."""
    side = scorer.preprocessing.crop
    for size in range(1, scorer.batch + 1):
        scorer.session.run(np.zeros((size, 3, side, side), np.uint8))
