"""What a training run keeps on disk, so that it can be killed at any moment and go on."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from drexperts.files import written_whole
from drexperts.runtime.errors import UserError, WeightsError
from drexperts.weights import read_safetensors, write_safetensors

FORMAT = "drexperts-training-1"

_SETTINGS, _STATE, _LOG, _RESULT = "run.json", "state.safetensors", "log.jsonl", "result.json"
BEST = "best.safetensors"


class State(NamedTuple):
    """Tensors by name, and JSON-ready values."""

    tensors: dict[str, Tensor]
    values: dict[str, Any]


class RunFolder:
    """`run.json`, the settings; `state.safetensors`, from which it goes on; `best.safetensors`, the
    model; `log.jsonl`, a line a step and an epoch; `result.json`, once it is done.

    Every file but the log is written aside and renamed, so that a kill leaves the one before.

    Args:
        settings: all that decides the result, JSON-ready. Raises UserError where the folder holds
            a run of other ones.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        self.best = path / BEST
        path.mkdir(parents=True, exist_ok=True)
        for left in path.glob(".*.part-*"):  # of a process that was killed while writing
            left.unlink()
        self.settings: dict[str, Any] = json.loads(json.dumps(settings))
        there = _read_json(path / _SETTINGS)
        if there is None:
            self._write_json(_SETTINGS, self.settings)
        elif there != self.settings:
            raise UserError(
                f"{path} holds another run ({_difference(there, self.settings)}): choose another "
                "folder with --out, or remove this one"
            )

    def load_state(self) -> State | None:
        """What was saved last; None at the start."""
        path = self.path / _STATE
        if not path.exists():
            return None
        try:
            tensors, metadata = read_safetensors(path)
        except WeightsError as error:
            raise WeightsError(f"{error}: remove it to start over") from error
        if metadata.get("format") != FORMAT:
            raise WeightsError(f"{path} is no state of a training: remove it to start over")
        return State(tensors, json.loads(metadata["values"]))

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
        """The result of a run that is done."""
        return _read_json(self.path / _RESULT)

    def finish(self, result: Mapping[str, Any]) -> None:
        """Write the result; the state is not needed any more."""
        self._write_json(_RESULT, result)
        (self.path / _STATE).unlink(missing_ok=True)

    def _write_json(self, name: str, content: Mapping[str, Any]) -> None:
        text = json.dumps(content, indent=2, allow_nan=False) + "\n"
        with written_whole(self.path / name) as aside:
            aside.write_text(text, encoding="utf-8")


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


def _difference(there: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
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
