"""What a model was trained on and how well it did, as its checkpoint and its bundles record it."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime

from drexperts.runtime.json_document import require, require_plain

CRITERIA = ("srcc", "plcc")
CHOSEN_ON = ("validation", "test", "last epoch")

_DIGEST = re.compile(r"[0-9a-f]{8,64}")
_MOST = 10**9
_TIME = "%Y-%m-%dT%H:%M:%SZ"


@dataclass(frozen=True, kw_only=True)
class Training:
    """What a model was trained on, and how well it did on images that it was not trained on.

    dataset: the name of the data set, "folder" for a label file
    data_digest: hex digits of its names and labels
    split_digest: hex digits of the names in each part of its split
    images: how many were trained on, validated on and tested on
    selected_on: the images that chose the epoch, "validation" or "test"; "last epoch" if none did
    selected_by: the correlation that chose it, "srcc" or "plcc"; None if the last epoch was taken
    epoch: the epoch that was kept, from 1
    srcc, plcc: on the images tested on; None before the test, and where they are not defined
    when: the time at which the model was tested, or kept before that, in UTC, such as
        "2026-11-28T20:00:00Z"

    Raises ConfigError for a value that is out of range or not plain.
    """

    dataset: str
    data_digest: str
    split_digest: str
    images: tuple[int, ...]
    selected_on: str
    selected_by: str | None
    epoch: int
    when: str
    srcc: float | None = None
    plcc: float | None = None

    def __post_init__(self) -> None:
        require_plain("dataset", self.dataset)
        for name in ("data_digest", "split_digest"):
            fits = _DIGEST.fullmatch(getattr(self, name)) is not None
            require(fits, f"{name} must be 8 to 64 hex digits")
        counted = len(self.images) == 3 and all(0 <= count <= _MOST for count in self.images)
        require(counted, f"images must be three counts of at most {_MOST}")
        require(self.selected_on in CHOSEN_ON, f"selected_on must be one of {CHOSEN_ON}")
        chosen = self.selected_on != "last epoch"
        known = self.selected_by in CRITERIA if chosen else self.selected_by is None
        require(known, f"selected_by must be one of {CRITERIA}, and null for the last epoch")
        require(1 <= self.epoch <= _MOST, f"epoch must be 1 to {_MOST}")
        for name in CRITERIA:
            value = getattr(self, name)
            require(value is None or -1 <= value <= 1, f"{name} must be -1 to 1")
        require(_is_time(self.when), "when must be a time in UTC such as 2026-11-28T20:00:00Z")

    @property
    def choice(self) -> str:
        """How the epoch was chosen, see `choice`."""
        return choice(self.selected_on, self.selected_by)


def choice(on: str, by: str | None) -> str:
    """How an epoch is chosen, such as "chosen by the SRCC of the validation images".

    It follows "epoch 3, " and "the epoch to keep is ". The last is kept where no image was held
    back, and where no correlation is defined.
    """
    if by is None:
        return "the last, as there is nothing to choose it by"
    return f"chosen by the {by.upper()} of the {on} images"


def utc_now() -> str:
    """The time, as `Training.when` has it."""
    return datetime.now(UTC).strftime(_TIME)


def _is_time(text: str) -> bool:
    try:
        return datetime.strptime(text, _TIME).strftime(_TIME) == text
    except ValueError:
        return False
