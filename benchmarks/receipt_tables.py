"""The README's sections: a receipt as Markdown, a function for each kind."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from drexperts.bench import tables as bench_tables
from drexperts.bench.timing import ratio_text
from drexperts.runtime.errors import UserError
from drexperts.ui.markdown import Table, markdown_table, markdown_text

Report = dict[str, Any]
Part = str | Table  # a paragraph or a table

REASON = 80  # characters of why a contender is left out; the receipt has it whole
WARNINGS = 4  # that are shown
TELLING = "/B64/N577/float16"  # of the kernels' problems
WEIGHTS = {
    "random": "The weights are random: no score here is a quality.",
    "demo": "The weights are the demo's: a small model, trained on synthetic distortions alone.",
    "trained": "",
}
STEPS = {"forward": "forward", "forward+backward": "training step"}


def markdown(parts: Iterable[Part]) -> str:
    """Paragraphs and tables with an empty line around each."""
    texts = [part if isinstance(part, str) else "\n".join(markdown_table(part)) for part in parts]
    return "".join(f"\n{text}\n" for text in texts)


def machine(report: Report, *more: str) -> str:
    """What was measured on, a GPU before the CPU, and what else there is to say."""
    card = report["machine"]
    gpus = [f"{gpu['name']}, driver {gpu['driver_version']}" for gpu in card["gpus"]]
    return "; ".join([*gpus, f"{card['cpu']}, {card['cores']} cores", *more]) + "."


def bench(report: Report) -> Iterator[Part]:
    """A report of `drx bench`: contenders, scenarios, start and memory."""
    weights = "random weights" if report["weights"] == "random" else "trained weights"
    session, versions = report["bundle"]["session"], report["machine"]["versions"]
    yield machine(report, session, f"PyTorch {versions['torch']}", *_bundles(report), weights)
    headings = ("batch", "", "p50 ms", "p90 ms", "p99 ms", "times the engine")
    yield Table(headings, [row for entry in report["batches"] for row in _contenders(entry)])
    if report.get("noise_floor"):
        yield bench_tables.noise_floor(report)
    if report.get("scenarios"):
        yield "MLPerf-style scenarios, from an image's bytes to its Score:"
        yield bench_tables.scenarios(report)
    yield Table((), list(_figures(report)))
    yield from _sentences(report)


def _sentences(report: Report) -> Iterator[str]:
    """What is timed, what was left out and why, what weakens the numbers."""
    boundaries = (f"{name}: {meaning}" for name, meaning in report.get("boundaries", {}).items())
    left_out = (f"{name} ({_short(why)})" for name, why in report.get("left_out", {}).items())
    first, rest = report.get("warnings", [])[:WARNINGS], report.get("warnings", [])[WARNINGS:]
    warnings = [*first, f"and {len(rest)} more in the receipt"] if rest else first
    said = {"Boundaries": boundaries, "Left out": left_out, "Warnings": warnings}
    for name, sentences in said.items():
        if joined := "; ".join(sentences):
            yield f"{name}. {markdown_text(joined)}."


def _bundles(report: Report) -> Iterator[str]:
    """The bundle, and those it was timed beside."""
    for name, card in {"": report["bundle"], **report.get("against", {})}.items():
        kind = f", {card['precision']}" if "precision" in card else ""
        size = f", {card['bytes'] / 1e6:.0f} MB" if "bytes" in card else ""
        yield f"{name} preset `{card['preset']}`{kind}{size}".strip()


def _contenders(entry: Report) -> Iterator[tuple[str, ...]]:
    for name, times in entry["latency"].items():
        if name != bench_tables.AGAIN:
            quantiles = (_three_digits(1e3 * times[q]) for q in ("p50", "p90", "p99"))
            yield str(entry["batch"]), name, *quantiles, ratio_text(entry["ratio"].get(name))


def _figures(report: Report) -> Iterator[tuple[str, str]]:
    """What is measured once: an image, the start, memory."""
    cold, image = report["cold_start"], report["image"]
    crops, source = (
        image["crops"],
        "a photograph" if image.get("photographs") else "a 1024x768 JPEG",
    )
    yield f"{source} to {crops} crops", f"{1e3 * image['preprocess']['p50']:.1f} ms"
    yield f"and to its Score, {crops} crops", f"{image['image_e2e']['p50']:.2f} s"
    yield "import of the runtime", f"{cold['import_s']:.2f} s"
    yield "load of the bundle", f"{cold['load_s']:.2f} s"
    yield "first inference", f"{cold['first_inference_s']:.2f} s"
    yield "resident after it", f"{cold['resident_bytes'] / 1e6:.0f} MB"
    for name, peak in report.get("memory", {}).items():
        if peak is not None:
            yield f"peak memory, {name.split('_')[0]}", f"{peak / 1e6:.0f} MB"
    joules = report.get("energy", {}).get("joules_per_image")
    if joules is not None:
        yield f"energy of an image, {report['energy']['source']}", f"{joules:.2f} J"


def _short(reason: str) -> str:
    return reason if len(reason) <= REASON else reason[:REASON].rsplit(" ", 1)[0] + " ..."


def _three_digits(value: float) -> str:
    """To three digits, without an exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def kernels(report: Report) -> Iterator[Part]:
    """The expert head's CLS row against its dense form, for a report of `bench_kernels.py`."""
    torch = report["machine"]["versions"]["torch"]
    yield machine(report, f"PyTorch {torch}, float32, preset `official`")
    headings = ("images", "", "CLS row, p50 ms", "all rows, p50 ms", "ratio")
    yield Table(headings, [_head_row(row) for row in report["rows"]])


def _head_row(row: Report) -> tuple[str, ...]:
    images = row["problem"].split("/")[2].removeprefix("B")
    ours, dense = (1e3 * row["latency"][name]["p50"] for name in ("CLS row", "dense eager"))
    ratio = row["ratio"]["dense eager"]
    shown = f"{ratio['p50']:.0f} ({ratio['p20']:.0f}-{ratio['p80']:.0f})"
    return images, STEPS[row["mode"].split(",")[0]], f"{ours:.1f}", f"{dense:.0f}", shown


def engines(report: Report) -> Iterator[Part]:
    """The engines for TensorRT for RTX, for a receipt of `bench_engines.py`."""
    library = f"TensorRT for RTX {report['rows'][0]['version']}"
    what = f"{library}, preset `{report['preset']}`, batch 1:8:64"
    yield machine(report, "no GPU", what) + " Built and inspected, not executed."
    headings = ("precision", "for capability", "build s", "MB", "products, by type")
    yield Table((*headings, "fused attentions"), [_engine_row(row) for row in report["rows"]])


def _engine_row(row: Report) -> tuple[str, ...]:
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(row["products"].items()))
    return (
        row["precision"] + ", kept from fusing" * (not row["fused_attention"]),
        ", ".join(row["capabilities"]),
        f"{row['seconds']:.1f}",
        f"{row['bytes'] / 1e6:.0f}",
        f"{row['found']} of {row['asked']} asked: {kinds}",
        str(row["attention_kernels"]),
    )


def training(report: Report) -> Iterator[Part]:
    """A training step and what it consists of, for a receipt of `drx bench --train`."""
    versions, batch = report["machine"]["versions"], report["batch"]
    what = f"preset `{report['preset']}`, {batch} crops"
    yield machine(report, f"PyTorch {versions['torch']}, {what}")
    headings = ("", "type", "p50 s", "p90 s", "times ours", "peak MB", "times ours")
    yield Table(headings, [_step_row(report, name) for name in report["latency"]])
    parts = {name: times["p50"] for name, times in report["parts"].items()}
    split = ", ".join(f"{name} {part / sum(parts.values()):.0%}" for name, part in parts.items())
    p50 = {name: times["p50"] for name, times in report["latency"].items()}
    data = report["data"]["p50"] / p50["ours"]
    yield f"Of our step: {split}. Making a batch of JPEGs takes one core {data:.0%} of it."
    if "ours, fp32" in p50:
        released, dense = (p50[name] / p50["ours, fp32"] for name in ("released", "dense"))
        yield (
            f"In float32, too, ours is {released:.2f} times as fast as `released` and {dense:.2f} "
            "times as `dense`, by their medians."
        )


def _step_row(report: Report, name: str) -> tuple[str, ...]:
    times, peak = report["latency"][name], report["peak_ratio"].get(name)
    return (
        name,
        report["amp"][name],
        f"{times['p50']:.2f}",
        f"{times['p90']:.2f}",
        ratio_text(report["ratio"].get(name)),
        f"{report['peak_bytes'][name] / 1e6:.0f}",
        "" if peak is None else f"{peak:.2f}",
    )


def drift(report: Report) -> Iterator[Part]:
    """How far scores move with another decoder or resize, for a receipt of `drift.py`."""
    bundle, first = report["bundle"], report["sets"][0]
    low, median, high = np.percentile(first["scores"][first["reference"]], (0, 50, 100))
    pictures = f"{len(report['pictures'])} pictures, scores from {low:.3g} to {high:.3g}"
    model = f"preset `{bundle['preset']}`, {bundle['session']}"
    said = f"{pictures}, half of them below {median:.3g}; {model}. {WEIGHTS[report['weights']]}"
    yield said.rstrip()
    versions = (f"{name}: {version}" for name, version in report["decoders"].items())
    yield f"Decoders: {markdown_text('; '.join(versions))}."
    headings = ("", "set", "pixels, largest and mean step", "score, largest", "mean")
    more = (f"largest, % of {first['span']:g}", "SRCC", "pairs turned round")
    yield Table((*headings, *more), list(_drift_rows(report)))
    left_out = (f"{name} ({_short(why)})" for name, why in report["left_out"].items())
    if report["left_out"]:
        yield f"Left out. {markdown_text('; '.join(left_out))}."


def _drift_rows(report: Report) -> Iterator[tuple[str, ...]]:
    """A row for each variant and set; those whose pixels are the same are one row."""
    by_variant: dict[str, list[tuple[Report, Report]]] = {}
    for each in report["sets"]:
        for variant, found in each["drift"].items():
            by_variant.setdefault(variant, []).append((each, found))
    for variant, pairs in by_variant.items():
        same = [each["set"] for each, found in pairs if found["pixel_max"] == 0]
        if same:
            yield variant, ", ".join(same), "the same", *[""] * 5
        for each, found in pairs:
            if found["pixel_max"]:
                yield variant, each["set"], *_drift_cells(each, found)


def _drift_cells(each: Report, found: Report) -> tuple[str, ...]:
    interval = found["srcc_interval"]
    between = f" ({interval['low']:.4f}-{interval['high']:.4f})" if interval else ""
    return (
        f"{found['pixel_max']}, {found['pixel_mean']:.2f}",
        f"{found['score_max'] * each['span']:.3g}",
        f"{found['score_mean'] * each['span']:.2g}",
        f"{100 * found['score_max']:.2g}",
        f"{found['srcc']:.4f}{between}",
        f"{found['order_flips']} of {found['pairs']}",
    )


def precision(report: Report) -> Iterator[Part]:
    """Ways to eight bits, a row for each, and what `--precision auto` tried before it chose."""
    layers, islands = report["layers"], len(report["islands"])
    said = f"{report['images']} images; preset `{report['preset']}`. {WEIGHTS[report['weights']]}"
    yield machine(report, said.rstrip().removesuffix("."))
    headings = ("", "MB", "p50 ms", "speed of float32", "SRCC (95 %)", "worst, % of the span")
    rows = [_way_row(report, name) for name in report["ways"]]
    yield Table((*headings, "same in any batch"), rows)
    tried = ", ".join(
        f"{each['islands']} ({'kept' if each['passed'] else 'failed'})"
        for each in report["searched"]
    )
    yield f"`auto` keeps {islands} of {layers} linear layers in float32. Tried: {tried}."


def _way_row(report: Report, name: str) -> tuple[str, ...]:
    row, p50 = report["ways"][name], report["latency"][name]["p50"]
    parity, ratio = row["parity"], report["ratio"].get(name)
    low, high = parity["srcc_interval"].values()
    return (
        name,
        f"{row['bytes'] / 1e6:.3g}",
        _three_digits(1e3 * p50),
        "" if ratio is None else f"{1 / ratio['p50']:.2f}",
        f"{parity['srcc']:.4f} ({low:.4f}-{high:.4f})",
        f"{100 * parity['score_max']:.2g}",
        "yes" if row["invariant"] else f"no, {100 * row['batch_drift']:.2g} % of the span",
    )


def gpu(report: Report) -> Iterator[Part]:
    """A receipt of `gpu_suite.sh`: the kernels, or the whole model.

    Raises UserError for one that says nothing of a GPU.
    """
    if report["kind"].endswith("-trial") or not report["machine"]["gpus"]:
        raise UserError(f"a receipt of kind {report['kind']} without a GPU has no place here")
    yield machine(report, f"PyTorch {report['machine']['versions']['torch']}")
    yield from _gpu_kernels(report) if report["kind"] == "kernels" else _gpu_model(report)


def _gpu_kernels(report: Report) -> Iterator[Part]:
    """Ours against the fastest other, where that says most."""
    headings = ("problem", "", "ours, p50 us", "fastest other", "p50 us", "times ours")
    rows = [
        _kernel_row(row)
        for row in report["rows"]
        if row["problem"].endswith(TELLING) and row["mode"].endswith("hot, graph")
    ]
    yield Table(headings, rows)


def _kernel_row(row: Report) -> tuple[str, ...]:
    p50 = {name: 1e6 * times["p50"] for name, times in row["latency"].items()}
    ours = row["ours"][0]
    others = sorted((time, name) for name, time in p50.items() if name not in row["ours"])
    shown = row["problem"], STEPS[row["mode"].split(",")[0]], _three_digits(p50[ours])
    if not others:
        return *shown, "", "", ""
    time, name = others[0]
    return *shown, name, _three_digits(time), ratio_text(row["ratio"].get(name))


def _gpu_model(report: Report) -> Iterator[Part]:
    """Every contender's time, and how far it is from float32."""
    weights = "random weights" if report["weights"] == "random" else "trained weights"
    yield f"The whole model, preset `{report['preset']}`, {weights}; {report['boundary']}."
    parities = {(v["precision"], v["batch"]): v["parity"] for v in report["verdicts"]}
    headings = ("batch", "", "p50 ms", "p99 ms", "images/s", "times the first")
    rows = [
        _gpu_row(row, name, parities[row["precision"], row["batch"]][name])
        for row in report["batches"]
        for name in row["latency"]
        if name != bench_tables.AGAIN
    ]
    yield Table((*headings, "largest difference, %", "SRCC"), rows)


def _gpu_row(row: Report, name: str, parity: Report) -> tuple[str, ...]:
    times = row["latency"][name]
    return (
        str(row["batch"]),
        f"{row['precision']}, {name}",
        _three_digits(1e3 * times["p50"]),
        _three_digits(1e3 * times["p99"]),
        _three_digits(row["batch"] / times["p50"]),
        ratio_text(row["ratio"].get(name)),
        f"{100 * parity['score_max']:.2g}",
        f"{parity['srcc']:.5f}",
    )
