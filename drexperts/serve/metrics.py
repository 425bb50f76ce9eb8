"""What a server counts and measures, for Prometheus."""

import numpy as np
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from drexperts.runtime.score import Score
from drexperts.runtime.scorer import Scorer
from drexperts.serve.service import Service

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_SCORE_BUCKETS = 20


class Metrics:
    """The metrics of one server. It observes its Batcher, its requests and its scores.

    Every label has few values, whatever clients send.
    """

    def __init__(self, scorer: Scorer) -> None:
        self.registry = registry = CollectorRegistry()
        self._requests = Counter(
            "drx_requests_total", "Requests that ended", ["route", "outcome"], registry=registry
        )
        self._request = self._duration("request", "From a request's head to its answer", ["route"])
        self._decode = self._duration("decode", "Decoding an image and cutting its crops")
        self._queue = self._duration("queue", "From an image's decoding to its first engine call")
        self._inference = self._duration("inference", "One call of the engine")
        self._crops = Counter("drx_crops_total", "Crops that were scored", registry=registry)
        self._calls = Counter("drx_engine_calls_total", "Calls of the engine", registry=registry)
        self._batch = Histogram(
            "drx_batch_crops",
            "Crops in a call of the engine",
            buckets=sorted({1, 2, 4, 8, 16, 32, 64, scorer.batch}),
            registry=registry,
        )
        self._add_scores(scorer)
        self._add_info(scorer)

    def watch(self, service: Service) -> None:
        """Read from a service what has a value at any time."""
        pending = Gauge(
            "drx_pending_crops", "Crops that wait or run, or are reserved", registry=self.registry
        )
        pending.set_function(lambda: service.batcher.pending_crops)
        ready = Gauge("drx_ready", "Whether requests can be answered", registry=self.registry)
        ready.set_function(lambda: float(service.ready))

    def decoded(self, seconds: float) -> None:
        """As `BatchObserver`."""
        self._decode.observe(seconds)

    def queued(self, seconds: float) -> None:
        """As `BatchObserver`."""
        self._queue.observe(seconds)

    def ran(self, seconds: float, crops: int) -> None:
        """As `BatchObserver`."""
        self._inference.observe(seconds)
        self._batch.observe(crops)
        self._calls.inc()
        self._crops.inc(crops)

    def requested(self, route: str, outcome: str, seconds: float) -> None:
        """Count a request that ended, as `OnRequest`."""
        self._requests.labels(route, outcome).inc()
        self._request.labels(route).observe(seconds)

    def scored(self, score: Score) -> None:
        """Count a score, so that a change of what is scored can be seen."""
        self._scores.observe(score.value)
        if score.distortions:
            leading = max(score.distortions, key=score.distortions.__getitem__)
            self._leading.labels(leading).inc()

    def route(self) -> Route:
        """Where Prometheus reads them."""

        async def metrics(_: Request) -> Response:
            body = generate_latest(self.registry)
            return Response(body, headers={"Content-Type": CONTENT_TYPE_LATEST})

        return Route("/metrics", metrics)

    def _duration(self, name: str, what: str, labels: list[str] | None = None) -> Histogram:
        return Histogram(
            f"drx_{name}_duration_seconds",
            what,
            labels or [],
            buckets=_SECONDS,
            registry=self.registry,
        )

    def _add_scores(self, scorer: Scorer) -> None:
        scale = scorer.manifest.scale
        self._scores = Histogram(
            "drx_score",
            "Scores of images, on the scale of the bundle",
            buckets=np.linspace(scale.low, scale.high, _SCORE_BUCKETS + 1).round(6).tolist(),
            registry=self.registry,
        )
        self._leading = Counter(
            "drx_leading_distortion_total",
            "Images whose largest weight is that of a distortion",
            ["distortion"],
            registry=self.registry,
        )
        for name in scorer.manifest.distortions:
            self._leading.labels(name)

    def _add_info(self, scorer: Scorer) -> None:
        info = Gauge(
            "drx_info",
            "What scores; always 1",
            ["fingerprint", "engine", "precision"],
            registry=self.registry,
        )
        engine = scorer.engine
        info.labels(scorer.fingerprint(), engine.backend, engine.precision).set(1)
