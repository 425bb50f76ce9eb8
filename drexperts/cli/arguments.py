"""What verbs of `drx` share: their parser, how they end, an argument."""

import argparse
import math
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from drexperts.runtime.manifest import ScoreScale
    from drexperts.ui.screen import Screen

    Parser = argparse.ArgumentParser
    Verbs = argparse._SubParsersAction[Parser]
    Run = Callable[[argparse.Namespace, Screen], "Outcome"]

DONE, GATE_FAILED, USER_MISTAKE, OUR_BUG, INTERRUPTED = 0, 1, 2, 70, 130


class Outcome(NamedTuple):
    """How a verb ended: the exit status, and the document that `--json` prints."""

    status: int
    document: dict[str, Any]


def add_verb(verbs: "Verbs", name: str, run: "Run", summary: str, extra: str = "cpu") -> "Parser":
    """One verb. extra: the pip extra that brings the libraries it needs."""
    parser = verbs.add_parser(name, help=summary, description=summary)
    parser.add_argument("--json", action="store_true", help="one JSON document as the last line")
    parser.set_defaults(run=run, extra=extra)
    return parser


def scale_of(text: str) -> "ScoreScale":
    """LOW:HIGH or LOW:HIGH:lower-is-better. Raises UserError for anything else."""
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
    """`--scale`."""
    parser.add_argument(
        "--scale", metavar="LOW:HIGH[:lower-is-better]", help="of the scores; --scale=-1:1"
    )
