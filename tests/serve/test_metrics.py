"""What is counted, under the names that dashboards and autoscalers use."""

import numpy as np
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient
from support.held_engine import HeldEngine

from drexperts import runtime
from drexperts.runtime import Batcher, Scorer
from drexperts.serve.http.app import application
from drexperts.serve.metrics import Metrics
from drexperts.serve.service import Service
from drexperts.serve.settings import ServeSettings


@pytest.fixture
def client(toy_bundle):
    toy = runtime.load(toy_bundle, threads=1)
    scorer = Scorer(toy.manifest, toy.engine, HeldEngine(free=True), batch=4)
    metrics = Metrics(scorer)
    with Batcher(scorer, observer=metrics) as batcher:
        service = Service(batcher, ServeSettings(), metrics.scored)
        metrics.watch(service)
        app = application(service, metrics.requested, [metrics.route()])
        yield TestClient(app, "http://localhost")


def samples(client):
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(client.get("/metrics").text)
        for sample in family.samples
    }


def test_requests_images_and_calls_are_counted(client, encode) -> None:
    image = encode(Image.fromarray(np.full((32, 32), 42, np.uint8)), "PNG")
    for body in (image, image, b"text"):
        client.post("/v1/score", content=body)
    client.post("/v1/score", files=[("image", ("a", b"text"))])
    client.get("/v2/health/ready")
    for number in range(3):
        client.get(f"/{number}")
    found = samples(client)
    assert found["drx_requests_total", "ok", "score"] == 2
    assert found["drx_requests_total", "not_an_image", "score"] == 2
    assert found["drx_requests_total", "not_ready", "ready"] == 1
    assert found["drx_requests_total", "not_found", "none"] == 3
    assert found["drx_request_duration_seconds_count", "score"] == 4
    assert found["drx_decode_duration_seconds_count",] == 4
    assert found["drx_queue_duration_seconds_count",] == 2
    assert found["drx_inference_duration_seconds_count",] == 2
    assert found["drx_crops_total",] == found["drx_engine_calls_total",] == 2
    assert found["drx_batch_crops_sum",] == found["drx_score_count",] == 2
    assert found["drx_score_sum",] == pytest.approx(84)
    leading = [value for key, value in found.items() if key[0] == "drx_leading_distortion_total"]
    assert (len(leading), sum(leading)) == (10, 2)


def test_what_has_a_value_at_any_time_is_read(client) -> None:
    found = samples(client)
    assert found["drx_pending_crops",] == found["drx_ready",] == 0
    (info,) = [key for key in found if key[0] == "drx_info"]
    assert (info[1], info[3]) == ("onnx", "fp32")
