"""gRPC on a socket: what is answered, with which status, and what happens at the end."""

import random

import grpc
import numpy as np
import pytest
from PIL import Image
from support.certificates import certificate
from support.disturbed_inferences import disturbed
from support.grpc_client import (
    arrays_of,
    as_bytes,
    client_of,
    crops_request,
    images_request,
    path,
)
from support.held_engine import HeldEngine
from support.scrambling import scrambled
from support.serving import serving
from support.waiting import until

from drexperts import runtime
from drexperts.runtime import Scorer
from drexperts.runtime.errors import DeviceError, UserError
from drexperts.runtime.preprocess import most_crops
from drexperts.serve.grpc.descriptor import MESSAGES
from drexperts.serve.grpc.server import free_address
from drexperts.serve.settings import ServeSettings

Code = grpc.StatusCode


@pytest.fixture(scope="module")
def toy(toy_bundle):
    return runtime.load(toy_bundle, threads=1)


@pytest.fixture(scope="module")
def image(encode):
    return encode(Image.fromarray(np.full((32, 32), 50, np.uint8)), "PNG")


@pytest.fixture
def engine():
    return HeldEngine(free=True)


@pytest.fixture
def ended():
    return []


@pytest.fixture
def running(toy, engine, ended):
    scorer = Scorer(toy.manifest, toy.engine, engine, batch=4)
    with serving(
        scorer,
        on_request=lambda *end: ended.append(end[:2]),
        grpc_port=0,
        max_body=1_000_000,
        queue=most_crops(toy.preprocessing),
    ) as running:
        yield running
        engine.go_on()


@pytest.fixture
def client(running):
    with client_of(running.grpc_port) as client:
        yield client


def failure(call):
    """The code and the text of a call that fails, and its metadata."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    error = caught.value
    return error.code(), error.details(), dict(error.trailing_metadata())


def named(name, version=""):
    return MESSAGES["ModelReadyRequest"](name=name, version=version)


def test_the_server_and_its_models_are_described(client) -> None:
    assert client.ask("ServerLive").live
    assert client.ask("ServerReady").ready
    assert client.ask("ModelReady", named("drexperts")).ready
    assert client.ask("ModelReady", named("drexperts_crops", "1")).ready
    assert client.ask("ServerMetadata").name == "drexperts"
    model = client.ask("ModelMetadata", named("drexperts"))
    (given,) = model.inputs
    assert (given.name, given.datatype, list(given.shape)) == ("image", "BYTES", [-1])
    assert [output.name for output in model.outputs] == ["score", "std", "weights", "error"]


@pytest.mark.parametrize("raw", [True, False])
def test_images_have_the_scores_that_they_have_over_http(client, running, image, raw) -> None:
    request = images_request(image, image, raw=raw, id="7")
    request.outputs.add(name="score")
    response = client.ask("ModelInfer", request)
    _, row, _ = running.ask("POST", "/v1/score", image)
    assert response.id == "7"
    assert arrays_of(response)["score"].tolist() == [[row["value"]]] * 2
    assert [output.name for output in response.outputs] == ["score"]


@pytest.mark.parametrize("raw", [True, False])
def test_an_unreadable_image_costs_its_own_row(client, image, raw) -> None:
    found = arrays_of(client.ask("ModelInfer", images_request(image, b"text", image, raw=raw)))
    assert np.isnan(found["score"]).tolist() == [[False], [True], [False]]
    assert np.isnan(found["weights"]).all(axis=1).tolist() == [False, True, False]
    first, second, third = found["error"][:, 0]
    assert (first, third) == (b"", b"")
    assert b"it is text" in second


@pytest.mark.parametrize("raw", [True, False])
def test_crops_are_scored(client, toy, raw) -> None:
    side = toy.preprocessing.crop
    crops = np.arange(3, dtype=np.uint8).repeat(3 * side * side).reshape(3, 3, side, side)
    found = arrays_of(client.ask("ModelInfer", crops_request(crops, raw=raw)))
    np.testing.assert_array_equal(found["score"], [[0.0], [1.0], [2.0]])
    assert found["maps"].shape == (3, 10, 4, 4)


@pytest.mark.parametrize("asked", [named("other"), named("drexperts", "2"), named("")])
def test_an_unknown_model_is_not_found(client, asked) -> None:
    for method in ("ModelReady", "ModelMetadata"):
        code, text, _ = failure(lambda method=method: client.ask(method, asked))
        assert (code, "drexperts_crops" in text) == (Code.NOT_FOUND, True)


def test_mistakes_say_what_is_wrong(client, image) -> None:
    wrong = {
        "image 0 because": images_request(b"text", b""),
        "no output 'beauty'": images_request(image, outputs=[{"name": "beauty"}]),
        "takes one input": images_request(image, model_name="drexperts_crops"),
        "65 images": images_request(*[image] * 65),
        "must be UINT8": crops_request(np.zeros((1, 3, 2, 2), np.uint8)),
        "not a ModelInferRequest": b"\x0a\x01\xff",
    }
    for reason, request in wrong.items():
        code, text, metadata = failure(lambda r=request: client.ask("ModelInfer", r))
        assert (code, reason in text) == (Code.INVALID_ARGUMENT, True), text
        assert metadata["x-error-code"] in ("bad_request", "not_an_image")
    code, _, _ = failure(lambda: client.ask("ModelStreamInfer"))
    assert code is Code.UNIMPLEMENTED


def test_whatever_comes_is_answered(client, caplog) -> None:
    rng = random.Random(5)
    for case in range(60):
        message = disturbed(rng)
        call = client.begin("ModelInfer", scrambled(message, rng) if case % 2 else message)
        assert call.code() in (Code.INVALID_ARGUMENT, Code.NOT_FOUND), call.details()
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


def test_a_call_without_a_message_is_answered(client) -> None:
    ask = client.channel.stream_unary(path("ModelInfer"))
    code, text, _ = failure(lambda: ask(iter(()), timeout=8))
    assert (code, "no message" in text) == (Code.INVALID_ARGUMENT, True)


def test_what_is_too_large_is_refused(client) -> None:
    code, text, _ = failure(lambda: client.ask("ModelInfer", b"\0" * 1_000_001))
    assert (code, "larger than max" in text) == (Code.RESOURCE_EXHAUSTED, True)


def test_what_is_compressed_is_refused(client) -> None:
    options = {"compression": grpc.Compression.Gzip}
    code, _, _ = failure(lambda: client.ask("ModelInfer", b"\0" * 9_000_000, **options))
    assert code is Code.UNIMPLEMENTED


def waiting(running, engine, client, image):
    """A call that the engine has begun, and nothing else."""
    engine.hold()
    call = client.begin("ModelInfer", images_request(image))
    engine.wait_entered()
    until(lambda: running.service.batcher.pending_crops == 1)
    return call


@pytest.fixture
def roomy(toy, engine, ended):
    scorer = Scorer(toy.manifest, toy.engine, engine, batch=4)
    with serving(scorer, on_request=lambda *end: ended.append(end[:2]), grpc_port=0) as running:
        yield running
        engine.go_on()


@pytest.mark.parametrize("leaves", [True, False])
def test_work_that_nobody_waits_for_is_dropped(roomy, engine, ended, image, leaves) -> None:
    with client_of(roomy.grpc_port) as client:
        first = waiting(roomy, engine, client, image)
        second = client.begin("ModelInfer", images_request(image), timeout=8 if leaves else 0.3)
        if leaves:
            until(lambda: roomy.service.batcher.pending_crops == 2)
            second.cancel()
        else:
            assert second.code() is Code.DEADLINE_EXCEEDED
        until(lambda: roomy.service.batcher.pending_crops == 1)
        until(lambda: ended)
        engine.go()
        assert arrays_of(first.result())["score"].round() == 50
        assert len(engine.batches[-1]) == 1
    assert ended[0] == ("ModelInfer", "client_gone" if leaves else "timed_out")


def test_too_much_is_refused_with_a_hint(running, engine, client, ended, image) -> None:
    first = waiting(running, engine, client, image)
    code, _, metadata = failure(lambda: client.ask("ModelInfer", images_request(image)))
    assert code is Code.UNAVAILABLE
    assert metadata["x-error-code"] == "queue_full"
    assert metadata["grpc-retry-pushback-ms"] == "1000"
    engine.go()
    assert first.code() is Code.OK
    until(lambda: len(ended) == 2)
    assert ended == [("ModelInfer", "queue_full"), ("ModelInfer", "ok")]


def test_nothing_is_said_of_what_failed_inside(client, engine, image) -> None:
    engine.fail_next(ValueError("a secret"))
    code, text, _ = failure(lambda: client.ask("ModelInfer", images_request(image)))
    assert (code, "secret" in text) == (Code.INTERNAL, False)
    engine.fail_next(DeviceError("a secret"))
    code, text, metadata = failure(lambda: client.ask("ModelInfer", images_request(image)))
    assert (code, metadata["x-error-code"]) == (Code.UNAVAILABLE, "engine_failed")
    assert (metadata["grpc-retry-pushback-ms"], "secret" in text) == ("5000", False)


def test_requests_in_flight_are_answered_before_the_end(running, engine, client, image) -> None:
    call = waiting(running, engine, client, image)
    health = client.watch()
    assert next(health).status == 1
    running.server.end()
    assert [answer.status for answer in health] == [2]
    until(lambda: client.begin("ServerLive").code() is Code.UNAVAILABLE)
    engine.go()
    assert call.code() is Code.OK


def test_the_drain_ends(toy, engine, image) -> None:
    scorer = Scorer(toy.manifest, toy.engine, engine, batch=4)
    with (
        serving(scorer, grpc_port=0, drain=0.1) as running,
        client_of(running.grpc_port) as client,
    ):
        call = waiting(running, engine, client, image)
        running.server.end()
        code, _, metadata = failure(call.result)
        engine.go_on()
    assert (code, metadata["x-error-code"]) == (Code.UNAVAILABLE, "stopping")


def test_health_follows_the_engine(toy, engine) -> None:
    engine.hold()
    scorer = Scorer(toy.manifest, toy.engine, engine, batch=4)
    with (
        serving(scorer, wait=False, grpc_port=0) as running,
        client_of(running.grpc_port) as client,
    ):
        engine.wait_entered()
        assert client.ask("ServerLive").live
        assert not client.ask("ServerReady").ready
        assert client.ask("Check").status == 2
        health = client.watch("inference.GRPCInferenceService")
        assert next(health).status == 2
        engine.go_on()
        assert next(health).status == 1
        assert client.ask("Check").status == 1
        health.cancel()


def test_the_health_of_other_services_is_unknown(client) -> None:
    request = MESSAGES["HealthCheckRequest"](service="other")
    assert failure(lambda: client.ask("Check", request))[0] is Code.NOT_FOUND
    health = client.watch("other")
    assert next(health).status == 3
    health.cancel()


def test_a_token_lets_in(toy, engine, image) -> None:
    scorer = Scorer(toy.manifest, toy.engine, engine, batch=4)
    request = images_request(image)
    with (
        serving(scorer, grpc_port=0, tokens=("a" * 16,)) as running,
        client_of(running.grpc_port) as client,
    ):
        for given in ((), (("authorization", "Bearer " + "b" * 16),)):
            for method in ("ModelInfer", "ModelReady", "ServerMetadata", "Nothing"):
                code, _, _ = failure(lambda m=method, g=given: client.ask(m, request, metadata=g))
                assert code is Code.UNAUTHENTICATED
        metadata = (("authorization", "Bearer " + "a" * 16),)
        assert client.begin("ModelInfer", request, metadata=metadata).code() is Code.OK
        for method in ("ServerLive", "ServerReady", "Check"):
            assert client.begin(method).code() is Code.OK


def test_a_request_id_is_returned_and_logged(client, caplog) -> None:
    with caplog.at_level("INFO", "drexperts.serve"):
        call = client.begin("ServerLive", metadata=(("x-request-id", "mine"),))
        assert dict(call.trailing_metadata())["x-request-id"] == "mine"
        until(lambda: any(record.message == "request" for record in caplog.records))
    fields = caplog.records[-1].fields
    assert (fields["request_id"], fields["status"], fields["outcome"]) == ("mine", "OK", "ok")
    assert (fields["path"], fields["client"]) == (path("ServerLive"), "127.0.0.1")
    call = client.begin("ServerLive", metadata=(("x-request-id", "a b"),))
    assert len(dict(call.trailing_metadata())["x-request-id"]) == 32


@pytest.mark.slow
def test_tls_is_spoken(toy, engine, tmp_path) -> None:
    cert, key = certificate(tmp_path)
    scorer = Scorer(toy.manifest, toy.engine, engine, batch=4)
    with serving(scorer, grpc_port=0, tls_cert=cert, tls_key=key) as running:
        trusted = grpc.ssl_channel_credentials(cert.read_bytes())
        with client_of(running.grpc_port, trusted, "localhost") as client:
            assert client.ask("ServerLive").live
        with client_of(running.grpc_port) as plain:
            assert plain.begin("ServerLive").code() is Code.UNAVAILABLE


def test_a_second_server_does_not_share_its_port(running) -> None:
    with pytest.raises(UserError, match="choose another port"):
        free_address(ServeSettings(grpc_port=running.grpc_port))


def test_what_is_not_in_the_tables_is_skipped(client) -> None:
    unknown = as_bytes(named("drexperts")) + b"\xfa\x01\x01x"
    assert client.ask("ModelReady", unknown).ready
