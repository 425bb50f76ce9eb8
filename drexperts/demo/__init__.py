"""Every stage on a small model: training, export, proof, scores, measurements, and a page.

Importing this package needs no torch.

Example:
    from drexperts.demo import run_demo

    report = run_demo("runs/demo")
    print(report.passed, report.page)
"""

from typing import TYPE_CHECKING

from drexperts.runtime.lazy import lazy_exports

if TYPE_CHECKING:
    from drexperts.demo.run import DemoReport, run_demo

__all__ = ["DemoReport", "run_demo"]

__getattr__ = lazy_exports(__name__, {"DemoReport": "run", "run_demo": "run"})
