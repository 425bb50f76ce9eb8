"""What a training run keeps on disk, so that it can be killed at any moment and go on."""

import errno
import json
import os
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from torch import Tensor

from drexperts.model.weight_files import read_safetensors, write_safetensors
from drexperts.runtime.errors import UserError, WeightsError
from drexperts.runtime.files import written_whole

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None  # type: ignore[assignment]

FORMAT = "drexperts-training-1"

_SETTINGS, _STATE, _LOG, _RESULT = "run.json", "state.safetensors", "log.jsonl", "result.json"
BEST = "best.safetensors"
_LOCK = ".lock"

_VALUES = {"done", "scaler", "epochs", "best", "log_bytes"}


class State(NamedTuple):
    """Tensors by name, and JSON-ready values."""

    tensors: dict[str, Tensor]
    values: dict[str, Any]


class RunFolder:
    """`run.json`, the settings; `state.safetensors`, from which it goes on; `best.safetensors`, the
    model; `log.jsonl`, a line a step and an epoch; `result.json`, once it is done.

    Every file but the log is written aside and renamed, so that a kill leaves the one before. No
    other process can have the folder until `close`, the end of a `with` or of this process. A
    pickled copy does not hold it, and is for reading.

    Args:
        settings: all that decides the result, JSON-ready.

    Raises UserError where another process has the folder, where it holds a run of other settings
    that has come to something, and where it is a file.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        self.best = path / BEST
        self.settings: dict[str, Any] = json.loads(json.dumps(settings))
        self._unlock: weakref.finalize[[int], RunFolder] | None
        self._unlock = weakref.finalize(self, os.close, _locked(path))
        try:
            self._settle()
        except BaseException:
            self.close()
            raise
        # Of a process that was killed while writing: ours, and what safetensors writes into.
        for left in (*path.glob(".*.part-*"), *path.glob(".tmp??????")):
            if left.is_file() and not left.is_symlink():
                left.unlink(missing_ok=True)

    def _settle(self) -> None:
        """Write the settings, or compare them where they have come to something."""
        kept = any((self.path / name).exists() for name in (_STATE, BEST, _RESULT))
        if not kept:
            self._write_json(_SETTINGS, self.settings)
            return
        there = _read_json(self.path / _SETTINGS)
        if there is None:
            raise UserError(
                f"{self.path} holds a run of which {_SETTINGS} is missing: restore it, choose "
                "another folder with --out, or remove this one"
            )
        if there != self.settings:
            raise UserError(
                f"{self.path} holds another run ({difference(there, self.settings)}): choose "
                "another folder with --out, or remove this one"
            )

    def close(self) -> None:
        """Let another process have the folder."""
        if self._unlock is not None:
            self._unlock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_unlock": None}

    def load_state(self) -> State | None:
        """What was saved last; None at the start."""
        path = self.path / _STATE
        if not path.exists():
            return None
        try:
            tensors, metadata = read_safetensors(path)
        except WeightsError as error:
            raise WeightsError(f"{error}: remove it to start over") from error
        values = _values(metadata)
        if metadata.get("format") != FORMAT or not values.keys() >= _VALUES:
            raise WeightsError(f"{path} is no state of a training: remove it to start over")
        return State(tensors, values)

    def cut_log(self, state: State | None) -> None:
        """Without the lines of steps after this state, which will be made again."""
        size = 0 if state is None else state.values["log_bytes"]
        with open(self.path / _LOG, "ab") as stream:
            stream.truncate(min(size, stream.tell()))

    def save_state(self, state: State) -> None:
        """Replace what was saved before. Raises OSError, and then the one before is still there."""
        size = {"log_bytes": (self.path / _LOG).stat().st_size}
        metadata = {"format": FORMAT, "values": json.dumps(state.values | size)}
        write_safetensors(state.tensors, metadata, self.path / _STATE)

    def log(self, **record: Any) -> None:
        """One line of the log."""
        with open(self.path / _LOG, "a", encoding="utf-8") as stream:
            stream.write(json.dumps(record) + "\n")

    def result(self) -> dict[str, Any] | None:
        """The result of a run that is done, and which no state has to outlive."""
        result = _read_json(self.path / _RESULT)
        if result is not None:  # a kill in `finish` leaves the state
            (self.path / _STATE).unlink(missing_ok=True)
        return result

    def finish(self, result: Mapping[str, Any]) -> None:
        """Write the result; the state is not needed any more."""
        self._write_json(_RESULT, result)
        (self.path / _STATE).unlink(missing_ok=True)

    def _write_json(self, name: str, content: Mapping[str, Any]) -> None:
        text = json.dumps(content, indent=2, allow_nan=False) + "\n"
        with written_whole(self.path / name) as aside:
            aside.write_text(text, encoding="utf-8")


def _locked(path: Path) -> int:
    """A file that keeps other processes out of a folder, which is made, for as long as it is open.

    The lock is the process's own: workers that it forked, which may live a little longer than a
    killed process, do not hold it.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(f"{path} is a file, or below one: choose a folder with --out") from error
    lock = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if fcntl is not None:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            os.close(lock)
            raise UserError(
                f"another process is training in {path}: wait for its end, or choose another --out"
            ) from error
        # Some network file systems have no locks.
    return lock


def _values(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Those of a state, empty where they are damaged."""
    try:
        values = json.loads(metadata.get("values", "{}"))
    except ValueError:
        return {}
    return values if isinstance(values, dict) else {}


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, dict):
            return content
    except FileNotFoundError:
        return None
    except ValueError:
        pass
    raise UserError(f"{path} is damaged: remove its folder, or choose another --out")


def difference(there: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    """The first few settings that differ, by name."""
    old, new = dict(_flat(there)), dict(_flat(asked))
    names = sorted(n for n in old.keys() | new.keys() if old.get(n) != new.get(n))
    return "; ".join(f"{n}: {old.get(n)!s:.60}, asked {new.get(n)!s:.60}" for n in names[:3])


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
