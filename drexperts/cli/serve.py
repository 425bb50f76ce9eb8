"""`drx serve`: a bundle behind a URL."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from drexperts.cli.arguments import DONE, Outcome, add_verb, byte_count

if TYPE_CHECKING:
    from drexperts.cli.arguments import Verbs
    from drexperts.ui.screen import Screen


def add(verbs: "Verbs") -> None:
    verb = add_verb(verbs, "serve", run, "answer requests for scores over HTTP", extra="serve")
    verb.add_argument("bundle", type=Path, help="the bundle's folder")
    verb.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)"
    )
    verb.add_argument(
        "--port", type=int, default=8000, help="port, 0 for a free one (default: 8000)"
    )
    verb.add_argument("--device", default="auto", help="as for `drx score` (default: auto)")
    verb.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: all cores)")
    verb.add_argument(
        "--batch", type=int, metavar="N", help="most crops per call of the engine (default: 8)"
    )
    verb.add_argument(
        "--queue",
        type=int,
        default=512,
        metavar="CROPS",
        help="crops that may wait; more are answered with 503 (default: 512)",
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
        "--drain",
        type=float,
        default=20.0,
        metavar="SECONDS",
        help="for requests in flight to finish after SIGTERM (default: 20)",
    )


def run(arguments: argparse.Namespace, screen: "Screen") -> Outcome:
    from drexperts.serve import ServeSettings, serve

    names = ("host", "port", "queue", "timeout", "max_body", "drain")
    settings = ServeSettings(**{name: getattr(arguments, name) for name in names})
    serve(
        arguments.bundle,
        settings,
        device=arguments.device,
        batch=arguments.batch,
        threads=arguments.threads,
        on_start=lambda url: screen.note(f"serving {arguments.bundle} at {url}"),
    )
    return Outcome(DONE, {"bundle": str(arguments.bundle)})
