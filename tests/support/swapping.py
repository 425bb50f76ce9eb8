"""A file that another process exchanges between the moment it is checked and the next use."""

import hashlib
from pathlib import Path
from typing import Any

import pytest


def swap_after_hash(monkeypatch: pytest.MonkeyPatch, path: Path, content: bytes) -> None:
    """Let `path` hold `content` as soon as what it holds now was hashed."""
    before = hashlib.sha256(path.read_bytes()).digest()

    def swapping(function: Any) -> Any:
        def hashed(*arguments: Any, **options: Any) -> Any:
            found = function(*arguments, **options)
            if found.digest() == before:
                path.write_bytes(content)
            return found

        return hashed

    for name in ("sha256", "file_digest"):
        monkeypatch.setattr(hashlib, name, swapping(getattr(hashlib, name)))
