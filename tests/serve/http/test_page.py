"""The page's files, and who gets them under which policy."""

import re
from importlib.resources import files

import pytest
from starlette.testclient import TestClient

from drexperts import runtime
from drexperts.runtime import Batcher
from drexperts.serve.http.app import application
from drexperts.serve.service import Service
from drexperts.serve.settings import ServeSettings

FILES = {
    file.name: file.read_text("utf-8")
    for file in (files("drexperts.serve.http") / "page_files").iterdir()
}
PATHS = ["/", *(f"/{name}" for name in FILES if name != "index.html")]


@pytest.fixture
def client(toy_bundle):
    """client(**settings): asks a server of the toy bundle."""
    with runtime.load(toy_bundle, threads=1) as scorer, Batcher(scorer) as batcher:

        def make(**settings) -> TestClient:
            service = Service(batcher, ServeSettings(**settings))
            return TestClient(application(service), "http://localhost")

        yield make


@pytest.mark.parametrize("path", PATHS)
def test_every_file_needs_no_token_and_has_the_policy(client, path) -> None:
    answer = client(tokens=("a" * 16,)).get(path)
    assert answer.status_code == 200
    policy = dict(
        part.split(" ", 1) for part in answer.headers["Content-Security-Policy"].split("; ")
    )
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Referrer-Policy"] == "no-referrer"
    assert "Access-Control-Allow-Origin" not in answer.headers


def test_a_score_needs_a_token_all_the_same(client) -> None:
    asked = client(tokens=("a" * 16,))
    assert asked.post("/v1/score", content=b"x").status_code == 401
    assert asked.get("/index.html").status_code == 401


def test_the_page_is_told_what_the_server_takes(client) -> None:
    text = client(max_body=12_345).get("/").text
    assert 'data-maps="true" data-token="false" data-max-body="12345"' in text
    assert 'data-token="true"' in client(tokens=("a" * 16,)).get("/").text


def test_the_page_is_only_for_its_hosts(client) -> None:
    asked = client(hosts=("iqa.example",))
    assert asked.get("/", headers={"Host": "iqa.example"}).status_code == 200
    assert asked.get("/", headers={"Host": "evil.example"}).status_code == 403


@pytest.mark.parametrize("path", PATHS)
def test_a_server_without_a_page(client, path) -> None:
    assert client(page=False).get(path).status_code == 404


@pytest.mark.parametrize("name", FILES)
def test_no_file_has_what_the_policy_forbids_or_names_another_host(name) -> None:
    text = FILES[name].replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", text)
    assert not re.search(r"localStorage|sessionStorage|[:\"'(`]//", text)
    if name.endswith((".html", ".svg")):
        assert not re.search(r"\sstyle=|\son\w+=|<style|<script(?! type=\"module\" src=)", text)
