"""The cells of the paper's tables that can be measured here, and the training behind each."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from drexperts.paper.reported import (
    OURS,
    PERCENTS,
    TABLES,
    TRANSFERS,
    reduced_column,
    transfer_column,
)
from drexperts.runtime.errors import UserError

_MODULES = {"Image encoder": "encoder", "DA-CLIP": "daclip", "DSDM": "dsdm", "Full": "full"}
_GROUPS = {
    "Only Dis": "only_dis",
    "Only Sem": "only_sem",
    "Only Bri": "only_bri",
    "w/o Dis": "no_dis",
    "w/o Sem": "no_sem",
    "w/o Bri": "no_bri",
    "Full": "full",
}
# The images that a training is tested on, as the page names them.
OWN_TEST, WHOLE_TARGET, PART_OF_TARGET = "test part", "whole target set", "20 % of the target set"


@dataclass(frozen=True)
class Training:
    """A training, apart from its split.

    share: percent of the data set to learn from, or "all" of the split's training part
    variant: one of `drexperts.model.ablations`
    """

    dataset: str
    share: str = "all"
    variant: str = "full"

    @property
    def name(self) -> str:
        """The name of its folder."""
        share = "" if self.share == "all" else f"-{self.share}-percent"
        return f"{self.dataset}-{self.variant}{share}"


@dataclass(frozen=True)
class Cell:
    """A cell of a table: the training it needs, and the other data set it is tested on, if any."""

    row: str
    column: str
    training: Training
    target: str | None = None

    @property
    def tests(self) -> tuple[str, ...]:
        """The sets of images it is tested on. The released code tests on a part of a target."""
        return (OWN_TEST,) if self.target is None else (WHOLE_TARGET, PART_OF_TARGET)


def cells_of(table: str) -> tuple[Cell, ...]:
    """The cells of a table that can be measured here, column by column.

    Raises UserError for a table that the paper does not have.
    """
    if table not in TABLES:
        raise UserError(f"there is no {table} in the paper: choose one of {', '.join(TABLES)}")
    if table == "table1":
        return tuple(Cell(OURS, name, Training(name)) for name in TABLES[table].columns)
    if table == "table2":
        return tuple(
            Cell(OURS, transfer_column(training, target), Training(training), target)
            for training, target in TRANSFERS
        )
    both = TABLES["table4"].columns
    if table == "table3":
        return tuple(
            Cell(OURS, reduced_column(name, percent), Training(name, str(percent)))
            for percent, name in product(PERCENTS, both)
        )
    rows = _MODULES if table == "table4" else _GROUPS
    return tuple(
        Cell(row, name, Training(name, variant=variant))
        for name, (row, variant) in product(both, rows.items())
    )


def choose(cells: Sequence[Cell], only: Sequence[str]) -> list[Cell]:
    """The cells of the named data sets, variants and shares.

    A kind of name that `only` does not mention stays unrestricted.

    Raises UserError for a name that belongs to none of the cells.
    """
    named = {
        kind: {getattr(cell.training, kind) for cell in cells}
        for kind in ("dataset", "variant", "share")
    }
    known = set().union(*named.values())
    if unknown := [name for name in only if name not in known]:
        raise UserError(f"--only {unknown[0]} is not in this table: {', '.join(sorted(known))}")
    wanted = {kind: names & set(only) or names for kind, names in named.items()}
    return [
        cell
        for cell in cells
        if all(getattr(cell.training, kind) in names for kind, names in wanted.items())
    ]
