"""What the verbs that make or prove a bundle have in common: `--images`, the end, the document."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drexperts.cli.arguments import DONE, GATE_FAILED, Outcome

if TYPE_CHECKING:
    from drexperts.cli.arguments import Parser
    from drexperts.export.speed import CropSpeed
    from drexperts.runtime import Engine, Manifest
    from drexperts.ui.screen import Screen


def add_images(verb: "Parser") -> None:
    verb.add_argument(
        "--images",
        type=Path,
        metavar="DIR",
        help="folder of photographs to verify on, of which an export keeps some for calibration "
        "and search (default: those in scikit-image)",
    )


def proof_outcome(bundle: Path, manifest: "Manifest", screen: "Screen") -> Outcome:
    """Print the proofs of all engines."""
    from drexperts.runtime import obstacle
    from drexperts.ui.tables import proof_table

    for engine in manifest.engines:
        screen.tables.print(proof_table(engine))
        if reason := obstacle(engine):
            screen.note(f"{engine.file} ({engine.backend}) does not run here: {reason}")
    document = bundle_document(bundle, manifest)
    return Outcome(DONE if document["proven"] else GATE_FAILED, document)


def new_engine_outcome(
    bundle: Path, manifest: "Manifest", engine: "Engine", screen: "Screen"
) -> Outcome:
    """Print what became of an engine that was just made, and what failed if its proof did."""
    from drexperts.ui.bundles import bundle_bytes, facts, next_step, precision_text, proof_text
    from drexperts.ui.bundles import size_text as in_mib
    from drexperts.ui.fitting import Name
    from drexperts.ui.tables import proof_table

    speed, size = _speed(bundle, manifest, engine, screen), bundle_bytes(bundle, manifest)
    following = next_step(bundle, engine)
    rows = [
        ("engine", f"{engine.file}, {engine.backend}"),
        ("precision", precision_text(engine)),
        ("proof", proof_text(engine)),
        ("size", f"{in_mib(size)} on disk"),
        ("speed", "not measured here" if speed is None else str(speed)),
        ("next", Name(following)),
    ]
    if engine.refuted:
        screen.tables.print(proof_table(engine, only_failed=True))
    screen.tables.print(facts(str(bundle), rows))
    document = bundle_document(bundle, manifest) | {
        "engine": engine.file,
        "bytes": size,
        "speed": None if speed is None else dataclasses.asdict(speed),
        "next": following,
    }
    return Outcome(DONE if document["proven"] else GATE_FAILED, document)


def _speed(
    bundle: Path, manifest: "Manifest", engine: "Engine", screen: "Screen"
) -> "CropSpeed | None":
    """How fast the engine is here; None, after a note, if this machine cannot run it."""
    from drexperts.export.speed import crop_speed
    from drexperts.runtime.errors import UserError

    try:
        return crop_speed(bundle, manifest, engine)
    except UserError as reason:
        screen.note(f"the speed is not measured: {reason}")
        return None


def bundle_document(bundle: Path | str, manifest: "Manifest") -> dict[str, Any]:
    """The JSON document. A bundle is proven if one engine is and none failed its proof.

    objections: why each engine counts as unproven, null if it is proven
    """
    engines = manifest.engines
    refuted = any(engine.refuted for engine in engines)
    proven = any(engine.proven for engine in engines) and not refuted
    return {
        "bundle": str(bundle),
        "proven": proven,
        "objections": [engine.objection for engine in engines],
        "manifest": dataclasses.asdict(manifest),
    }
