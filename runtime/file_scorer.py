"""What scoring files needs of a Scorer, so that it can be one whose engines are elsewhere."""

from collections.abc import Iterable, Iterator
from typing import Protocol

from drexperts.runtime.decoding.decoders import Decoder
from drexperts.runtime.errors import UserError
from drexperts.runtime.manifest import Manifest
from drexperts.runtime.score import Score
from drexperts.runtime.wording import remedy
from drexperts.runtime.work import Item


class FileScorer(Protocol):
    """Scores a stream of images; see `Scorer`, which is one."""

    @property
    def manifest(self) -> Manifest:
        """Of the bundle."""
        ...

    @property
    def batch(self) -> int:
        """How many images share batches: scores do not depend on others."""
        ...

    @property
    def decoder(self) -> Decoder:
        """What reads images in this process, as the engines do."""
        ...

    def fingerprint(self) -> str:
        """See `Scorer.fingerprint`."""
        ...

    def check_ready(self, maps: bool) -> None:
        """See `Scorer.check_ready`."""
        ...

    def score_stream(self, sources: Iterable[Item], *, maps: bool = False) -> Iterator[Score]:
        """See `Scorer.score_stream`."""
        ...


def check_maps(manifest: Manifest, maps: bool) -> None:
    """Raise UserError for maps that a bundle lacks."""
    if maps and "maps" not in manifest.outputs:
        again = remedy("without --no-maps", "with maps=True")
        raise UserError(f"this bundle has no maps: export it again {again}")
