"""Several images in one request, their maps, and what is wrong with forms."""

import base64

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient
from support.held_engine import HeldEngine

from drexperts import runtime
from drexperts.runtime import Batcher, Scorer
from drexperts.serve.http.app import application
from drexperts.serve.service import Service
from drexperts.serve.settings import ServeSettings


@pytest.fixture(scope="module")
def grey(encode):
    def make(level):
        return encode(Image.fromarray(np.full((32, 32), level, np.uint8)), "PNG")

    return make


@pytest.fixture(scope="module")
def client(toy_bundle):
    toy = runtime.load(toy_bundle, threads=1)
    scorer = Scorer(toy.manifest, toy.engine, HeldEngine(free=True), batch=4)
    with Batcher(scorer, max_pending_crops=64) as batcher:
        settings = ServeSettings(queue=64, max_images=40, body_memory=10**6, max_body=10**6)
        yield TestClient(application(Service(batcher, settings)), "http://localhost")


def form(*images):
    return [("image", image) for image in images]


def test_images_are_rows_in_their_order(client, grey) -> None:
    files = form(*((f"{level}.png", grey(level)) for level in range(40)))
    answer = client.post("/v1/score", files=files)
    assert answer.status_code == 200
    rows = answer.json()["images"]
    assert [row["source"] for row in rows] == [f"{level}.png" for level in range(40)]
    assert [round(row["value"]) for row in rows] == list(range(40))


def test_an_image_that_cannot_be_read_is_a_row(client, grey) -> None:
    broken = ("<b>.png", b"text")
    answer = client.post("/v1/score", files=form(broken, ("good.png", grey(7))))
    assert answer.status_code == 200
    bad, good = answer.json()["images"]
    assert (bad["source"], good["error"]) == ("<b>.png", None)
    assert bad["error"]
    assert client.post("/v1/score", files=form(broken, broken)).status_code == 422


@pytest.mark.parametrize(("charset", "name"), [("utf-7", "+2AA-"), ("unicode_escape", "\\udc80x")])
def test_a_name_that_is_no_text_can_be_sent(client, grey, charset, name) -> None:
    head = f'--a\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n\r\n'
    body = head.encode() + grey(7) + b"\r\n--a--\r\n"
    kind = f"multipart/form-data; boundary=a; charset={charset}"
    answer = client.post("/v1/score", content=body, headers={"Content-Type": kind})
    assert answer.status_code == 200
    assert answer.json()["images"][0]["source"]


def test_maps_come_as_numbers(client, grey) -> None:
    row = client.post("/v1/score?maps=true", content=grey(7)).json()
    maps = row["maps"]
    values = np.frombuffer(base64.b64decode(maps["data"]), "<f4").reshape(maps["shape"])
    assert values.shape == (len(row["raw"]), 10, 4, 4)
    assert len(maps["boxes"]) == len(row["raw"])
    (of_form,) = client.post("/v1/score?maps=true", files=form(("a", grey(7)))).json()["images"]
    assert of_form["maps"] == maps
    assert "maps" not in client.post("/v1/score", content=grey(7)).json()


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("multipart/form-data", b"x"),
        ("multipart/form-data; boundary=a", b"x"),
        ("multipart/form-data; boundary=a", b""),
        ("multipart/form-data; boundary=a", b"--a--\r\n"),
        ("multipart/form-data; boundary=a", b"--a\r\n\r\nx\r\n--a--\r\n"),
        (
            "multipart/form-data; boundary=a",
            b'--a\r\nContent-Disposition: form-data; name="text"\r\n\r\nx\r\n--a--\r\n',
        ),
        ("multipart/form-data; boundary=" + "a" * 300, b"x"),
    ],
)
def test_what_is_no_form_is_the_clients_mistake(client, kind, body) -> None:
    answer = client.post("/v1/score", content=body, headers={"Content-Type": kind})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] in ("bad_form", "empty")


def test_forms_are_limited(client, grey) -> None:
    many = form(*(("a", b"x") for _ in range(41)))
    assert client.post("/v1/score", files=many).status_code == 400
    large = form(("a", b"x" * 10**6))
    assert client.post("/v1/score", files=large).status_code == 413


def test_nothing_stays_in_memory(client, grey) -> None:
    for _ in range(40):  # together more than the memory of bodies
        assert client.post("/v1/score", files=form(("a", b"x" * 100_000))).status_code == 422
