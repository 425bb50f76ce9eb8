"""Score uploads in a web service: a WSGI application, with the standard library's server.

    python examples/score_in_web_handler.py BUNDLE [--port 8000]
    curl --data-binary @photo.jpg localhost:8000/score

An upload is hostile input: its size is bounded, it is decoded in another process with limits of
memory and time, and what is not an image is answered with 422. See SECURITY.md, too.
"""

import argparse
import json
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIServer, make_server

from drexperts import runtime

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

MOST_BYTES = 20 * 2**20


def application(scorer: runtime.Scorer) -> "WSGIApplication":
    """POST /score with the bytes of an image answers its score as JSON; GET /health answers 200."""

    def handle(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        match environ["REQUEST_METHOD"], environ.get("PATH_INFO", ""):
            case "GET", "/health":
                return answer(start_response, "200 OK", {"engine": scorer.session.description})
            case "POST", "/score":
                return score_upload(scorer, environ, start_response)
        return answer(start_response, "404 Not Found", {"error": "POST an image to /score"})

    return handle


def score_upload(
    scorer: runtime.Scorer, environ: "WSGIEnvironment", start_response: "StartResponse"
) -> list[bytes]:
    """The score of the request's body, or why there is none."""
    length = environ.get("CONTENT_LENGTH") or ""
    if not length.isdecimal():
        return answer(start_response, "411 Length Required", {"error": "say Content-Length"})
    if int(length) > MOST_BYTES:
        reason = {"error": f"an image may have {MOST_BYTES} bytes"}
        return answer(start_response, "413 Content Too Large", reason)
    content = environ["wsgi.input"].read(int(length))
    try:
        score = scorer.score(content)  # a Scorer is safe to share between threads
    except runtime.ImageError as error:
        return answer(start_response, "422 Unprocessable Content", {"error": str(error)})
    return answer(start_response, "200 OK", score.as_row())


def answer(start: Callable[..., Any], status: str, document: dict[str, Any]) -> list[bytes]:
    """A JSON document as a response."""
    body = json.dumps(document, allow_nan=False).encode()
    start(status, [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]


class Server(ThreadingMixIn, WSGIServer):
    """A thread per connection, so that one slow upload does not hold up the others."""

    daemon_threads = True


def main(given: list[str] | None = None) -> None:
    """Serve on this machine only, until Ctrl-C."""
    parser = argparse.ArgumentParser(description="Score uploads in a web service.")
    parser.add_argument("bundle")
    parser.add_argument("--port", type=int, default=8000, help="(default: 8000)")
    arguments = parser.parse_args(given)
    with runtime.load(arguments.bundle, isolated=True) as scorer:
        handler = application(scorer)
        with make_server("127.0.0.1", arguments.port, handler, server_class=Server) as server:
            print(f"{scorer.session.description} on http://127.0.0.1:{arguments.port}/score")
            server.serve_forever()


if __name__ == "__main__":
    main()
