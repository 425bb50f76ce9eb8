"""The numbers that the authors report in tables 1 to 5. They measured them, we did not.

Fu, Qin, Zhang, Huang, Li, Hu: DR.Experts, AAAI 2026. Data sets have our names. `*` marks methods
that were pre-trained on quality. According to the paper, numbers are medians over ten splits; the
released scripts choose the epoch of each split by its test images, and keep the best ten of more
than ten splits.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

SOURCE = "Fu et al., DR.Experts, AAAI 2026"
OURS = "DR.Experts"

# How many images each data set has. For BID the paper says 590, but only 586 are rated.
IMAGES = {"koniq10k": 10073, "livec": 1162, "spaq": 11125, "livefb": 39810, "bid": 586}


class ReportedCorrelations(NamedTuple):
    """The correlations of scores with labels. Table 2 of the paper has no PLCC."""

    srcc: float
    plcc: float | None


@dataclass(frozen=True)
class Table:
    """One table of the paper.

    rows: the cells of each method or variant; None where the paper has a dash
    """

    title: str
    columns: tuple[str, ...]
    rows: Mapping[str, tuple[ReportedCorrelations | None, ...]]

    def cell(self, row: str, column: str) -> ReportedCorrelations | None:
        """The reported numbers; None for a dash, and for a row or column that does not exist."""
        if row not in self.rows or column not in self.columns:
            return None
        return self.rows[row][self.columns.index(column)]


def _pairs(cells: Sequence[float | None]) -> tuple[ReportedCorrelations | None, ...]:
    """Cells from a list in which SRCC and PLCC alternate."""
    pairs = zip(cells[::2], cells[1::2], strict=True)
    return tuple(None if srcc is None else ReportedCorrelations(srcc, plcc) for srcc, plcc in pairs)


def _ranks(*cells: float) -> tuple[ReportedCorrelations | None, ...]:
    return tuple(ReportedCorrelations(srcc, None) for srcc in cells)


_BOTH = ("koniq10k", "livec")
_NONE = (None, None)


def reduced_column(dataset: str, percent: int) -> str:
    """The column of table 3 for a data set and a share of it."""
    return f"{dataset} {percent} %"


def transfer_column(training: str, target: str) -> str:
    """The column of table 2 for training on one data set and testing on another."""
    return f"{training} to {target}"


# fmt: off
_TABLE_1 = {
    "ILNIQE": _pairs((.503, .496, .453, .511, .719, .654, .219, .255, .495, .454)),
    "BRISQUE": _pairs((.715, .702, .601, .621, .802, .806, .320, .356, .574, .540)),
    "WaDIQaM-NR": _pairs((.729, .754, .692, .730, .840, .845, .435, .430, .653, .636)),
    "DB-CNN": _pairs((.878, .887, .844, .862, .910, .913, .554, .652, .845, .850)),
    "HyperIQA": _pairs((.906, .917, .859, .882, .916, .919, .535, .623, .869, .878)),
    "MUSIQ": _pairs((.916, .928, .702, .746, .917, .921, *_NONE, .646, .739)),
    "TReS": _pairs((.915, .928, .846, .877, *_NONE, .554, .625, *_NONE)),
    "DEIQT": _pairs((.921, .934, .875, .894, .919, .923, .571, .663, *_NONE)),
    "CONTRIQUE*": _pairs((.894, .906, .845, .857, .914, .919, .580, .641, *_NONE)),
    "QPT*": _pairs((.927, .941, .895, .914, .925, .928, .578, .675, .888, .911)),
    "QCN": _pairs((.934, .945, .875, .893, .923, .928, *_NONE, .892, .890)),
    "QFM-IQM": _pairs((.922, .936, .891, .913, .920, .924, .567, .667, *_NONE)),
    "LoDa": _pairs((.932, .944, .876, .899, .925, .928, .578, .679, *_NONE)),
    "LQMamba": _pairs((.928, .943, .863, .903, .927, .933, .574, .672, *_NONE)),
    OURS: _pairs((.941, .954, .914, .926, .928, .933, .585, .690, .896, .919)),
}
_TABLE_2 = {
    "DBCNN": _ranks(.716, .724, .754, .755),
    "P2P-BM": _ranks(.755, .738, .740, .770),
    "HyperIQA": _ranks(.758, .735, .772, .785),
    "TReS": _ranks(.713, .740, .733, .786),
    "DEIQT": _ranks(.733, .781, .744, .794),
    "LoDa": _ranks(.763, .805, .745, .811),
    OURS: _ranks(.783, .807, .785, .841),
}
_TABLE_3 = {
    "HyperNet": _pairs((.869, .873, .776, .809, .892, .908, .832, .849, .901, .914, .843, .862)),
    "DEIQT": _pairs((.888, .908, .792, .822, .903, .922, .838, .855, .914, .931, .848, .877)),
    "LoDa": _pairs((.907, .923, .815, .854, .922, .935, .849, .879, .928, .940, .869, .891)),
    OURS: _pairs((.917, .931, .837, .861, .929, .942, .874, .896, .939, .950, .899, .914)),
}
_TABLE_4 = {
    "Image encoder": _pairs((.916, .929, .857, .884)),
    "DA-CLIP": _pairs((.720, .754, .587, .635)),
    "DSDM": _pairs((.930, .941, .885, .904)),
    "Full": _pairs((.941, .954, .914, .926)),
}
_TABLE_5 = {
    "Only Dis": _pairs((.933, .944, .897, .912)),
    "Only Sem": _pairs((.936, .944, .899, .913)),
    "Only Bri": _pairs((.936, .947, .897, .914)),
    "w/o Dis": _pairs((.938, .948, .913, .918)),
    "w/o Sem": _pairs((.940, .951, .911, .919)),
    "w/o Bri": _pairs((.939, .950, .909, .916)),
    "Full": _pairs((.941, .954, .914, .926)),
}
# fmt: on

TRANSFERS = (
    ("livefb", "koniq10k"),
    ("livefb", "livec"),
    ("livec", "koniq10k"),
    ("koniq10k", "livec"),
)
PERCENTS = (20, 40, 60)

TABLES = {
    "table1": Table("One data set, 80 % for training", (*_BOTH, "spaq", "livefb", "bid"), _TABLE_1),
    "table2": Table(
        "Trained on one data set, tested on another",
        tuple(transfer_column(*transfer) for transfer in TRANSFERS),
        _TABLE_2,
    ),
    "table3": Table(
        "Trained on a part of the data",
        tuple(reduced_column(name, percent) for percent in PERCENTS for name in _BOTH),
        _TABLE_3,
    ),
    "table4": Table("Modules", _BOTH, _TABLE_4),
    "table5": Table("Feature groups of the expert weighting", _BOTH, _TABLE_5),
}
