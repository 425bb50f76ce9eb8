"""The tables of a report of `drx bench`, as text: the same in Markdown and in HTML.

What a report does not have makes no row, or a "-".
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from drexperts.bench.timing import ratio_text
from drexperts.ui.markdown import Table

Report = Mapping[str, Any]

AGAIN = "engine again"  # the engine's second turn in a round: the noise floor, and no contender
CALLS = ("p50 ms", "p90 ms", "p95 ms", "p99 ms", "mean ms", "cv")
_NO_CALLS = ("-",) * len(CALLS)
_DIGITS = 12  # of an engine's SHA-256, as many as tell files apart
_UNNAMED = "an unnamed CPU"
_LAYERS = 20  # of the slowest, in a table


def text(value: float | None, unit: float = 1.0) -> str:
    """A number to four digits, in `unit`s; "-" where it is not known."""
    if value is None:
        return "-"
    scaled = value / unit
    return f"{scaled:.0f}" if abs(scaled) >= 1000 else f"{scaled:.4g}"


def milliseconds(seconds: float | None) -> str:
    """Seconds as milliseconds."""
    return text(seconds, 1e-3)


def calls(times: Mapping[str, Any]) -> tuple[str, ...]:
    """The columns `CALLS` of what `timing.statistics` says."""
    shown = (milliseconds(times[name]) for name in ("p50", "p90", "p95", "p99", "mean"))
    return (*shown, f"{100 * times['cv']:.1f} %")


def title(report: Report) -> str:
    """What was measured, in one line."""
    bundle, card = report["bundle"], report["machine"]
    on_gpu = bundle["backend"] != "onnx" and card["gpus"]
    machine = card["gpus"][0]["name"] if on_gpu else card["cpu"] or _UNNAMED
    return f"DR.Experts {bundle['preset']}, {bundle['backend']} {bundle['precision']}, on {machine}"


def latency(entries: Sequence[Mapping[str, Any]]) -> Table:
    """Contenders that were timed alternately, batch by batch."""
    compared = any(entry.get("ratio") for entry in entries)
    headings = ("batch", "contender", *CALLS, "crops/s", *["times the engine"] * compared)
    rows = [
        (
            str(entry["batch"]),
            name,
            *calls(times),
            text(entry["batch"] / times["p50"]),
            *[ratio_text(entry["ratio"].get(name)) for _ in range(compared)],
        )
        for entry in entries
        for name, times in contenders(entry).items()
    ]
    return Table(headings, rows)


def contenders(entry: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The latencies of a batch by contender."""
    return {name: times for name, times in entry["latency"].items() if name != AGAIN}


def throughput(report: Report) -> Table:
    """Crops a second of each contender."""
    rates = throughput_points(report)
    batches = [entry["batch"] for entry in report["batches"]]
    headings = ("crops/s", *(f"batch {batch}" for batch in batches))
    rows = [
        (name, *(text(dict(points).get(batch)) for batch in batches))
        for name, points in rates.items()
    ]
    return Table(headings, rows)


def throughput_points(report: Report) -> dict[str, list[tuple[float, float]]]:
    """For each contender, (batch, crops a second at the median)."""
    points: dict[str, list[tuple[float, float]]] = {}
    for entry in sorted(report["batches"], key=lambda entry: entry["batch"]):
        for name, times in contenders(entry).items():
            rate = entry["batch"] / times["p50"]
            points.setdefault(name, []).append((entry["batch"], rate))
    return points


def image(report: Report) -> Table:
    """The photograph, from its bytes on."""
    found = report.get("image")
    steps = {} if found is None else {"decode and crop": "preprocess", "image_e2e": "image_e2e"}
    rows = [(shown, *calls(found[name])) for shown, name in steps.items() if found]
    return Table(("of a photograph", *CALLS), rows)


def boundaries(report: Report) -> Table:
    """What is timed, by its name."""
    return Table((), list(report["boundaries"].items()))


def scenarios(report: Report) -> Table:
    """One row a scenario; latency is that of a query."""
    found = report["scenarios"]
    rows = [
        row
        for name, row_of in _SCENARIOS.items()
        if (measured := found.get(name)) is not None
        for row in [row_of(measured)]
    ]
    return Table(("scenario", "images/s", *CALLS), rows)


def _single_stream(times: Mapping[str, Any]) -> tuple[str, ...]:
    return ("single-stream: one image after another", text(1 / times["mean"]), *calls(times))


def _multi_stream(times: Mapping[str, Any]) -> tuple[str, ...]:
    images = times["images_per_query"]
    return (f"multi-stream: {images} images a query", text(images / times["mean"]), *calls(times))


def _server(found: Mapping[str, Any]) -> tuple[str, ...]:
    best = best_trial(found)
    name = f"server: Poisson arrivals, p99 within {milliseconds(found['bound_s'])} ms"
    times = _NO_CALLS if best is None else calls(best["latency"])
    return (name, text(found["images_per_s"]), *times)


def best_trial(server: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The trial whose rate is the verdict; None where no rate met the bound."""
    rate = server["images_per_s"]
    return next((trial for trial in server["trials"] if trial["rate"] == rate), None)


def _offline(found: Mapping[str, Any]) -> tuple[str, ...]:
    return (f"offline: {found['images']} images at once", text(found["images_per_s"]), *_NO_CALLS)


_SCENARIOS: dict[str, Callable[[Mapping[str, Any]], tuple[str, ...]]] = {
    "single_stream": _single_stream,
    "multi_stream": _multi_stream,
    "server": _server,
    "offline": _offline,
}


def server_trials(report: Report) -> Table:
    """The rates that were tried in the scenario `server`.

    Of a trial that was stopped early the latency is that of what was answered.
    """
    found = report["scenarios"].get("server")
    trials = [] if found is None else sorted(found["trials"], key=lambda trial: trial["rate"])
    rows = [
        (
            text(trial["rate"]),
            f"{trial['queries']} of {trial['planned']}",
            *calls(trial["latency"]),
            "yes" if trial["met"] else "no" + ", stopped early" * stopped_early(trial),
        )
        for trial in trials
    ]
    return Table(("images/s asked for", "answered", *CALLS, "within the bound"), rows)


def stopped_early(trial: Mapping[str, Any]) -> bool:
    """Whether a trial of the server ended before everything was answered."""
    return bool(trial["queries"] < trial["planned"])


def parts(report: Report) -> Table:
    """Where the time of one image goes, by part."""
    profile = report.get("profile")
    if profile is None:
        return Table((), [])
    total = sum(part["seconds"] for part in profile["parts"])
    rows = [
        (part["part"], milliseconds(part["seconds"]), f"{100 * part['seconds'] / total:.1f} %")
        for part in profile["parts"]
    ]
    return Table(("part", "ms", "share"), rows)


def layers(report: Report) -> Table:
    """The slowest layers, where the engine's backend times layers."""
    profile = report.get("profile")
    slowest = [] if profile is None else profile["layers"][:_LAYERS]
    rows = [
        (layer["name"], layer["op"], layer["part"], milliseconds(layer["seconds"]))
        for layer in slowest
    ]
    return Table(("layer", "operator", "part", "ms"), rows)


def roofline_points(report: Report) -> dict[int, tuple[float, float]]:
    """From batches to (FLOP a byte, FLOP/s) of the engine.

    Weights are read once a call at least, so FLOP a byte is what it is at most. Computing alone is
    taken where it was timed, for copies are no part of the roof.
    """
    found = report.get("roofline")
    if found is None:
        return {}
    entries = report["engine_gpu"] or report["batches"]
    flop = found["flop_per_image"]
    return {
        entry["batch"]: (
            flop * entry["batch"] / found["weight_bytes"],
            flop * entry["batch"] / entry["latency"]["engine"]["p50"],
        )
        for entry in entries
    }


def roofline(report: Report) -> Table:
    """Position under the roof, a row a batch."""
    rows = []
    for batch, (intensity, speed) in sorted(roofline_points(report).items()):
        roof = attainable(report["roofline"], intensity)
        share = "-" if roof is None else f"{100 * speed / roof:.0f} %"
        rows.append((str(batch), text(intensity), text(speed, 1e9), text(roof, 1e9), share))
    headings = ("batch", "FLOP/byte", "GFLOP/s", "attainable GFLOP/s", "of attainable")
    return Table(headings, rows)


def attainable(found: Mapping[str, Any], intensity: float) -> float | None:
    """min(peak, intensity x bandwidth) in FLOP/s; None where either is not known."""
    if found["peak_flops"] is None or found["bandwidth"] is None:
        return None
    return float(min(found["peak_flops"], intensity * found["bandwidth"]))


def costs(report: Report) -> Table:
    """Cold start, memory, size and energy."""
    cold = report.get("cold_start") or {}
    memory, energy, bundle = report["memory"], report["energy"], report["bundle"]
    rows = [
        ("import of the runtime", _with_unit(cold.get("import_s"), 1, "s")),
        ("load, page cache warm", _with_unit(cold.get("load_s"), 1, "s")),
        ("first inference", _with_unit(cold.get("first_inference_s"), 1, "s")),
        ("memory after it", _with_unit(cold.get("resident_bytes"), 2**20, "MiB")),
        ("peak memory until then", _with_unit(cold.get("peak_bytes"), 2**20, "MiB")),
        ("peak memory, largest batch", _with_unit(memory["host_peak_bytes"], 2**20, "MiB")),
        ("peak memory on the device", _with_unit(memory["device_peak_bytes"], 2**20, "MiB")),
        ("file of the engine", _with_unit(bundle["bytes"], 2**20, "MiB")),
        ("energy of an image", _energy(energy)),
    ]
    return Table((), rows)


def _energy(energy: Mapping[str, Any]) -> str:
    joules = _with_unit(energy["joules_per_image"], 1, "J")
    return f"{joules} ({energy['source']})"


def _with_unit(value: float | None, unit: float, name: str) -> str:
    return "-" if value is None else f"{text(value, unit)} {name}"


def agreement(report: Report) -> Table:
    """How far the scores of forms of the model are from those of the reduced one in PyTorch."""
    rows = [(name, f"{apart:.1e}") for name, apart in report.get("agreement", {}).items()]
    return Table(("contender", "scores apart from eager-reduced, relative"), rows)


def left_out(report: Report) -> Table:
    """What cannot run here, and why."""
    return Table(("what", "why it is left out"), list(report["left_out"].items()))


def machine(report: Report) -> Table:
    """What was measured, on what, from which source, and how to do it again."""
    card, bundle, source = report["machine"], report["bundle"], report["source"]
    rows = [
        ("engine", _engine(bundle)),
        ("session", bundle["session"]),
        *((name, _engine(other)) for name, other in report.get("against", {}).items()),
        ("baselines' weights", report["weights"]),
        ("CPU", f"{card['cpu'] or _UNNAMED}, {card['cores']} cores"),
        ("threads", "the default" if card["threads"] is None else str(card["threads"])),
        *_gpus("", card["gpus"]),
        *_gpus(" after the last round", report.get("gpus_after", ())),
        ("system", card["system"]),
        ("Python", card["python"]),
        ("versions", _pairs(card["versions"])),
        ("command", report["command"]),
        ("source", ", ".join(source["modules"])),
        ("SHA-256 of it", source["sha256"]),
        ("commit", source["commit"] or "-"),
    ]
    return Table((), rows)


def _gpus(when: str, cards: Iterable[Mapping[str, str]]) -> Iterator[tuple[str, str]]:
    for i, card in enumerate(cards):
        yield f"GPU {i}{when}", _pairs(card)


def _engine(card: Mapping[str, Any]) -> str:
    digest = f", SHA-256 {card['sha256'][:_DIGITS]}" if "sha256" in card else ""
    return f"{card['engine']}: {card['backend']}, {card['precision']}{digest}"


def _pairs(values: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def noise_floor(report: Report) -> str:
    """What a ratio must leave to say something, for each batch; a sentence or two."""
    floors = [
        (ratio_text(entry["ratio"][AGAIN]), f"with batch {entry['batch']}")
        for entry in report["batches"]
        if AGAIN in entry["ratio"]
    ]
    if not floors:
        return "The noise floor was not measured."
    (first, batch), *others = floors
    shown = ", ".join([f"{first} times as slow {batch}", *map(" ".join, others)])
    return (
        f"Noise floor: the engine against itself, in the same rounds, is {shown}. A ratio within "
        "the range of its batch says nothing."
    )


def shown(tables: Iterable[Table]) -> list[Table]:
    """Those with any rows."""
    return [table for table in tables if table.rows]
