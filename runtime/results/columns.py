"""The scores in a result file as columns, which millions of images fit into."""

import os
from array import array
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from drexperts.runtime.digests import identity_of
from drexperts.runtime.errors import UserError
from drexperts.runtime.progress import SILENT, Progress
from drexperts.runtime.results.rows import Contract, result_rows

_TOLD = 10_000  # rows between two reports of progress
_DIGEST = "S16"  # what `identity_of` returns


@dataclass(frozen=True, eq=False)
class ResultColumns:
    """The scores in a result file, in the order of its rows; 24 bytes for each.

    path: the file, or its URL
    identities: bytes [n], which stand for the sources, see `identity_of`
    values: float64 [n], NaN where there is an error
    """

    path: str
    contract: Contract
    identities: NDArray[np.bytes_]
    values: NDArray[np.float64]


def read_columns(path: str | os.PathLike[str], progress: Progress = SILENT) -> ResultColumns:
    """The columns of a `.jsonl`, `.csv` or `.parquet` file, or of the URL of one.

    A last row that a killed run left incomplete is passed over.

    Raises UserError for a file that is empty or holds something else, with rows of several runs, or
    with two rows of one image; for a URL that cannot be read; and OSError.
    """
    name = os.fspath(path)
    contract: Contract | None = None
    identities, values = bytearray(), array("d")
    for number, row in result_rows(name):
        if contract is None:
            contract = row.contract
        elif row.contract != contract:
            raise _of_two_runs(name, number, row.contract, contract)
        identities += identity_of(row.source)
        values.append(row.value)
        if number % _TOLD == 0:
            progress(f"reading {name}", number)
    if contract is None:
        raise UserError(f"{name!r} holds no row: name a file that scores were written to")
    columns = ResultColumns(
        name, contract, np.frombuffer(identities, _DIGEST), np.frombuffer(values)
    )
    _check_unique(columns)
    return columns


def _of_two_runs(path: str, number: int, found: Contract, first: Contract) -> UserError:
    return UserError(
        f"{path!r} holds scores of several runs, which do not compare: the fingerprint of row "
        f"{number + 1} is {found.fingerprint}, of row 1 {first.fingerprint}; keep those of one"
    )


def _check_unique(columns: ResultColumns) -> None:
    order = np.argsort(columns.identities, kind="stable")
    ordered = columns.identities[order]
    (twice,) = np.nonzero(ordered[1:] == ordered[:-1])
    if len(twice):
        number = int(order[twice[0] + 1])
        ((_, row),) = result_rows(columns.path, {number})
        raise UserError(
            f"{columns.path!r} has {row.source!r} twice, again in row {number + 1}: keep one row "
            "per image"
        )
