"""Compiled models of OpenVINO, kept in the user's cache folder so that later starts are faster.

Whoever can write a compiled model decides what is computed, so its SHA-256 is noted among the
user's state, and only noted bytes are opened. Whatever is wrong with the cache, the model is
compiled as if there were none.
"""

import contextlib
import hashlib
import io
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from drexperts.runtime.files import written_whole
from drexperts.runtime.openvino_library import openvino_core
from drexperts.runtime.openvino_products import products, products_text
from drexperts.runtime.places import cache_folder, state_folder

_FOLDER = "openvino"
_NOTES = "openvino-compiled"
_MOST_BYTES = 2 * 2**30  # of all compiled models together, about eight of full size
_MOST_MODELS = 32
_DIGITS = 16  # of each hash in a name
_log = logging.getLogger(__name__)


class CompiledModels:
    """The place of one engine's compiled model.

    engine: SHA-256 of the engine's file
    cpu: the capability of the CPU, such as "x86_64-amx". A home that machines of several kinds
        share holds one compiled model for each
    depends_on: all else that a compiled model depends on, as JSON holds it: the version of
        OpenVINO, for example
    """

    def __init__(self, engine: str, cpu: str, **depends_on: Any) -> None:
        text = json.dumps([engine, cpu, depends_on], sort_keys=True)
        key = hashlib.sha256(text.encode()).hexdigest()
        self.name = f"{engine[:_DIGITS]}-{cpu}-{key[:_DIGITS]}.blob"

    @property
    def path(self) -> Path:
        """Where it is kept. Raises OSError if there is no such place."""
        return cache_folder() / _FOLDER / self.name

    def imported(
        self, device: str, settings: dict[str, Any], wanted: Mapping[str, int]
    ) -> Any | None:
        """The `openvino.CompiledModel` that was kept; None if there is none that can be used.

        wanted: how many products it must have of each type; empty for any
        """
        try:
            content = self._noted_bytes()
            if content is None:
                return None
            compiled = openvino_core().import_model(content, device, settings)
            _check_products(compiled, wanted)
            return compiled
        except (OSError, ValueError, RuntimeError) as cause:
            # OpenVINO refuses what another version or another kind of CPU compiled.
            _log.info("the compiled model %s is not used: %s", self.name, cause)
            return None

    def keep(self, compiled: Any) -> None:
        """Keep a compiled model, if that is possible, and drop older ones."""
        try:
            content = _exported(compiled)
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with written_whole(self.path) as aside:
                aside.write_bytes(content)
            self._note(hashlib.sha256(content).hexdigest())
            self._drop_others()
        except (OSError, ValueError, RuntimeError) as cause:
            _log.info("the compiled model %s is not kept: %s", self.name, cause)

    def _noted_bytes(self) -> bytes | None:
        noted = _notes().get(self.name)
        if noted is None or not self.path.is_file() or self.path.stat().st_size > _MOST_BYTES:
            return None
        content = self.path.read_bytes()
        return content if hashlib.sha256(content).hexdigest() == noted else None

    def _note(self, sha256: str) -> None:
        """Record the hash, and forget those of models that are gone."""
        kept = {name: old for name, old in _notes().items() if (self.path.parent / name).exists()}
        lines = [f"{name} {noted}\n" for name, noted in (kept | {self.name: sha256}).items()]
        file = state_folder() / _NOTES
        file.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(file) as aside:
            aside.write_text("".join(lines), encoding="ascii")

    def _drop_others(self) -> None:
        """Remove what this engine was compiled to before on such a CPU, and the oldest beyond
        the limit.
        """
        total = 0
        found = [(path.stat(), path) for path in self.path.parent.iterdir()]
        found.sort(key=lambda each: each[0].st_mtime, reverse=True)
        for number, (state, path) in enumerate(found, 1):
            total += state.st_size
            replaced = _of(path.name) == _of(self.name) and path != self.path
            if replaced or total > _MOST_BYTES or number > _MOST_MODELS:
                with contextlib.suppress(OSError):  # another process removed it
                    path.unlink()


def _of(name: str) -> str:
    """The engine and the CPU in a name."""
    return name.rpartition("-")[0]


def _check_products(compiled: Any, wanted: Mapping[str, int]) -> None:
    if wanted and (found := products(compiled)) != wanted:
        raise ValueError(f"its products are {products_text(found)}")


def _exported(compiled: Any) -> bytes:
    stream = io.BytesIO()
    compiled.export_model(stream)
    return stream.getvalue()


def _notes() -> dict[str, str]:
    """The noted hash of each compiled model by its name."""
    try:
        lines = (state_folder() / _NOTES).read_text(encoding="ascii").splitlines()
        return dict(line.split(" ") for line in lines)
    except (OSError, ValueError):
        return {}
