"""What the verbs that prove a bundle have in common: `--images`, the tables, the document."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drexperts.cli.arguments import DONE, GATE_FAILED, Outcome

if TYPE_CHECKING:
    from drexperts.cli.arguments import Parser
    from drexperts.runtime import Manifest
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
    from drexperts.runtime import obstacle
    from drexperts.ui.tables import proof_table

    for engine in manifest.engines:
        screen.tables.print(proof_table(engine))
        if reason := obstacle(engine):
            screen.note(f"{engine.file} ({engine.backend}) does not run here: {reason}")
    document = bundle_document(bundle, manifest)
    return Outcome(DONE if document["proven"] else GATE_FAILED, document)


def bundle_document(bundle: Path, manifest: "Manifest") -> dict[str, Any]:
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
