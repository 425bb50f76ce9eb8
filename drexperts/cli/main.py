"""`drx`: one verb per stage.

A verb imports what it needs when it runs, so that help is instant and scoring needs no torch.
"""

import argparse
import io
import json
import sys
import traceback
from typing import TYPE_CHECKING, NoReturn

from drexperts import __version__
from drexperts.cli import (
    bench,
    build,
    convert_prior,
    demo,
    eval,
    explain,
    export,
    info,
    reproduce,
    score,
    synth,
    train,
    triton_repo,
    verify,
)
from drexperts.cli.arguments import INTERRUPTED, OUR_BUG, USER_MISTAKE, Outcome
from drexperts.ui.printable import printable

if TYPE_CHECKING:
    from drexperts.ui.screen import Screen

# In the order of the help.
VERBS = (
    demo,
    train,
    eval,
    reproduce,
    synth,
    explain,
    export,
    build,
    verify,
    score,
    bench,
    info,
    triton_repo,
    convert_prior,
)

# Libraries that only some verbs need. Those of _EXTRAS always come with the same extra; the others
# come with the extra of the verb.
_OPTIONAL = {"torch", "torchvision", "timm", "open_clip", "safetensors", "onnx", "onnxscript"}
_OPTIONAL |= {"google", "onnx_ir", "skimage", "pandas", "scipy", "openpyxl", "pyarrow"}
_REPORT = ("jinja2", "matplotlib", "psutil", "pydantic", "pynvml")
_EXTRAS = {"rich": "cli"} | dict.fromkeys(_REPORT, "report")


class _Parser(argparse.ArgumentParser):
    """A parser whose errors quote the command line, where a shell's pattern puts file names."""

    def error(self, message: str) -> NoReturn:
        super().error(printable(message))


def main(argv: list[str] | None = None) -> int:
    """Run one verb and return the exit status.

    The status is 0 when the work is done, 1 when it is done and a gate failed, 2 for a mistake of
    the user, 70 for a bug of ours, 130 when interrupted, and 143 when terminated.
    """
    arguments = _parsed(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # some file names cannot be encoded
            stream.reconfigure(errors="backslashreplace")
    outcome = _run(arguments)
    if arguments.json:
        print(json.dumps(outcome.document, allow_nan=False), flush=True)
    return outcome.status


def parser() -> argparse.ArgumentParser:
    """The parser of `drx` with all its verbs."""
    drx = _Parser(
        prog="drx",
        description="Blind image-quality assessment with DR.Experts: train, export, verify, score.",
    )
    drx.add_argument("--version", action="version", version=f"drx {__version__}")
    verbs = drx.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb in VERBS:
        verb.add(verbs)
    return drx


def _parsed(argv: list[str]) -> argparse.Namespace:
    try:
        return parser().parse_args(argv)
    except SystemExit as ended:
        if ended.code == USER_MISTAKE and "--json" in argv:
            print(json.dumps({"error": "the command line is wrong, see stderr"}), flush=True)
        raise


def _run(arguments: argparse.Namespace) -> Outcome:
    from drexperts.runtime.errors import StoppedError, UserError

    try:
        outcome: Outcome = arguments.run(arguments, _screen(arguments))
        return outcome
    except StoppedError as error:
        return _failed(error.status, str(error))
    except UserError as error:
        return _failed(USER_MISTAKE, str(error))
    except OSError as error:
        return _failed(USER_MISTAKE, f"{error}; check the path, its permissions and the free space")
    except KeyboardInterrupt:
        message = "interrupted"
        if arguments.verb == "score" and arguments.out is not None:
            message += f"; the rows in {arguments.out} are kept: run the same command to continue"
        return _failed(INTERRUPTED, message)
    except Exception as error:
        return _missing_library(arguments, error) or _bug(error)


def _screen(arguments: argparse.Namespace) -> "Screen":
    from drexperts.ui.screen import Screen

    return Screen(json_last=arguments.json)


def _missing_library(arguments: argparse.Namespace, error: Exception) -> Outcome | None:
    """The outcome that says what to install, if `error` is a missing optional library."""
    if not isinstance(error, ModuleNotFoundError) or error.name is None:
        return None
    library = error.name.partition(".")[0]
    extra = _EXTRAS.get(library) or (arguments.extra if library in _OPTIONAL else None)
    if extra is None:
        return None
    remedy = f'pip install "drexperts[{extra}]"'
    return _failed(USER_MISTAKE, f"`drx {arguments.verb}` needs {error.name}: {remedy}")


def _failed(status: int, message: str) -> Outcome:
    print("drx: " + printable(message, kept="\n"), file=sys.stderr)
    return Outcome(status, {"error": message})


def _bug(error: Exception) -> Outcome:
    from drexperts.runtime.errors import InternalError

    print(printable(traceback.format_exc(), kept="\n"), file=sys.stderr)
    ours = error if isinstance(error, InternalError) else InternalError(repr(error))
    return _failed(OUR_BUG, str(ours))


if __name__ == "__main__":
    sys.exit(main())
