"""`drx triton-repo`: a bundle as a model repository of Triton Inference Server."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from drexperts.cli.arguments import DONE, Outcome, add_digest, add_trust, add_verb

if TYPE_CHECKING:
    from drexperts.cli.arguments import Verbs
    from drexperts.ui.screen import Screen


def add(verbs: "Verbs") -> None:
    summary = "write a bundle as a model repository of Triton Inference Server"
    verb = add_verb(verbs, "triton-repo", run, summary)
    verb.add_argument("bundle", type=Path, help="the bundle's folder")
    verb.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder to write the repository to"
    )
    verb.add_argument(
        "--name", default="drexperts", help="prefix of the models' names (default: drexperts)"
    )
    verb.add_argument(
        "--instances",
        type=int,
        default=1,
        metavar="N",
        help="instances of each model on each device (default: 1)",
    )
    verb.add_argument(
        "--max-queue-delay",
        type=int,
        default=500,
        metavar="MICROSECONDS",
        help="how long a request waits for others to share its batch (default: 500)",
    )
    verb.add_argument(
        "--allow-unverified",
        action="store_true",
        help="also include engines that have not passed their proof",
    )
    add_trust(verb)
    add_digest(verb)


def run(arguments: argparse.Namespace, screen: "Screen") -> Outcome:
    from drexperts.export import write_triton_repository

    files = write_triton_repository(
        arguments.bundle,
        arguments.out,
        name=arguments.name,
        instances=arguments.instances,
        max_queue_delay=arguments.max_queue_delay,
        allow_unverified=arguments.allow_unverified,
        trust=arguments.trust,
        digest=arguments.digest,
    )
    screen.tables.print(f"wrote {arguments.out}; its README.md says which engines it serves")
    return Outcome(DONE, {"out": str(arguments.out), "files": [str(file) for file in files]})
