"""`drx info`: what a bundle holds, and what was proven about it."""

import argparse
from typing import TYPE_CHECKING

from drexperts.cli.arguments import DONE, GATE_FAILED, Outcome, add_bundle, add_verb
from drexperts.cli.proofs import bundle_document

if TYPE_CHECKING:
    from collections.abc import Mapping

    from drexperts.cli.arguments import Verbs
    from drexperts.runtime import Manifest
    from drexperts.ui.screen import Screen

NOT_HERE = "not downloaded"  # of the files of a bundle at a URL


def add(verbs: "Verbs") -> None:
    verb = add_verb(verbs, "info", run, "show what a bundle holds, and what was proven about it")
    add_bundle(verb)


def run(arguments: argparse.Namespace, screen: "Screen") -> Outcome:
    from drexperts.runtime import obstacle
    from drexperts.runtime.inputs.remote import is_remote
    from drexperts.runtime.manifest import digest
    from drexperts.runtime.remote_bundle import local_folder, manifest_of
    from drexperts.ui.bundles import about_bundle, configuration, engine_table, file_bytes
    from drexperts.ui.tables import proof_table

    bundle: str = arguments.bundle
    manifest = manifest_of(bundle)
    folder, states = local_folder(bundle, manifest), _states(bundle, manifest)
    absent = NOT_HERE if is_remote(bundle) else "missing"
    names, config = _model(manifest)
    identity = digest(manifest)
    screen.tables.print(about_bundle(folder, manifest, names, identity, bundle, absent))
    for engine in manifest.engines:
        size = file_bytes(folder / engine.file)
        table = engine_table(engine, states[engine.file], size, obstacle(engine))
        screen.tables.print(proof_table(engine), table)
    screen.tables.print(configuration(manifest, config))
    intact = all(state in ("intact", NOT_HERE) for state in states.values())
    document = bundle_document(bundle, manifest)
    document |= {"files": states, "intact": intact, "digest": identity, "model": names}
    return Outcome(DONE if intact and document["proven"] else GATE_FAILED, document)


def _states(bundle: str, manifest: "Manifest") -> dict[str, str]:
    """Of each file whether it is intact; of those of a bundle at a URL no more is known here."""
    from drexperts.runtime.inputs.remote import is_remote
    from drexperts.runtime.remote_bundle import local_folder

    folder = local_folder(bundle, manifest)
    states = {engine.file: engine.file_state(folder) for engine in manifest.engines}
    if not is_remote(bundle):
        return states
    return {file: state if state == "intact" else NOT_HERE for file, state in states.items()}


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
