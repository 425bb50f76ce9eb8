"""A server on a port of its own, in a thread of the test, around any engine."""

import contextlib
import functools
import http.client
import json
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

from drexperts.runtime import Batcher, Scorer
from drexperts.serve.http.app import application
from drexperts.serve.listening import listen
from drexperts.serve.metrics import Metrics
from drexperts.serve.server import _config, _grpc_server, _Server
from drexperts.serve.service import Service
from drexperts.serve.settings import ServeSettings
from drexperts.serve.warming import warm
from support.waiting import until


class Running:
    """A server that runs, and how to ask it."""

    grpc_port = 0

    def __init__(self, server: _Server, service: Service, port: int) -> None:
        self.server, self.service, self.port = server, service, port

    def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any, http.client.HTTPMessage]:
        """The status, the JSON and the headers of an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=8)
        with contextlib.closing(connection):
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read()), answer.headers

    def connect(self) -> socket.socket:
        """A connection on which a test says what it likes."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=8)


@contextlib.contextmanager
def serving(
    scorer: Scorer,
    *,
    wait: bool = True,
    on_request: Callable[[str, str, float], object] = lambda *_: None,
    **settings: Any,
) -> Iterator[Running]:
    """Run a server until the end of the `with`.

    wait: until it is ready, or has failed
    on_request: is told of each request that ended
    """
    chosen = ServeSettings(port=0, **settings)
    with (
        contextlib.closing(listen(chosen.host, chosen.port)) as listener,
        Batcher(scorer, max_pending_crops=chosen.queue) as batcher,
    ):
        service = Service(batcher, chosen)
        get_ready = functools.partial(warm, service)
        urls: list[str] = []
        grpc = _grpc_server(service, on_request, urls.append)
        config = _config(application(service, on_request), chosen)
        server = _Server(config, service, threading.Event(), get_ready, grpc)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        until(lambda: server.started and (not wait or service.warm or server.should_exit))
        try:
            running = Running(server, service, listener.getsockname()[1])
            running.grpc_port = int(urls[0].rpartition(":")[2]) if urls else 0
            yield running
        finally:
            server.end()
            thread.join(10)
            assert not thread.is_alive(), "the server did not end"


def metric_kinds(scorer: Scorer) -> dict[str, tuple[str, tuple[str, ...]]]:
    """The type and the labels of each metric, by the name that Prometheus sees."""
    metrics = Metrics(scorer)
    with Batcher(scorer) as batcher:
        metrics.watch(Service(batcher, ServeSettings()))
    found: list[Any] = list(metrics.registry._collector_to_names)
    return {
        each._name + "_total" * (each._type == "counter"): (each._type, tuple(each._labelnames))
        for each in found
    }
