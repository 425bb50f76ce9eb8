"""A result file of the form that its name asks for."""

from pathlib import Path
from typing import Any, Protocol

from drexperts.runtime.results.done import DoneSources
from drexperts.runtime.results.parquet_results import ParquetResults
from drexperts.runtime.results.result_file import ResultFile
from drexperts.runtime.score import Score


class ResultWriter(Protocol):
    """Rows that are written one by one, and those that were there. A context manager.

    done: the sources of the rows that were there
    """

    done: DoneSources

    @property
    def files(self) -> list[Path]:
        """The files with the rows. Of two rows of a source, that in an earlier file counts."""
        ...

    def append(self, score: Score) -> None:
        """Write one row, which survives a kill from then on."""
        ...

    def __enter__(self) -> Any: ...
    def __exit__(self, *error: Any) -> None: ...


def open_results(path: Path, **options: Any) -> ResultWriter:
    """Begin or continue a `.jsonl`, `.csv` or `.parquet` file; the options are `ResultFile`'s."""
    if path.suffix.lower() == ".parquet":
        return ParquetResults(path, **options)
    return ResultFile(path, **options)
