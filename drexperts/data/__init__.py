"""Rated images: data sets, splits, crops for training, and synthetic distortions.

Example:
    from drexperts.data import SynthConfig, make_splits, open_dataset, synthesise

    made = synthesise("photos", "set", SynthConfig(types=("jpeg", "white_noise")))
    dataset = open_dataset("folder", made.labels)
    splits = make_splits(dataset)
"""

from typing import TYPE_CHECKING

from drexperts.runtime.lazy import lazy_exports

if TYPE_CHECKING:
    from drexperts.data.dataset import Dataset, Sample, higher_is_better
    from drexperts.data.layouts import open_dataset
    from drexperts.data.recipes import RECIPES
    from drexperts.data.splits import Split, Splits, make_splits, read_splits, write_splits
    from drexperts.data.synthetic_set import SynthConfig, SyntheticSet, synthesise

__all__ = [
    "RECIPES",
    "Dataset",
    "Sample",
    "Split",
    "Splits",
    "SynthConfig",
    "SyntheticSet",
    "higher_is_better",
    "make_splits",
    "open_dataset",
    "read_splits",
    "synthesise",
    "write_splits",
]

_HOMES = {
    "dataset": ("Dataset", "Sample", "higher_is_better"),
    "layouts": ("open_dataset",),
    "recipes": ("RECIPES",),
    "splits": ("Split", "Splits", "make_splits", "read_splits", "write_splits"),
    "synthetic_set": ("SynthConfig", "SyntheticSet", "synthesise"),
}
__getattr__ = lazy_exports(__name__, {name: home for home in _HOMES for name in _HOMES[home]})
