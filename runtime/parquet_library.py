"""PyArrow's reader and writer of Parquet, imported where it is used."""

import importlib
from typing import Any

from drexperts.runtime.errors import MissingDependencyError
from drexperts.runtime.installing import install_command


def import_parquet() -> Any:
    """The module `pyarrow.parquet`. Raises MissingDependencyError if it is not installed."""
    try:
        return importlib.import_module("pyarrow.parquet")
    except ImportError as cause:
        raise MissingDependencyError(
            f"Parquet needs PyArrow: {install_command('parquet')}"
        ) from cause
