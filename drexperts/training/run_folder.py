"""What a training keeps on disk, so that it may be killed at any moment and still continue."""

import json
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

from torch import Tensor

from drexperts.model.weight_files import read_safetensors, write_safetensors
from drexperts.runtime.errors import UserError, WeightsError
from drexperts.runtime.files import written_whole
from drexperts.runtime.locks import lock
from drexperts.training.files import (
    BEST,
    LOG,
    RESULT,
    SETTINGS,
    START,
    STATE,
    flat,
    read_json,
    read_result,
)
from drexperts.training.result import TrainingResult

FORMAT = "drexperts-training-1"

_VALUES = {"done", "scaler", "epochs", "losses", "seconds", "log_bytes"}


class State(NamedTuple):
    """Tensors by name, and JSON-ready values."""

    tensors: dict[str, Tensor]
    values: dict[str, Any]


class RunFolder:
    """The folder of one run.

    It holds `run.json`, the settings; `start.safetensors`, the start of a model that starts from
    nothing, and `state.safetensors`, from which the run continues;
    `best.safetensors`, the model; `log.jsonl`, one line per step and per epoch; and `result.json`
    once the run is done. Every file but the log is written aside and renamed, so that a kill leaves
    the previous one.

    The folder is locked until `close`, the end of a `with`, or the end of this process. A pickled
    copy does not hold the lock and is for reading only.

    Args:
        settings: everything that decides the result, JSON-ready.

    Raises UserError if another process has the folder, if it holds a run of other settings that has
    a state, a model or a result, or if `path` is a file.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        self.best = path / BEST
        self.start = path / START
        self.settings: dict[str, Any] = json.loads(json.dumps(settings))
        self._unlock: weakref.finalize[[], RunFolder] | None
        self._unlock = weakref.finalize(self, _locked(path))
        try:
            self._settle()
        except BaseException:
            self.close()
            raise
        # A process that was killed while writing leaves our temporary files, or safetensors' own.
        for left in (*path.glob(".*.part-*"), *path.glob(".tmp??????")):
            if left.is_file() and not left.is_symlink():
                left.unlink(missing_ok=True)

    def _settle(self) -> None:
        """Write the settings, or compare them if the folder holds more than a log."""
        kept = any((self.path / name).exists() for name in (STATE, BEST, RESULT))
        if not kept:
            self._write_json(SETTINGS, self.settings)
            return
        there = read_json(self.path / SETTINGS)
        if there is None:
            raise UserError(
                f"{self.path} holds a run whose {SETTINGS} is missing: restore it, choose "
                "another folder with --out, or remove this one"
            )
        there, asked = _deciding(there), _deciding(self.settings)
        if there != asked:
            raise UserError(
                f"{self.path} holds another run ({difference(there, asked)}): choose "
                "another folder with --out, or remove this one"
            )

    def close(self) -> None:
        """Unlock the folder."""
        if self._unlock is not None:
            self._unlock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_unlock": None}

    def check_start(self) -> None:
        """Raise UserError if the run has a state but no longer the start that this belongs to."""
        if (self.path / STATE).exists() and not self.start.exists():
            raise UserError(
                f"{self.start}, from which the run began, is missing: restore it, or remove "
                f"{self.path} to start over"
            )

    def load_state(self) -> State | None:
        """The last saved state; None before the first. Raises WeightsError if it is damaged."""
        path = self.path / STATE
        if not path.exists():
            return None
        try:
            tensors, metadata = read_safetensors(path)
        except WeightsError as error:
            raise WeightsError(f"{error}: remove it to start over") from error
        values = _values(metadata)
        if metadata.get("format") != FORMAT or not values.keys() >= _VALUES:
            raise WeightsError(f"{path} is not the state of a training: remove it to start over")
        return State(tensors, values)

    def cut_log(self, state: State | None) -> None:
        """Remove the lines of steps after this state: those steps will be repeated."""
        size = 0 if state is None else state.values["log_bytes"]
        with open(self.path / LOG, "ab") as stream:
            stream.truncate(min(size, stream.tell()))

    def save_state(self, state: State) -> None:
        """Replace the previous state, which stays if this raises OSError."""
        size = {"log_bytes": (self.path / LOG).stat().st_size}
        metadata = {"format": FORMAT, "values": json.dumps(state.values | size)}
        write_safetensors(state.tensors, metadata, self.path / STATE)

    def log(self, **record: Any) -> None:
        """Append one line to the log."""
        with open(self.path / LOG, "a", encoding="utf-8") as stream:
            stream.write(json.dumps(record) + "\n")

    def result(self) -> TrainingResult | None:
        """The result, if the run is done. Raises UserError if it is damaged."""
        if (result := read_result(self.path)) is not None:
            self._remove_state()  # which a kill in `finish` leaves
        return result

    def finish(self, result: TrainingResult) -> None:
        """Write the result and remove the state, which is no longer needed."""
        self._write_json(RESULT, result.as_json())
        self._remove_state()

    def _remove_state(self) -> None:
        for path in (self.path / STATE, self.start):
            path.unlink(missing_ok=True)

    def _write_json(self, name: str, content: Mapping[str, Any]) -> None:
        text = json.dumps(content, indent=2, allow_nan=False) + "\n"
        with written_whole(self.path / name) as aside:
            aside.write_text(text, encoding="utf-8")


def _deciding(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Without `asked`: commands that look different may ask for the same run."""
    return {name: value for name, value in settings.items() if name != "asked"}


def _locked(path: Path) -> Callable[[], None]:
    """Make a folder and lock it; returns the function that unlocks it."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(f"{path} is a file or inside one: choose a folder with --out") from error
    return lock(path, inside=True)


def _values(metadata: Mapping[str, str]) -> dict[str, Any]:
    """The values of a state; empty if they are damaged."""
    try:
        values = json.loads(metadata.get("values", "{}"))
    except (ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def difference(there: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    """The first three settings that differ, by name."""
    old, new = dict(flat(there)), dict(flat(asked))
    names = sorted(n for n in old.keys() | new.keys() if old.get(n) != new.get(n))
    return "; ".join(f"{n}: {old.get(n)!s:.60}, asked {new.get(n)!s:.60}" for n in names[:3])
