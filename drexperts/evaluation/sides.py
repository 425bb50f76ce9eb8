"""The two sides of a comparison: each a result file, or a bundle that scores images now."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from drexperts.runtime.errors import UserError
from drexperts.runtime.loading import load
from drexperts.runtime.manifest import FILE_NAME, ScoreScale, read_manifest
from drexperts.runtime.preprocess import Preprocessing
from drexperts.runtime.progress import Prefixed, Progress
from drexperts.runtime.results.columns import ResultColumns, read_columns
from drexperts.runtime.results.shard_files import shards_in
from drexperts.runtime.scoring import score_files
from drexperts.runtime.wording import remedy


@dataclass(frozen=True, kw_only=True)
class Side:
    """What is known of one of two sets of scores.

    name: the result file or its URL, or the bundle's folder
    fingerprint, scale, crops_per_side: see `Score`
    preprocessing: of a bundle; None for a result file, which does not record it
    images, failed: how many there are, and how many of them have an error in place of a score
    videos: how many rows of videos were left out; those of their frames are images
    """

    name: str
    fingerprint: str
    scale: ScoreScale
    crops_per_side: int | None
    preprocessing: Preprocessing | None
    images: int
    failed: int
    videos: int

    @property
    def grid(self) -> str:
        """The most crops along each axis, in words."""
        return "the bundle's own" if self.crops_per_side is None else str(self.crops_per_side)


@dataclass(frozen=True, eq=False)
class ScoredSide:
    """A side with its scores."""

    side: Side
    columns: ResultColumns


def check_sides(names: Sequence[str], images: Sequence[str]) -> list[Side]:
    """What the bundles among the sides say before they score anything.

    Raises UserError, before a result file is read, for bundles without images and the reverse.
    """
    folders = [name for name in names if os.path.isdir(name)]
    bundles = []
    for name in folders:
        if shards_in(held := os.listdir(name)) and FILE_NAME not in held:
            merge = remedy(f"`drx merge {name}`", "runtime.merge_shards")
            raise UserError(f"{name!r} holds shards of results: merge them first, with {merge}")
        bundles.append(_announced(name))
    if folders and not images:
        raise UserError(f"{folders[0]!r} is a bundle: name images, which it is to score")
    if images and not folders:
        raise UserError("images are scored by bundles, and both are result files: name no images")
    return bundles


def _announced(bundle: str) -> Side:
    manifest = read_manifest(bundle)
    return Side(
        name=bundle,
        fingerprint="",
        scale=manifest.scale,
        crops_per_side=None,
        preprocessing=manifest.preprocessing,
        images=0,
        failed=0,
        videos=0,
    )


def opened_side(
    name: str, images: Sequence[str], device: str, folder: Path, progress: Progress
) -> ScoredSide:
    """The scores of a result file, or of a bundle on images.

    folder: where a bundle's scores are kept, in a file

    Raises what `read_columns`, `runtime.load` and `score_files` raise.
    """
    if not os.path.isdir(name):
        return _side_of(name, read_columns(name, progress))
    out = folder / "scores.jsonl"
    with load(name, device, isolated=True) as scorer:
        told = Prefixed(progress, name)
        for passed in scorer.passed_over:
            told.note(f"{passed.file} ({passed.backend}) is not used: {passed.reason}")
        told.note(f"scoring with {scorer.engine.file} on {scorer.session.description}")
        score_files(scorer, images, out, progress=told)
        preprocessing = scorer.preprocessing
    found = _side_of(name, read_columns(out, progress))
    return replace(found, side=replace(found.side, preprocessing=preprocessing))


def _side_of(name: str, columns: ResultColumns) -> ScoredSide:
    contract = columns.contract
    side = Side(
        name=name,
        fingerprint=contract.fingerprint,
        scale=contract.scale,
        crops_per_side=contract.crops_per_side,
        preprocessing=None,
        images=len(columns.values),
        failed=int(np.isnan(columns.values).sum()),
        videos=len(columns.videos),
    )
    return ScoredSide(side, columns)
