"""The tables of the paper: what its authors report, and what is measured here beside it.

Importing this package needs no torch.

Example:
    from drexperts.paper import reproduce

    done = reproduce("table1", "datasets", only=["livec"])
    for cell in done.cells:
        print(cell.column, cell.medians)
"""

from typing import TYPE_CHECKING

from drexperts.runtime.lazy import lazy_exports

if TYPE_CHECKING:
    from drexperts.paper.reported import TABLES
    from drexperts.paper.reproduction import ReproductionOptions, reproduce
    from drexperts.paper.results import Reproduction

__all__ = ["TABLES", "Reproduction", "ReproductionOptions", "reproduce"]

__getattr__ = lazy_exports(
    __name__,
    {
        "TABLES": "reported",
        "Reproduction": "results",
        "ReproductionOptions": "reproduction",
        "reproduce": "reproduction",
    },
)
