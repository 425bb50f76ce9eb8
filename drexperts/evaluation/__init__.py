"""How models follow people's scores and each other's, and where their experts look.

Example:
    from drexperts.data import open_dataset
    from drexperts.evaluation import evaluate

    dataset = open_dataset("koniq10k", "KonIQ-10k")
    print(evaluate(["best.safetensors"], dataset).models[0].median.srcc)
"""

from typing import TYPE_CHECKING

from drexperts.runtime.lazy import lazy_exports

if TYPE_CHECKING:
    from drexperts.evaluation.attention_maps import explain
    from drexperts.evaluation.compare import Evaluation, evaluate, write_predictions
    from drexperts.evaluation.metrics import Metrics, compute_metrics
    from drexperts.evaluation.upgrade import compare_results
    from drexperts.evaluation.upgrade_page import write_comparison_page
    from drexperts.evaluation.upgrade_result import ResultComparison

__all__ = [
    "Evaluation",
    "Metrics",
    "ResultComparison",
    "compare_results",
    "compute_metrics",
    "evaluate",
    "explain",
    "write_comparison_page",
    "write_predictions",
]

__getattr__ = lazy_exports(
    __name__,
    {
        "Evaluation": "compare",
        "Metrics": "metrics",
        "ResultComparison": "upgrade_result",
        "compare_results": "upgrade",
        "evaluate": "compare",
        "explain": "attention_maps",
        "compute_metrics": "metrics",
        "write_comparison_page": "upgrade_page",
        "write_predictions": "compare",
    },
)
