"""What the command line says of a bundle: lines of names and values."""

import shlex
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from rich.table import Table

from drexperts.runtime.manifest import (
    CPU_BACKENDS,
    FILE_NAME,
    Engine,
    EnginePlan,
    Manifest,
    PrecisionTrial,
)
from drexperts.runtime.openvino_products import products_text
from drexperts.runtime.training import Training
from drexperts.ui.fitting import Name
from drexperts.ui.tables import reservations

UNKNOWN = "not recorded"
Rows = Iterable[tuple[str, str]]


def facts(title: str, rows: Rows) -> Table:
    """Names and values, of which a `Name` is never broken."""
    table = Table("", "", title=Name(title), show_header=False)
    for row in rows:
        table.add_row(*row)
    return table


def about_bundle(
    bundle: Path,
    manifest: Manifest,
    names: Mapping[str, str],
    digest: str,
    title: str | None = None,
    absent: str = "missing",
) -> Table:
    """What a person asks first: which model, trained on what, how good, when, proven on what.

    names: of the parts of the model, such as "encoder"; none if they are not known
    absent: what is said of a file that is not in the folder
    """
    rows = [
        ("model", f"DR.Experts, preset {manifest.preset}"),
        *names.items(),
        ("score", str(manifest.scale)),
        *_trained(manifest.trained),
        ("exported", _exported(manifest)),
        *(engine_summary(bundle, engine, absent) for engine in manifest.engines),
        ("size", size_text(bundle_bytes(bundle, manifest), absent)),
        ("weights", UNKNOWN if manifest.weights is None else Name(manifest.weights)),
        ("digest", Name(digest)),
    ]
    return facts(title or str(bundle), rows)


def _trained(trained: Training | None) -> Iterator[tuple[str, str]]:
    if trained is None:
        yield "trained", UNKNOWN
        return
    counts = dict(zip(("trained", "validated", "tested"), trained.images, strict=True))
    parts = ", ".join(f"{count} {name} on" for name, count in counts.items() if count)
    yield (
        "trained",
        f"on {trained.dataset} (data {trained.data_digest}, split {trained.split_digest}; images: "
        f"{parts}), epoch {trained.epoch}, {trained.choice}",
    )
    yield "tested", _tested(trained)


def _tested(trained: Training) -> str:
    if trained.srcc is None:
        return UNKNOWN
    plcc = "" if trained.plcc is None else f", PLCC {trained.plcc:.4f}"
    seen = ", which also chose the epoch" * (trained.selected_on == "test")
    images = f"{trained.images[-1]} images of the split's test part{seen}"
    return f"SRCC {trained.srcc:.4f}{plcc} on {images}, {time_text(trained.when)}"


def _exported(manifest: Manifest) -> str:
    when = UNKNOWN if manifest.created is None else time_text(manifest.created)
    return f"{when}, with {versions_text(manifest.created_with)}"


def time_text(utc: str) -> str:
    """A time such as "2026-11-28T20:00:00Z" for people."""
    return utc.replace("T", " ").replace("Z", " UTC")


def engine_summary(bundle: Path, engine: Engine, absent: str) -> tuple[str, str]:
    """An engine in one line: its file, precision, size and proof."""
    size = size_text(file_bytes(bundle / engine.file), absent)
    what = f"{engine.file}, {engine.backend}, {engine.precision}, {size}"
    return "engine", f"{what}; {proof_text(engine)}"


def proof_text(engine: Engine) -> str:
    """Whether an engine is proven, where, and on how many pictures of which kind."""
    if engine.evidence != "executed":
        return f"{engine.evidence}, never executed, so not proven"
    verdict = "proven" if engine.proven else f"NOT PROVEN, {engine.objection}"
    if engine.parity is None:
        return verdict
    sets = ", ".join(f"{each.images} {name}" for name, each in engine.parity.sets.items())
    kinds = f" ({sets})" if sets else ""
    return (
        f"{verdict}, on {_where(engine)}, on {engine.parity.images} pictures{kinds} against "
        f"{engine.parity.reference}{reservations(engine.parity)}"
    )


def _where(engine: Engine) -> str:
    if engine.proven_on is None:
        return "a CPU"
    kind = "CPU" if engine.backend in CPU_BACKENDS else "compute"
    return f"{kind} capability {engine.proven_on}"


def precision_text(engine: Engine) -> str:
    """The precision of an engine, and how much of it stayed in float32."""
    kept = len(engine.islands)
    return engine.precision + f", of which {kept} parts stay in float32" * bool(kept)


def next_step(bundle: Path, engine: Engine) -> str:
    """What to type after an engine was made: to use it, or to prove it."""
    place = shlex.quote(str(bundle))
    if engine.proven:
        return f"drx score {place} photos/ --out scores.jsonl"
    if engine.refuted and engine.backend == "openvino" and engine.precision != "fp32":
        return f"drx build {place} --backend openvino --precision auto --checkpoint FILE"
    if engine.refuted:
        return f"drx info {place}   # the whole proof"
    return f"drx verify {place} --checkpoint FILE   # on a machine that runs the engine"


def bundle_bytes(bundle: Path, manifest: Manifest) -> int | None:
    """The size of a bundle on disk; None if a file of it is missing."""
    files = {FILE_NAME, *(engine.file for engine in manifest.engines)}
    sizes = [file_bytes(bundle / name) for name in files]
    return None if None in sizes else sum(filter(None, sizes))


def file_bytes(path: Path) -> int | None:
    """The size of a file; None if it is missing."""
    return path.stat().st_size if path.is_file() else None


def size_text(size: int | None, absent: str = "missing") -> str:
    """A number of bytes for people."""
    return absent if size is None else f"{size / 2**20:.1f} MiB"


def engine_table(engine: Engine, state: str, size: int | None, obstacle: str | None) -> Table:
    """An engine: its file, and whether this machine can run it.

    state: of the file compared with the manifest, such as "intact"
    size: of the file in bytes, None if it is missing
    obstacle: why this machine cannot run the engine, None if it can
    """
    rows = [
        ("file", state if size is None else f"{state}, {size_text(size)}"),
        ("SHA-256", engine.sha256),
        ("backend", f"{engine.backend}, {engine.precision}"),
        ("evidence", engine.evidence),
        ("runs here", "yes" if obstacle is None else f"no: {obstacle}"),
        ("largest batch", _largest_batch(engine)),
        ("made with", versions_text(engine.versions)),
        *_openvino_rows(engine),
        *[("stays in float32", ", ".join(engine.islands))] * bool(engine.islands),
        *(("tried", _tried(trial, engine)) for trial in engine.frontier),
        *[("failed the proof", f"{engine.missed} tried before")] * bool(engine.missed),
        *(() if engine.plan is None else _plan_rows(engine.plan)),
    ]
    return facts(f"engine {engine.file}", rows)


def _openvino_rows(engine: Engine) -> Iterator[tuple[str, str]]:
    """What an OpenVINO engine depends on, and the types that it was read back to compute in."""
    if engine.backend == "openvino":
        yield "CPU", engine.proven_on or UNKNOWN
        yield "products", products_text(engine.products) if engine.products else UNKNOWN
    if engine.bf16_layers:
        yield "stays in bfloat16", ", ".join(engine.bf16_layers)


def _tried(trial: PrecisionTrial, engine: Engine) -> str:
    verdict = "kept all limits" if trial.passed else "failed"
    kind = "" if trial.precision is None else f"{trial.precision}, "
    # What int8 falls to under OpenVINO depends on the CPU that searched.
    higher = "float32" if engine.backend != "openvino" else "higher precision"
    speed = "" if trial.ms is None else f"{trial.ms:.3g} ms, "
    low = f"{trial.srcc:.5f}"
    srcc = low if trial.srcc_found is None else f"{trial.srcc_found:.5f}, at least {low}"
    return (
        f"{kind}{trial.islands} in {higher}, {speed}{size_text(trial.weight_bytes)}: "
        f"SRCC {srcc}, score within {trial.score_max:.1e} of the span, {verdict}"
    )


def _largest_batch(engine: Engine) -> str:
    if engine.certified_batch == engine.max_batch:
        return str(engine.max_batch)
    return f"{engine.certified_batch} (built for {engine.max_batch})"


def _plan_rows(plan: EnginePlan) -> Iterator[tuple[str, str]]:
    yield "built for", f"compute capability {', '.join(plan.capabilities)}, {plan.platform}"
    yield "hardware compatibility", plan.hardware_compatibility
    yield "profiles, min:opt:max", " ".join(map(str, plan.profiles))
    yield "pooling", "Triton kernel, as a plugin" if plan.plugin_layers else "standard operators"
    yield "attention", "fused where possible" if plan.fused_attention else "not fused"
    yield "other versions", "newer ones too" if plan.version_compatible else "no"
    yield "weights", "left out, to be refitted" if plan.stripped else "inside"


def configuration(manifest: Manifest, config: Mapping[str, object]) -> Table:
    """The input, the outputs and the model's configuration."""
    spec = manifest.preprocessing
    crops = (
        f"shorter side {spec.short_side_min} to {spec.short_side_max} px, at most "
        f"{spec.crops_per_side} x {spec.crops_per_side} crops of {spec.crop} px"
    )
    rows = [
        ("preprocessing", crops),
        ("outputs", ", ".join(manifest.outputs)),
        ("distortions", ", ".join(manifest.distortions)),
        *((name, str(value)) for name, value in config.items()),
    ]
    return facts("configuration", rows)


def versions_text(versions: Mapping[str, str]) -> str:
    """Packages and their versions."""
    return ", ".join(f"{name} {version}" for name, version in versions.items())
