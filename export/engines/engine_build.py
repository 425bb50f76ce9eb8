"""What every build of an engine has: the bundle, and how a new engine is proven."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from drexperts import runtime
from drexperts.export.proof.parity import Reference
from drexperts.export.proof.photographs import Images
from drexperts.export.proof.prove import pictures_for, prove_engine
from drexperts.model.checkpoint import Checkpoint
from drexperts.runtime.decoding import Source
from drexperts.runtime.errors import UserError
from drexperts.runtime.manifest import Engine, Manifest
from drexperts.runtime.progress import Progress
from drexperts.runtime.proof import EXPORT_LIMITS


@dataclass(frozen=True)
class EngineBuild:
    """What the steps of one build share. The manifest does not name the new engine yet."""

    bundle: Path
    manifest: Manifest
    checkpoint: Checkpoint | None
    images: Images
    progress: Progress

    @functools.cached_property
    def pictures(self) -> Sequence[Source]:
        """What the engine is proven on."""
        return pictures_for(self.manifest, self.images)

    @functools.cached_property
    def reference(self) -> Reference | None:
        """The eager model's outputs, which the engines of one build are compared with."""
        if self.checkpoint is None:
            return None
        spec = self.manifest.preprocessing
        return Reference(
            self.checkpoint.model, self.pictures, spec, self.progress, limits=EXPORT_LIMITS
        )

    def can_prove(self, engine: Engine) -> bool:
        """Whether both proofs of an engine can be measured here."""
        return self.checkpoint is not None and runtime.obstacle(engine) is None

    def proven(self, engine: Engine) -> Engine:
        """The engine with its proofs if this machine can run it, and as it is if that fails."""
        if runtime.obstacle(engine) is not None:
            return engine
        try:
            return prove_engine(
                self.bundle, self.manifest, engine, self.reference, self.pictures, self.progress
            )
        except UserError as failure:
            self.progress.note(f"{engine.file} was built and could not be proven: {failure}")
            return engine
