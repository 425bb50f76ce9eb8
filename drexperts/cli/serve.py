"""`drx serve`: a bundle behind a URL."""

import argparse
import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from drexperts.cli.arguments import (
    DONE,
    Outcome,
    add_bundle,
    add_verb,
    byte_count,
    whole_number,
)

if TYPE_CHECKING:
    from drexperts.cli.arguments import Parser, Verbs
    from drexperts.ui.screen import Screen


def add(verbs: "Verbs") -> None:
    summary = "answer requests for scores over HTTP and gRPC"
    verb = add_verb(verbs, "serve", run, summary, extra="serve")
    add_bundle(verb)
    _add_address(verb)
    _add_engine(verb)
    _add_limits(verb)
    verb.add_argument(
        "--model-name",
        default="drexperts",
        metavar="NAME",
        help="of the model of the Open Inference Protocol (default: drexperts)",
    )
    _add_security(verb)
    verb.add_argument(
        "--no-page", dest="page", action="store_false", help="leave out the page for people at /"
    )
    verb.add_argument("--log-json", action="store_true", help="log as JSON, one line per event")


def _add_address(verb: "Parser") -> None:
    verb.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)"
    )
    verb.add_argument(
        "--port", type=int, default=8000, help="port, 0 for a free one (default: 8000)"
    )
    verb.add_argument(
        "--grpc-port",
        type=int,
        metavar="N",
        help="also answer over gRPC at this port, 0 for a free one (default: HTTP only)",
    )


def _add_engine(verb: "Parser") -> None:
    verb.add_argument("--device", default="auto", help="as for `drx score` (default: auto)")
    verb.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: all cores)")
    verb.add_argument(
        "--batch", type=int, metavar="N", help="most crops per call of the engine (default: 8)"
    )


def _add_limits(verb: "Parser") -> None:
    verb.add_argument(
        "--queue",
        type=int,
        default=512,
        metavar="CROPS",
        help="crops that may wait; more are answered with 503 (default: 512)",
    )
    verb.add_argument(
        "--max-delay",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="for a batch that is not full to wait for more crops (default: 0)",
    )
    verb.add_argument(
        "--max-pixels",
        type=whole_number,
        default=100_000_000,
        metavar="N",
        help="refuse larger images (default: 100000000)",
    )
    verb.add_argument(
        "--decoders",
        type=whole_number,
        default=2,
        metavar="N",
        help="processes that decode images (default: 2)",
    )
    verb.add_argument(
        "--timeout",
        type=float,
        default=30.0,
        metavar="SECONDS",
        help="until a request is given up with 504 (default: 30)",
    )
    verb.add_argument(
        "--max-body",
        type=byte_count,
        default=32 * 2**20,
        metavar="SIZE",
        help="largest body of a request (default: 32M)",
    )
    verb.add_argument(
        "--body-memory",
        type=byte_count,
        default=256 * 2**20,
        metavar="SIZE",
        help="memory for the bodies of all requests; more are answered with 503 (default: 256M)",
    )
    verb.add_argument(
        "--drain",
        type=float,
        default=20.0,
        metavar="SECONDS",
        help="for requests in flight to finish after SIGTERM (default: 20)",
    )


def _add_security(verb: "Parser") -> None:
    verb.add_argument(
        "--token-file",
        type=Path,
        metavar="FILE",
        help="answer only requests with a token of this file, one per line",
    )
    verb.add_argument(
        "--no-token",
        action="store_true",
        help="listen without tokens where other machines reach the server",
    )
    verb.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a name under which clients ask the server, * for any (default: addresses and "
        "localhost; any name with a token)",
    )
    verb.add_argument("--tls-cert", type=Path, metavar="FILE", help="certificate chain in PEM")
    verb.add_argument("--tls-key", type=Path, metavar="FILE", help="key of the certificate in PEM")


def run(arguments: argparse.Namespace, screen: "Screen") -> Outcome:
    from drexperts.runtime.errors import OutputError
    from drexperts.serve import ServeSettings, serve
    from drexperts.serve.guard import read_tokens

    names = (
        *(
            "host",
            "port",
            "grpc_port",
            "queue",
            "max_delay",
            "max_pixels",
            "decoders",
            "timeout",
            "max_body",
            "body_memory",
            "drain",
        ),
        *("no_token", "tls_cert", "tls_key", "page", "log_json", "model_name"),
    )
    settings = ServeSettings(
        **{name: getattr(arguments, name) for name in names},
        hosts=tuple(arguments.allow_host),
        tokens=read_tokens(arguments.token_file) if arguments.token_file else (),
    )

    def say(url: str) -> None:
        with contextlib.suppress(OutputError):  # it serves whoever reads this or not
            screen.note(f"serving {arguments.bundle} at {url}")

    serve(
        arguments.bundle,
        settings,
        device=arguments.device,
        batch=arguments.batch,
        threads=arguments.threads,
        on_start=say,
    )
    return Outcome(DONE, {"bundle": str(arguments.bundle)})
