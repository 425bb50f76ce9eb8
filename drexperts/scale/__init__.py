"""Scoring in the frameworks that people run over many machines.

Example:
    from drexperts.scale import Scoring

    table.map_batches(Scoring, fn_constructor_args=["bundle/"], batch_format="pyarrow", ...)

`drexperts.scale.ray` scores files on a cluster of Ray without a pipeline of one's own.
"""

from typing import TYPE_CHECKING

from drexperts.runtime.lazy import lazy_exports

if TYPE_CHECKING:
    from drexperts.scale.scoring import Scoring

__all__ = ["Scoring"]

__getattr__ = lazy_exports(__name__, {"Scoring": "scoring"})
