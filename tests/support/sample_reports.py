"""Reports of `drx bench` with made-up times."""

from dataclasses import replace

import numpy as np

from drexperts.bench.conditions import Conditions
from drexperts.bench.provenance import Gpu, Machine, Source
from drexperts.bench.reports import (
    AGAIN,
    ENGINE,
    BatchTimes,
    BenchReport,
    ColdStart,
    Energy,
    EngineDescription,
    ImageTimes,
    Layer,
    Memory,
    Offline,
    Profile,
    Roofline,
    Scenarios,
    Seconds,
    Server,
    TrainingReport,
    TrainingVariant,
    Trial,
)

# What may come from outside: from a driver, an exception, a command line.
HOSTILE = "<script>alert('|x|')</script> **bold** [a](b) `c`\n# d & &lt; \\"

MACHINE = Machine(
    cpu="AMD EPYC 7763 64-Core Processor",
    cores=2,
    threads=1,
    system="Linux-6.1.0-x86_64-with-glibc2.36",
    python="3.11.2",
    versions={"drexperts": "0.1.0", "numpy": "2.4.0", "onnxruntime": "1.31.0"},
    gpus=(),
    cpu_id="vendor_id AuthenticAMD, cpu family 25, model 1, stepping 1, microcode 0xa0011d1",
)
SOURCE = Source("5690bba5690bba", False, ("drexperts.bench", "drexperts.runtime"))
BUNDLE = EngineDescription(
    preset="official",
    engine="model.onnx",
    sha256="0123456789abcdef" * 4,
    backend="onnx",
    precision="fp32",
    session="onnxruntime 1.31.0, CPUExecutionProvider, 1 thread",
    bytes=457_000_000,
    digest=f"sha256:{'89abcdef01234567' * 4}",
    options={"intra_op_num_threads": "1", "graph_optimization_level": "ORT_ENABLE_ALL"},
)


def times(median: float, count: int, seed: int) -> Seconds:
    """Skewed like latencies, with a few slow ones."""
    rng = np.random.default_rng(seed)
    taken = median * (1 + 0.02 * rng.gamma(2, 1, count) - 0.03)
    taken[rng.random(count) < 0.05] *= 1.4
    return tuple(taken.tolist())


def batch(size: int, medians: dict[str, float], rounds: int) -> BatchTimes:
    """Variants that were timed in the same rounds."""
    taken = {name: times(each, rounds, i) for i, (name, each) in enumerate(medians.items())}
    return BatchTimes(size, taken)


def profile(unit: float, layers: bool = True) -> Profile:
    """An image of 100 units, of which the engine's two and a half calls take 93."""
    found = (
        Layer("encoder.blocks.0.mlp.fc1", "/encoder/MatMul", "MatMul", "encoder", 28 * unit),
        Layer("controller.blocks.3", "/controller/Softmax", "Softmax", "controller", 8 * unit),
    )
    return Profile(
        batch=4,
        crops=10,
        decode=(4 * unit,) * 3,
        crop=(3 * unit,) * 3,
        layers=found if layers else (),
        in_layers=(36 * unit,) * 3,
        called=(37.2 * unit,) * 3,
        plain=(36 * unit,) * 3,
        method="ONNX Runtime's own profile.",
    )


def trial(rate: float, single: float, answered: int) -> Trial:
    """Of 120 images planned. rate: over that of one image after another."""
    latency = times((1 + 9 * rate**4) * single, answered, round(100 * rate))
    return Trial(rate / single, 120, latency)


def scenarios(single: float) -> Scenarios:
    """Two rates meet the bound, of which 0.7 is the higher, and two are stopped early."""
    answered = {0.5: 120, 1.0: 9, 0.7: 120, 0.84: 61}
    trials = tuple(trial(rate, single, count) for rate, count in answered.items())
    return Scenarios(
        single_stream=times(single, 200, 7),
        multi_stream=times(7.5 * single, 50, 8),
        server=Server(5 * single, single, trials),
        offline=Offline(400, 380 * single),
    )


def cpu() -> BenchReport:
    """A CPU with several baselines, some of them left out."""
    medians = {
        ENGINE: 0.31,
        AGAIN: 0.312,
        "eager-dense": 1.93,
        "eager-reduced": 0.62,
        "compile": 0.48,
        "onnx-dense": 0.9,
        "backbones": 0.29,
    }
    sizes = (1, 2, 8)
    batches = [batch(size, {n: m * size**0.93 for n, m in medians.items()}, 30) for size in sizes]
    alone = [batch(size, {ENGINE: 0.3 * size**0.93}, 30) for size in sizes]
    return BenchReport(
        command="drx bench BUNDLE --out results",
        machine=MACHINE,
        source=SOURCE,
        bundle=BUNDLE,
        weights="random",
        cold_start=ColdStart(0.21, 0.84, 0.41, 640_000_000, 1_100_000_000),
        memory=Memory(3_400_000_000, None),
        gpus_after=(),
        against={},
        agreement={ENGINE: 1.3e-7, "eager-dense": 0.0},
        left_out={"tensorrt": "no NVIDIA GPU", "onnx-cuda": "no CUDA device was found"},
        batches=tuple(batches),
        engine_gpu=tuple(alone),
        image=ImageTimes(0, (4,), times(0.02, 30, 9), times(1.25, 30, 10)),
        energy=Energy(None, 30, "this platform does not report energy"),
        scenarios=scenarios(1.25),
        profile=profile(0.003),
        roofline=Roofline(37_015_931_584, 456_669_976, 1.3e11, 1.4e10, "Measured here."),
        warm_ups=1,
        conditions=Conditions("2026-11-28T20:59:06+00:00", 63.2, 0.31, (1.9, 2.4), 0.0042),
    )


def bare() -> BenchReport:
    """Nothing but one engine and one batch of three calls; all that may be missing is."""
    return replace(
        cpu(),
        machine=replace(MACHINE, cpu=None, cpu_id=None, threads=None, versions={}, gpus=None),
        bundle=replace(BUNDLE, digest=None, options={}),
        source=replace(SOURCE, commit=None, dirty=None),
        agreement={},
        left_out={},
        batches=(batch(1, {ENGINE: 0.31}, 3),),
        engine_gpu=(),
        image=ImageTimes(0, (4,), (0.02,), (1.25,)),
        scenarios=Scenarios(server=Server(0.1, 1.25, ())),
        profile=None,
        roofline=None,
        warm_ups=None,
        conditions=None,
    )


def gpu() -> BenchReport:
    """Fast, far apart, in many batches, with baselines whose names are long or hostile."""
    medians = {
        ENGINE: 0.0008,
        AGAIN: 0.0008,
        "eager-dense": 0.041,
        "tensorrt-rtx": 0.0009,
        "onnx-tensorrt": 0.0011,
        "onnx-cuda": 0.003,
        "aotinductor": 0.0021,
        "compile": 0.0022,
        "pyiqa:a-metric-whose-name-is-longer-than-anyone-would-think": 0.006,
        HOSTILE: 0.004,
    }
    sizes = (1, 15, 64)
    batches = tuple(
        batch(size, {n: m * (1 + size / 4) for n, m in medians.items()}, 100) for size in sizes
    )
    gpu = Gpu(f"NVIDIA H100 {HOSTILE}", "580.95", sm_mhz=1980, throttled=())
    report = cpu()
    assert report.roofline is not None
    return replace(
        report,
        command=f"drx bench {HOSTILE}",
        machine=replace(MACHINE, gpus=(gpu,)),
        bundle=replace(BUNDLE, backend="tensorrt", precision="fp16"),
        memory=Memory(2_000_000_000, 900_000_000),
        gpus_after=(replace(gpu, sm_mhz=1410, throttled=(HOSTILE,)),),
        against={"other: model.engine": BUNDLE},
        left_out={HOSTILE: HOSTILE},
        batches=batches,
        engine_gpu=tuple(BatchTimes(b.batch, {ENGINE: b.seconds[ENGINE]}) for b in batches),
        energy=Energy(6.3, 30, "NVML's energy counter of GPU 0"),
        scenarios=scenarios(0.004),
        profile=replace(profile(0.00001, layers=False), method=HOSTILE),
        roofline=replace(
            report.roofline, peak_flops=7.1e14, bandwidth=2.6e12, weight_bytes=228_334_988
        ),
    )


def training() -> TrainingReport:
    """Ours in bf16 beside the dense form and the released recipe in float32."""
    medians = {"ours": 0.5, "ours, fp32": 0.8, "dense": 1.6, "released": 1.9}
    return TrainingReport(
        command="drx bench --train",
        machine=MACHINE,
        source=SOURCE,
        preset="official",
        weights="random",
        batch=4,
        variants={
            name: TrainingVariant(
                "bf16" if name == "ours" else "fp32",
                times(median, 9, i),
                0.103 if name == "ours" else 0.102,
                round(1e9 * median),
            )
            for i, (name, median) in enumerate(medians.items())
        },
        parts={name: times(0.1, 9, 4) for name in ("backbone", "controller", "head", "optimiser")},
        data=times(0.08, 9, 5),
    )


REPORTS = {"cpu": cpu, "bare": bare, "gpu": gpu}
