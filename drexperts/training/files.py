"""The files of a run's folder, and what those say that a person reads. This needs no torch."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from drexperts.data.dataset import Dataset
from drexperts.runtime.errors import UserError
from drexperts.runtime.installing import install_command
from drexperts.runtime.progress import Progress
from drexperts.training.result import TrainingResult, Watch

SETTINGS, STATE, LOG, RESULT = "run.json", "state.safetensors", "log.jsonl", "result.json"
BEST, SPLIT, PREDICTIONS = "best.safetensors", "splits.json", "predictions.csv"
PAGE, START = "index.html", "start.safetensors"


def read_result(folder: Path) -> TrainingResult | None:
    """The result in the folder of a run that is done, else None. Raises UserError if damaged."""
    path = folder / RESULT
    document = read_json(path)
    try:
        return None if document is None else TrainingResult.from_json(document)
    except (KeyError, TypeError, ValueError, AttributeError) as cause:
        raise UserError(
            f"{path} is not the result of a training: remove it to continue the run"
        ) from cause


def finished(folder: Path, asked: str) -> TrainingResult | None:
    """The result in the folder of a run that is done and was asked for in the same words.

    asked: what `train` was given

    None leaves it to `train` to find out what the folder holds. Raises UserError if a file is
    damaged.
    """
    there = read_json(folder / SETTINGS)
    # A kill at the very end leaves the state, which `train` removes under the folder's lock.
    done = there is not None and there.get("asked") == asked and not (folder / STATE).exists()
    return read_result(folder) if done else None


def refresh_page(folder: Path, dataset: Dataset) -> str | None:
    """Write the page of a run, see `drexperts.training.page`; or why it was not written."""
    try:
        from drexperts.training.page import write_page

        write_page(folder, dataset)
    except ImportError as error:
        return (
            f"the page of this run needs {error.name}: {install_command('report')}, then run "
            "the same command again"
        )
    except (OSError, UserError, ValueError) as error:
        return f"the page of this run cannot be written: {error}"
    return None


def show_again(
    result: TrainingResult, folder: Path, dataset: Dataset, watch: Watch, progress: Progress
) -> None:
    """Show what a run that is done found, and write its page if that does not show it yet."""
    watch(result.so_far)
    if not _page_is_final(folder) and (missing := refresh_page(folder, dataset)):
        progress.note(missing)


def _page_is_final(folder: Path) -> bool:
    """Whether the page was written after the result; a kill between them leaves an earlier one."""
    page, result = folder / PAGE, folder / RESULT
    return page.exists() and page.stat().st_mtime_ns >= result.stat().st_mtime_ns


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object; None without the file. Raises UserError for anything else."""
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, dict):
            return content
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError):
        pass
    raise UserError(f"{path} is damaged: remove its folder, or choose another --out")


def flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The settings with those inside others, as `outer.inner`."""
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
