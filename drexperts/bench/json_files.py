"""Reports of measurements as JSON files.

The standard library writes them, so that a machine needs nothing else to measure on. Pydantic, of
the extra `report`, checks them when they are read back.
"""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from drexperts.runtime.errors import UserError
from drexperts.runtime.files import written_whole

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Report = TypeVar("Report", bound="DataclassInstance")


def document(report: "DataclassInstance") -> dict[str, Any]:
    """A report's fields as JSON has them."""
    return dataclasses.asdict(report)


def write_json(report: "DataclassInstance", path: Path) -> None:
    """Write a report, whole or not at all. Raises ValueError for a number that is not finite."""
    # A command line may hold bytes that are no text.
    text = json.dumps(document(report), indent=1, allow_nan=False) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as aside:
        aside.write_text(text, encoding="utf-8", errors="backslashreplace")


def read_json(path: Path, kind: type[Report]) -> Report:
    """Read back what `write_json` wrote.

    Raises UserError for a file that is not a report of this kind, and OSError.
    """
    import pydantic

    try:
        return pydantic.TypeAdapter(kind).validate_json(path.read_text(encoding="utf-8"))
    except (pydantic.ValidationError, UnicodeDecodeError) as cause:
        raise UserError(f"{path} is not a {kind.__name__} of this version: {cause}") from cause
