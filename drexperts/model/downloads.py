"""Published weights from the Hugging Face Hub: of a fixed revision, without a token, and hashed.

A file is checked against the SHA-256 that is pinned here for its revision. Where none is known, the
first one seen is recorded in the user's cache, and every later download must agree with it.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import hf_hub_download

from drexperts.runtime.errors import WeightsError
from drexperts.runtime.files import written_whole
from drexperts.runtime.manifest import sha256_of
from drexperts.runtime.places import cache_folder
from drexperts.runtime.quoting import shortened

Note = Callable[[str], None]


class Pin(NamedTuple):
    """The commit of a repository, and the SHA-256 of the file in it; None: not known."""

    revision: str
    sha256: str | None = None


# By repository. Others have the revision of their first download.
PINS = {
    "timm/deit3_small_patch16_224.fb_in22k_ft_in1k": Pin(
        "0c14598baba9dff214e388f4ea18a1ccf40f3981"
    ),
    "timm/deit3_base_patch16_384.fb_in22k_ft_in1k": Pin("1774962b6c3a39efe50bd68db159e54907fe2723"),
    "weblzw/daclip-uir-ViT-B-32-irsde": Pin("52c9ac6b578e2b766b9f37aad66328483e05598d"),
}


def fetch(repository: str, filename: str, note: Note) -> Path:
    """The path of a Hugging Face repository's file, downloaded unless it is in the cache.

    note: told once which revision and SHA-256 were recorded

    Raises WeightsError if the file cannot be downloaded, or is not the one that was recorded.
    """
    name = f"{repository}/{filename}"
    known = PINS.get(repository) or _recorded().get(name)
    path = _download(repository, filename, "main" if known is None else known.revision)
    found = Pin(_commit_of(path) if known is None else known.revision, sha256_of(path))
    if known is None or known.sha256 is None:
        known = _recorded().get(name)
    if known is None or known.revision != found.revision:
        _record(name, found, note)
    elif known != found:
        raise WeightsError(
            f"{path} has the SHA-256 {found.sha256}, but {known.sha256} is recorded for {name} at "
            f"revision {found.revision}: the file is damaged or was replaced. Remove it to "
            "download it again, or pass a file that you trust instead"
        )
    return path


def _download(repository: str, filename: str, revision: str) -> Path:
    try:
        return Path(hf_hub_download(repository, filename, revision=revision, token=False))
    except Exception as error:  # the hub's own errors, its HTTP client's or the system's
        url = f"https://huggingface.co/{repository}/resolve/{revision}/{filename}"
        raise WeightsError(
            f"could not download {filename} of {repository} ({type(error).__name__}). "
            f"Download {url} on a machine with a network and pass the file's path instead"
        ) from error


def _commit_of(path: Path) -> str:
    """The commit from the hub's cache, which keeps files under snapshots/COMMIT/."""
    commit = path.parent.name
    if not re.fullmatch("[0-9a-f]{40}", commit):
        raise WeightsError(f"{path} does not lie in a commit's folder: remove it to download again")
    return commit


def _records() -> Path:
    return cache_folder() / "downloads.json"


def _recorded() -> dict[str, Pin]:
    """What was downloaded before, by repository and file."""
    try:
        content = json.loads((path := _records()).read_text(encoding="utf-8"))
        return {str(name): Pin(*map(str, pin)) for name, pin in content.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(
            f"{path} cannot be read: {shortened(str(error))}. It records the SHA-256 of downloads: "
            "restore it, or remove it to record them anew"
        ) from error


def _record(name: str, pin: Pin, note: Note) -> None:
    text = f"{name} at revision {pin.revision} has the SHA-256 {pin.sha256}"
    try:
        path = _records()
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as aside:
            aside.write_text(json.dumps(_recorded() | {name: pin}, indent=1), encoding="utf-8")
    except OSError as error:
        where = error.filename or "the user's cache"
        note(f"{text}, which could not be recorded in {where}: {error.strerror}")
    else:
        note(f"{text}, recorded in {path}: later downloads must agree")
