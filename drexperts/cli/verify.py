"""`drx verify`: measure the proofs of a bundle again."""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from drexperts.cli.arguments import DONE, GATE_FAILED, Outcome, add_trust, add_verb
from drexperts.cli.proofs import add_images, bundle_document

if TYPE_CHECKING:
    from drexperts.cli.arguments import Verbs
    from drexperts.export.proof.prove import Verification
    from drexperts.ui.screen import Screen


def add(verbs: "Verbs") -> None:
    summary = "measure parity and batch invariance again and rewrite the proofs"
    verb = add_verb(verbs, "verify", run, summary, "export")
    verb.add_argument("bundle", type=Path, help="the bundle's folder")
    verb.add_argument(
        "--checkpoint",
        type=Path,
        metavar="FILE",
        help="the exported checkpoint, needed to measure parity (default: none, which measures "
        "batch invariance only and shows the parity that was recorded before)",
    )
    add_images(verb)
    verb.add_argument(
        "--debug-layers",
        action="store_true",
        help="also find the first tensor, if any, whose error rounding does not explain",
    )
    add_trust(verb)


def run(arguments: argparse.Namespace, screen: "Screen") -> Outcome:
    from drexperts.export import verify

    if arguments.debug_layers:
        from drexperts.export.engines.debug_layers import check_comparable
        from drexperts.runtime import read_manifest

        check_comparable(read_manifest(arguments.bundle))
    with screen.progress() as progress:
        done = verify(
            arguments.bundle,
            checkpoint=arguments.checkpoint,
            images=arguments.images,
            progress=progress,
            trust=arguments.trust,
        )
    outcome = _outcome(arguments.bundle, done, screen)
    return _debug_layers(arguments, screen, outcome) if arguments.debug_layers else outcome


def _outcome(bundle: Path, done: "Verification", screen: "Screen") -> Outcome:
    """Tables and a document that tell what was measured now from what was recorded before."""
    from drexperts.ui.tables import proof_table

    for engine, now in zip(done.manifest.engines, done.measured, strict=True):
        proofs = {"parity": now.parity, "batch invariance": now.batch_invariance}
        recorded = [name for name, measured in proofs.items() if not measured]
        screen.tables.print(proof_table(engine, recorded=recorded))
        if now.reason is not None:
            missing = " and ".join(recorded)
            screen.note(
                f"{now.file} ({now.backend}): {missing} NOT measured on {done.images}: {now.reason}"
            )
    document = bundle_document(bundle, done.manifest)
    document |= {"images": done.images, "measured": [asdict(each) for each in done.measured]}
    return Outcome(DONE if document["proven"] else GATE_FAILED, document)


def _debug_layers(arguments: argparse.Namespace, screen: "Screen", outcome: Outcome) -> Outcome:
    from drexperts.cli.divergence import divergence_table
    from drexperts.export.engines.debug_layers import bundle_layers

    layers: dict[str, str | None] = {}
    with screen.progress() as progress:
        checkpoint, images = arguments.checkpoint, arguments.images
        reports = list(bundle_layers(arguments.bundle, checkpoint, images, progress))
    for engine, report in reports:
        screen.tables.print(f"{engine.file} ({engine.backend})", divergence_table(report))
        first = report.first
        layers[engine.file] = None if first is None else first.tensor
        if first is not None and first.hidden:
            screen.note("build it with --no-fused-attention if the kernel is an attention")
    diverged = any(tensor is not None for tensor in layers.values())
    document = outcome.document | {"first_divergence": layers}
    return Outcome(GATE_FAILED if diverged else outcome.status, document)
