"""Reports of `drx bench` in the form it makes, with made-up times."""

from typing import Any

import numpy as np

from drexperts.bench.timing import ratio, statistics

# What may come from outside: from a driver, an exception, a command line.
HOSTILE = "<script>alert('|x|')</script> **bold** [a](b) `c`\n# d & &lt; \\"


def times(median: float, count: int, seed: int) -> list[float]:
    """Skewed like latencies, with a few slow ones."""
    rng = np.random.default_rng(seed)
    taken = median * (1 + 0.02 * rng.gamma(2, 1, count) - 0.03)
    taken[rng.random(count) < 0.05] *= 1.4
    return taken.tolist()


def head() -> dict[str, Any]:
    machine = {
        "cpu": "AMD EPYC 7763 64-Core Processor",
        "cores": 2,
        "threads": 1,
        "system": "Linux-6.1.0-x86_64-with-glibc2.36",
        "python": "3.11.2",
        "versions": {"drexperts": "0.1.0", "numpy": "2.4.0", "onnxruntime": "1.31.0"},
        "gpus": [],
    }
    source = {"modules": ["drexperts.bench.bundle", "drexperts.runtime"], "sha256": 64 * "a"}
    return {
        "kind": "bench",
        "schema": 1,
        "command": "drx bench BUNDLE --out results",
        "machine": machine,
        "source": source | {"commit": "5690bba"},
    }


def batch(size: int, medians: dict[str, float], rounds: int) -> dict[str, Any]:
    """Contenders timed alternately; the first is what the others are over."""
    taken = {name: times(each, rounds, i) for i, (name, each) in enumerate(medians.items())}
    first = next(iter(taken))
    return {
        "batch": size,
        "boundary": "engine_e2e",
        "latency": {name: statistics(each) for name, each in taken.items()},
        "ratio": {name: ratio(each, taken[first]) for name, each in taken.items() if name != first},
    }


def profile(unit: float, layers: bool = True) -> dict[str, Any]:
    shares = {"decode": 4, "crop": 3, "prepare": 1, "encoder": 70, "controller": 18, "head": 0.5}
    shares |= {"other": 0, "between kernels": 2}
    found = [
        ("/encoder/blocks.0/mlp/fc1/MatMul", "MatMul", "encoder", 6 * unit),
        ("/controller/blocks.3/attn/Softmax", "Softmax", "controller", 2 * unit),
    ]
    return {
        "batch": 4,
        "crops": 10,
        "calls": 2.5,
        "backend": "onnx",
        "total_s": sum(shares.values()) * unit,
        "parts": [{"part": part, "seconds": share * unit} for part, share in shares.items()],
        "layers": [
            dict(zip(("name", "op", "part", "seconds"), layer, strict=True))
            for layer in found
            if layers
        ],
        "note": "ONNX Runtime's own profile, medians of 10 rounds.",
    }


def trial(rate: float, single: float, met: bool, answered: int) -> dict[str, Any]:
    """Of 120 images planned; `rate` is over that of one image after another."""
    latency = statistics(times((1 + 9 * rate**4) * single, answered, round(100 * rate)))
    counted = {"planned": 120, "queries": answered}
    return {"rate": rate / single, "p99": latency["p99"], **counted, "met": met, "latency": latency}


def scenarios(single: float) -> dict[str, Any]:
    answered = {0.5: 120, 1.0: 9, 0.7: 120, 0.84: 61}
    trials = [trial(rate, single, count == 120, count) for rate, count in answered.items()]
    return {
        "single_stream": statistics(times(single, 200, 7)),
        "multi_stream": {"images_per_query": 8} | statistics(times(7.5 * single, 50, 8)),
        "server": {
            "bound_s": 5 * single,
            "images_per_s": 0.7 / single,
            "trials": trials,
            "note": None,
        },
        "offline": {"images": 400, "seconds": 380 * single, "images_per_s": 400 / 380 / single},
    }


def cpu() -> dict[str, Any]:
    """A CPU with several contenders, some left out."""
    medians = {
        "engine": 0.31,
        "engine again": 0.312,
        "eager-dense": 1.93,
        "eager-reduced": 0.62,
        "torch.compile": 0.48,
        "onnx-dense": 0.9,
        "backbones": 0.29,
    }
    sizes = (1, 2, 4, 8)
    batches = [batch(size, {n: m * size**0.93 for n, m in medians.items()}, 30) for size in sizes]
    alone = [batch(size, {"engine": 0.3 * size**0.93}, 30) for size in sizes]
    return head() | {
        "bundle": {
            "preset": "official",
            "engine": "model.onnx",
            "backend": "onnx",
            "precision": "fp32",
            "session": "onnxruntime 1.31.0, CPUExecutionProvider, 1 thread",
            "sha256": "0123456789abcdef" * 4,
            "bytes": 457_000_000,
        },
        "against": {},
        "agreement": {"engine": 1.3e-7, "eager-dense": 0.0},
        "gpus_after": [],
        "weights": "random",
        "boundaries": {
            "kernel": "part of engine_gpu: a CPU has no kernels apart",
            "engine_gpu": "part of engine_e2e: computing alone, tensors prepared",
            "engine_e2e": "uint8 pixels in, arrays out",
            "image_e2e": "bytes of a file in, Score out",
        },
        "noise_floor": batches[0]["ratio"]["engine again"],
        "cold_start": {
            "import_s": 0.21,
            "load_s": 0.84,
            "first_inference_s": 0.41,
            "resident_bytes": 640_000_000,
            "peak_bytes": 1_100_000_000,
        },
        "memory": {"host_peak_bytes": 3_400_000_000, "device_peak_bytes": None},
        "energy": {"joules_per_image": None, "source": "this platform does not report energy"},
        "left_out": {"tensorrt": "no NVIDIA GPU", "onnx-cuda": "no CUDA device was found"},
        "batches": batches,
        "engine_gpu": [{key: one[key] for key in ("batch", "latency")} for one in alone],
        "image": {
            "crops": 4,
            "photographs": 0,
            "preprocess": statistics(times(0.02, 30, 9)),
            "image_e2e": statistics(times(1.25, 30, 10)),
        },
        "scenarios": scenarios(1.25),
        "profile": profile(0.003),
        "roofline": {
            "flop_per_image": 37_015_931_584,
            "weight_bytes": 456_669_976,
            "peak_flops": 1.3e11,
            "bandwidth": 1.4e10,
            "source": "FLOP counted by PyTorch; the roof was measured here.",
        },
        "warnings": ["eager-dense, batch 1: cv 12 %, the mean says little"],
    }


def bare() -> dict[str, Any]:
    """Nothing but one engine and one batch of three calls; all that may be missing is."""
    report = cpu()
    report["machine"] |= {"threads": None, "versions": {}, "cpu": ""}
    report["source"] |= {"commit": None}
    report["bundle"] |= {"bytes": 1000}
    del report["bundle"]["sha256"]
    for missing in ("against", "agreement", "gpus_after", "roofline"):
        del report[missing]
    return report | {
        "boundaries": {},
        "noise_floor": None,
        "cold_start": None,
        "left_out": {},
        "batches": [batch(1, {"engine": 0.31}, 3)],
        "engine_gpu": [],
        "image": None,
        "scenarios": {"server": {"bound_s": 0.1, "images_per_s": None, "trials": [], "note": None}},
        "profile": None,
        "warnings": [],
    }


def gpu() -> dict[str, Any]:
    """Fast, far apart, on many batches, with contenders whose names are long or hostile."""
    report = cpu()
    card = {"name": f"NVIDIA H100 {HOSTILE}", "driver_version": "580.95", "clocks.sm": "1980 MHz"}
    report["machine"] |= {"gpus": [card]}
    report["bundle"] |= {"backend": "tensorrt", "precision": "fp16"}
    medians = {
        "engine": 0.0008,
        "engine again": 0.0008,
        "eager-dense": 0.041,
        "tensorrt-rtx": 0.0009,
        "onnx-tensorrt": 0.0011,
        "onnx-cuda": 0.003,
        "aotinductor": 0.0021,
        "torch.compile": 0.0022,
        "pyiqa:a-metric-whose-name-is-longer-than-anyone-would-think": 0.006,
        HOSTILE: 0.004,
    }
    sizes = (1, 2, 3, 4, 8, 15, 16, 64)
    batches = [
        batch(size, {n: m * (1 + size / 4) for n, m in medians.items()}, 100) for size in sizes
    ]
    return report | {
        "command": f"drx bench {HOSTILE}",
        "against": {"other: model.engine": report["bundle"]},
        "gpus_after": [card | {"clocks.sm": "1410 MHz"}],
        "memory": {"host_peak_bytes": 2_000_000_000, "device_peak_bytes": 900_000_000},
        "energy": {"joules_per_image": 0.21, "source": "nvidia-smi's power.draw"},
        "left_out": {HOSTILE: HOSTILE},
        "batches": batches,
        "engine_gpu": [
            {"batch": one["batch"], "latency": {"engine": one["latency"]["engine"]}}
            for one in batches
        ],
        "scenarios": scenarios(0.004),
        "profile": profile(0.00001, layers=False) | {"note": HOSTILE},
        "roofline": report["roofline"]
        | {"peak_flops": 7.1e14, "bandwidth": 2.6e12, "weight_bytes": 228_334_988},
        "warnings": [HOSTILE],
    }


REPORTS = {"cpu": cpu, "bare": bare, "gpu": gpu}
