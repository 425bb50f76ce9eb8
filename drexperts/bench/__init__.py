"""Measurements: a bundle's engine beside baselines, and a step of training.

Example:
    from drexperts.bench import BenchOptions, bench

    report = bench("bundle", BenchOptions(baselines=("eager-dense",)))
    report.batches[0].ratio("eager-dense").p50  # times as slow as the engine
"""

from typing import TYPE_CHECKING

from drexperts.runtime.lazy import lazy_exports

if TYPE_CHECKING:
    from drexperts.bench.bundle import BenchOptions, bench
    from drexperts.bench.reports import BenchReport, TrainingReport
    from drexperts.bench.training_step import bench_training

__all__ = ["BenchOptions", "BenchReport", "TrainingReport", "bench", "bench_training"]

__getattr__ = lazy_exports(
    __name__,
    {
        "BenchOptions": "bundle",
        "BenchReport": "reports",
        "TrainingReport": "reports",
        "bench": "bundle",
        "bench_training": "training_step",
    },
)
