"""`drx info`: what a bundle holds, and what was proven about it."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from drexperts.cli.arguments import DONE, GATE_FAILED, Outcome, add_verb
from drexperts.cli.proofs import bundle_document

if TYPE_CHECKING:
    from collections.abc import Mapping

    from drexperts.cli.arguments import Verbs
    from drexperts.runtime import Manifest
    from drexperts.ui.screen import Screen


def add(verbs: "Verbs") -> None:
    verb = add_verb(verbs, "info", run, "show what a bundle holds, and what was proven about it")
    verb.add_argument("bundle", type=Path, help="the bundle's folder")


def run(arguments: argparse.Namespace, screen: "Screen") -> Outcome:
    from drexperts.runtime import obstacle, read_manifest
    from drexperts.runtime.manifest import digest
    from drexperts.ui.bundles import about_bundle, configuration, engine_table, file_bytes
    from drexperts.ui.tables import proof_table

    bundle: Path = arguments.bundle
    manifest = read_manifest(bundle)
    states = {engine.file: engine.file_state(bundle) for engine in manifest.engines}
    names, config = _model(manifest)
    identity = digest(manifest)
    screen.tables.print(about_bundle(bundle, manifest, names, identity))
    for engine in manifest.engines:
        size = file_bytes(bundle / engine.file)
        table = engine_table(engine, states[engine.file], size, obstacle(engine))
        screen.tables.print(proof_table(engine), table)
    screen.tables.print(configuration(manifest, config))
    intact = all(state == "intact" for state in states.values())
    document = bundle_document(bundle, manifest)
    document |= {"files": states, "intact": intact, "digest": identity, "model": names}
    return Outcome(DONE if intact and document["proven"] else GATE_FAILED, document)


def _model(manifest: "Manifest") -> tuple[dict[str, str], "Mapping[str, object]"]:
    """The names of the model's parts and its configuration, as far as this version knows them."""
    from drexperts.model.config import DRExpertsConfig
    from drexperts.runtime.errors import ConfigError

    try:
        config = DRExpertsConfig.from_dict(manifest.config)
    except ConfigError:
        return {}, manifest.config  # another kind of model
    # Older bundles name a published encoder that theirs only resembles.
    return config.parts, config.as_dict()
