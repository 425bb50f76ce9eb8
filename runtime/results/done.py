"""The images that a result file has a row of."""

from drexperts.runtime.digests import SourceSet


class DoneSources:
    """Sources with a row, and whether the row holds a score; 16 bytes each, see `SourceSet`."""

    def __init__(self) -> None:
        self._scored, self._failed = SourceSet(), SourceSet()

    def __len__(self) -> int:
        return len(self._scored) + len(self._failed)

    def __contains__(self, source: str) -> bool:
        return source in self._scored or source in self._failed

    def add(self, source: str, *, scored: bool) -> None:
        """Add the source of a row."""
        (self._scored if scored else self._failed).add(source)

    def is_scored(self, source: str) -> bool:
        """Whether there is a row with a score."""
        return source in self._scored

    @property
    def any_failed(self) -> bool:
        """Whether there is a row with an error."""
        return len(self._failed) > 0

    def forget_failed(self) -> None:
        """Their rows are no longer there."""
        self._failed = SourceSet()
