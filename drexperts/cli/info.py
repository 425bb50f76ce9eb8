"""`drx info`: what a bundle holds, and what was proven about it."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drexperts.cli.arguments import DONE, GATE_FAILED, Outcome, add_verb
from drexperts.cli.proofs import bundle_document

if TYPE_CHECKING:
    from drexperts.cli.arguments import Verbs
    from drexperts.model.config import DRExpertsConfig
    from drexperts.ui.screen import Screen


def add(verbs: "Verbs") -> None:
    verb = add_verb(verbs, "info", run, "show what a bundle holds, and what was proven about it")
    verb.add_argument("bundle", type=Path, help="the bundle's folder")


def run(arguments: argparse.Namespace, screen: "Screen") -> Outcome:
    from drexperts.runtime import obstacle, read_manifest
    from drexperts.runtime.manifest import digest
    from drexperts.ui.tables import bundle_table, engine_table, proof_table

    bundle: Path = arguments.bundle
    manifest = read_manifest(bundle)
    states = {engine.file: engine.file_state(bundle) for engine in manifest.engines}
    config = _known(manifest.config)
    parts = {} if config is None else config.parts
    # Older versions named a published encoder in any size; this is what such a name reads as now.
    shown = manifest if config is None else replace(manifest, config=config.as_dict())
    screen.tables.print(bundle_table(str(bundle), shown, list(parts.items())))
    for engine in manifest.engines:
        path = bundle / engine.file
        size = path.stat().st_size if path.is_file() else None
        table = engine_table(engine, states[engine.file], size, obstacle(engine))
        screen.tables.print(table, proof_table(engine))
    intact = all(state == "intact" for state in states.values())
    document = bundle_document(bundle, manifest) | {"files": states, "intact": intact}
    document |= {"model": parts, "digest": digest(manifest)}
    # For `--digest`: on one line of its own, so that it can be copied.
    screen.tables.print(f"digest {document['digest']}", soft_wrap=True)
    return Outcome(DONE if intact and document["proven"] else GATE_FAILED, document)


def _known(config: "dict[str, Any]") -> "DRExpertsConfig | None":
    """The configuration; None if it is of another kind of model."""
    from drexperts.model.config import DRExpertsConfig
    from drexperts.runtime.errors import ConfigError

    try:
        return DRExpertsConfig.from_dict(config)
    except ConfigError:
        return None
