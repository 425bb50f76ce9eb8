"""What the verbs of `drx` share: how they are declared, how they end, and common arguments."""

import argparse
import math
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from drexperts.runtime.decoding.limits import DecodingLimits
    from drexperts.runtime.manifest import ScoreScale
    from drexperts.ui.screen import Screen

    Parser = argparse.ArgumentParser
    Verbs = argparse._SubParsersAction[Parser]
    Run = Callable[[argparse.Namespace, Screen], "Outcome"]


DONE, GATE_FAILED, USER_MISTAKE, OUR_BUG, INTERRUPTED, CLOSED_PIPE = 0, 1, 2, 70, 130, 141


class Outcome(NamedTuple):
    """The result of a verb: the exit status, and the document that `--json` prints."""

    status: int
    document: dict[str, Any]


def add_verb(verbs: "Verbs", name: str, run: "Run", summary: str, extra: str = "cpu") -> "Parser":
    """Declare a verb and return its parser.

    extra: the pip extra that brings the libraries it needs
    """
    parser = verbs.add_parser(name, help=summary, description=summary)
    parser.add_argument(
        "--json", action="store_true", help="print one JSON document as the last line of stdout"
    )
    parser.set_defaults(run=run, extra=extra)
    return parser


def scale_of(text: str) -> "ScoreScale":
    """The scale in LOW:HIGH or LOW:HIGH:lower-is-better. Raises UserError for anything else."""
    from drexperts.runtime.errors import UserError
    from drexperts.runtime.manifest import ScoreScale

    low, _, rest = text.partition(":")
    high, _, direction = rest.partition(":")
    try:
        ends = float(low), float(high)
    except ValueError:
        ends = math.nan, math.nan
    if direction not in ("", "lower-is-better") or not all(map(math.isfinite, ends)):
        raise UserError(f"--scale takes LOW:HIGH or LOW:HIGH:lower-is-better, not {text!r}")
    return ScoreScale(*ends, higher_is_better=not direction)


def add_scale(parser: "Parser") -> None:
    """Declare `--scale`, which `scale_of` reads."""
    parser.add_argument(
        "--scale",
        metavar="LOW:HIGH[:lower-is-better]",
        help="scale of the scores, such as --scale=-1:1 (default: the checkpoint's own)",
    )


def add_crops_per_side(parser: "Parser") -> None:
    """Declare `--crops-per-side`."""
    parser.add_argument(
        "--crops-per-side",
        type=int,
        metavar="N",
        help="most crops along each axis of an image, 1 to 64 (default: the model's own)",
    )


def whole_number(text: str) -> int:
    """An argument that is a whole number from 0 to 2**63 - 1."""
    if not text.isdecimal() or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"give a whole number of at least 0, not {text!r}")
    return int(text)


def check_out(path: Path, option: str = "--out") -> None:
    """Raise UserError before long work whose result cannot be written to `path`."""
    from drexperts.runtime.errors import UserError

    if path.is_dir():
        raise UserError(f"{option} {path} is a folder: name a file")
    if not path.parent.is_dir():
        raise UserError(f"{option} {path}: there is no folder {path.parent}")
    try:
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise UserError(f"{option} {path} cannot be written: {error.strerror or error}") from error


def add_bundle(verb: "Parser") -> None:
    """Declare the bundle that a verb reads."""
    verb.add_argument("bundle", help="the bundle's folder, or its URL such as s3://bucket/bundle")


def add_engine(verb: "Parser") -> None:
    """Declare `--engine`, which chooses among the engines of bundles."""
    verb.add_argument(
        "--engine",
        metavar="NAME",
        help="use an engine of this backend only, such as openvino or onnx, or this file of the "
        "bundle (default: the best one that is proven and runs here)",
    )


def add_trust(verb: "Parser") -> None:
    """Declare `--trust`."""
    verb.add_argument(
        "--trust",
        action="store_true",
        help="also open TensorRT engines that were not built here: they can run their maker's code",
    )


def add_digest(verb: "Parser") -> None:
    """Declare `--digest`."""
    verb.add_argument(
        "--digest",
        metavar="sha256:HEX",
        help="refuse any bundle but the one of which `drx info` prints this digest (default: none)",
    )


def seconds(text: str) -> float:
    """An argument such as 1s, 0.5s or 500ms, in seconds."""
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)(ms|s)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"give a time such as 1s, 0.5s or 500ms, not {text!r}")
    return float(match[1]) / (1000 if match[2] == "ms" else 1)


def byte_count(text: str) -> int:
    """An argument such as 512M or 4G, in bytes."""
    match = re.fullmatch(r"(\d+)([KMGT]?)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"give a size such as 512M or 4G, not {text!r}")
    return int(match[1]) * 1024 ** " KMGT".index(match[2] or " ")


def add_decoding(verb: "Parser") -> None:
    """Declare what decoding may take, which `limits_of` reads, and where it happens."""
    verb.add_argument(
        "--max-pixels",
        type=whole_number,
        metavar="N",
        help="refuse larger images (default: 100000000)",
    )
    verb.add_argument(
        "--decode-memory",
        type=byte_count,
        metavar="SIZE",
        help="memory that decoders hold together, such as 512M; images wait for each other, and "
        "one that needs more is refused (default: 1G)",
    )
    verb.add_argument(
        "--decode-seconds",
        type=whole_number,
        metavar="N",
        help="processor time for decoding one image (default: 30)",
    )
    verb.add_argument(
        "--decode-in-process",
        action="store_true",
        help="decode without processes of their own, so that no limit of time holds and a crash of "
        "a decoder ends the run",
    )


def limits_of(arguments: argparse.Namespace) -> "DecodingLimits":
    """What decoding may take. Raises ConfigError for a limit of 0."""
    from drexperts.runtime.decoding.limits import DecodingLimits

    given = {
        "max_pixels": arguments.max_pixels,
        "memory": arguments.decode_memory,
        "seconds": arguments.decode_seconds,
    }
    return DecodingLimits(**{name: value for name, value in given.items() if value is not None})
