"""From a command line to an exit status.

A verb imports what it needs when it runs, so that help is instant and scoring needs no torch.
"""

import argparse
import contextlib
import json
import os
import traceback
from typing import TYPE_CHECKING, Any, NoReturn

from drexperts import __version__
from drexperts.cli.arguments import CLOSED_PIPE, INTERRUPTED, OUR_BUG, USER_MISTAKE, Outcome
from drexperts.cli.streams import flush_streams, open_streams, say
from drexperts.cli.verbs import VERBS
from drexperts.runtime.cpus import available_cpus, cpu_quotas
from drexperts.runtime.errors import InternalError, OutputError, StoppedError, UserError
from drexperts.runtime.installing import install_command
from drexperts.runtime.quoting import printable
from drexperts.runtime.wording import speaking_drx

if TYPE_CHECKING:
    from drexperts.ui.screen import Screen

# Libraries that only some verbs need. Those of _EXTRAS always come with the same extra; the others
# come with the extra of the verb.
_OPTIONAL = {"torch", "torchvision", "timm", "open_clip", "safetensors", "onnx", "onnxscript"}
_OPTIONAL |= {"google", "onnx_ir", "skimage", "pandas", "scipy", "openpyxl", "pyarrow"}
_REPORT = ("jinja2", "matplotlib", "psutil", "pydantic", "pynvml")
_SERVE = ("starlette", "uvicorn")
_EXTRAS = {"rich": "cli"} | dict.fromkeys(_REPORT, "report") | dict.fromkeys(_SERVE, "serve")


def exit_status(argv: list[str]) -> int:
    """Run one verb; the statuses are those of `drexperts.cli.main`.

    Raises SystemExit after the help, the version and wrong usage, as argparse does.
    """
    open_streams()
    _keep_to_quota()
    try:
        try:
            return _status(argv)
        finally:
            flush_streams()
    except OutputError as error:
        return _not_written(error)


def _keep_to_quota() -> None:
    """Limit the threads of PyTorch, which knows this process's affinity but not its quota."""
    if any(cpu_quotas()):
        os.environ.setdefault("OMP_NUM_THREADS", str(available_cpus()))


def _status(argv: list[str]) -> int:
    arguments = _parsed(argv)
    outcome = _run(arguments)
    if arguments.json:
        _print_document(outcome.document)
    return outcome.status


def _print_document(document: dict[str, Any]) -> None:
    try:
        print(json.dumps(document, allow_nan=False), flush=True)
    except OSError as cause:
        raise OutputError(cause) from cause


def _not_written(error: OutputError) -> int:
    with contextlib.suppress(OutputError):  # what is left is dropped
        flush_streams()
    if error.closed:  # as in `drx info BUNDLE | head -1`: nobody asks why
        return CLOSED_PIPE
    return _failed(USER_MISTAKE, str(error)).status


class _Parser(argparse.ArgumentParser):
    """A parser that says so when its help cannot be written.

    Its errors quote the command line, where a shell's pattern puts file names.
    """

    def error(self, message: str) -> NoReturn:
        super().error(printable(message))

    def _print_message(self, message: str, file: Any = None) -> None:
        try:
            print(message, end="", file=file, flush=True)
        except OSError as cause:
            raise OutputError(cause) from cause


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
            _print_document({"error": "the command line is wrong, see stderr"})
        raise


def _run(arguments: argparse.Namespace) -> Outcome:
    try:
        with speaking_drx():
            outcome: Outcome = arguments.run(arguments, _screen(arguments))
        return outcome
    except OutputError:
        raise
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
    message = f"`drx {arguments.verb}` needs {error.name}: {install_command(extra)}"
    return _failed(USER_MISTAKE, message)


def _failed(status: int, message: str) -> Outcome:
    say("drx: " + printable(message, kept="\n"))
    return Outcome(status, {"error": message})


def _bug(error: Exception) -> Outcome:
    say(printable(traceback.format_exc(), kept="\n"))
    ours = error if isinstance(error, InternalError) else InternalError(repr(error))
    return _failed(OUR_BUG, str(ours))
