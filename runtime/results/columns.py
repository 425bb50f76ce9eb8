"""The scores in a result file as columns, which millions of images fit into."""

import os
from array import array
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from drexperts.runtime.digests import identity_of
from drexperts.runtime.errors import UserError
from drexperts.runtime.progress import SILENT, Progress
from drexperts.runtime.results.rows import Contract, ResultRow, result_rows

_TOLD = 10_000  # rows between two reports of progress
_DIGEST = "S16"  # what `identity_of` returns


@dataclass(frozen=True, eq=False)
class ResultColumns:
    """The scores of the images in a result file, in the order of its rows; 24 bytes for each.

    path: the file, or its URL
    videos: int64, the numbers of the rows of videos, which are left out
    identities: bytes [n], which stand for the sources, see `identity_of`
    values: float64 [n], NaN where there is an error
    """

    path: str
    contract: Contract
    videos: NDArray[np.int64]
    identities: NDArray[np.bytes_]
    values: NDArray[np.float64]

    def rows(self, places: Iterable[int]) -> dict[int, ResultRow]:
        """The rows of the images at these places, by place."""
        numbers = {place: self.number(place) for place in places}
        found = dict(result_rows(self.path, set(numbers.values())) if numbers else ())
        return {place: found[number] for place, number in numbers.items()}

    def number(self, place: int) -> int:
        """The number of the row of the image at a place, videos counted."""
        before = self.videos - np.arange(len(self.videos))  # images before each
        return place + int(before.searchsorted(place, "right"))


def read_columns(path: str | os.PathLike[str], progress: Progress = SILENT) -> ResultColumns:
    """The columns of a `.jsonl`, `.csv` or `.parquet` file, or of the URL of one.

    A last row that a killed run left incomplete is passed over.

    Raises UserError for a file without a row of an image or of something else, with rows of several
    runs, or with two rows of one image; for a URL that cannot be read; and OSError.
    """
    name = os.fspath(path)
    contract: Contract | None = None
    videos, identities, values = array("q"), bytearray(), array("d")
    for number, row in result_rows(name):
        if contract is None:
            contract = row.contract
        elif row.contract != contract:
            raise _of_two_runs(name, number, row.contract, contract)
        if row.frames is None:
            identities += identity_of(row.source)
            values.append(row.value)
        else:
            videos.append(number)
        if number % _TOLD == 0:
            progress(f"reading {name}", number)
    if contract is None or not values:
        raise UserError(f"{name!r} holds no row of an image: name a file of scores")
    columns = ResultColumns(
        name,
        contract,
        np.array(videos),
        np.frombuffer(identities, _DIGEST),
        np.frombuffer(values),
    )
    _check_unique(columns)
    return columns


def _of_two_runs(path: str, number: int, found: Contract, first: Contract) -> UserError:
    name = next(name for name in Contract._fields if getattr(found, name) != getattr(first, name))
    other, one = (getattr(contract, name) for contract in (found, first))
    return UserError(
        f"{path!r} holds scores of several runs, which do not compare: {name} of row {number + 1} "
        f"is {other}, of row 1 {one}; keep those of one"
    )


def _check_unique(columns: ResultColumns) -> None:
    order = np.argsort(columns.identities, kind="stable")
    ordered = columns.identities[order]
    (twice,) = np.nonzero(ordered[1:] == ordered[:-1])
    if len(twice):
        place = int(order[twice[0] + 1])
        source, number = columns.rows([place])[place].source, columns.number(place)
        raise UserError(
            f"{columns.path!r} has {source!r} twice, again in row {number + 1}: keep one row per "
            "image"
        )
