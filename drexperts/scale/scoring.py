"""A function from a batch of images to a batch of scores, for whoever runs such functions."""

import functools
import math
import os
import threading
from collections.abc import Sequence
from typing import Any, TypeAlias

from drexperts.runtime.errors import UserError
from drexperts.runtime.inputs.listed import failure
from drexperts.runtime.inputs.remote import is_remote, remote_image
from drexperts.runtime.loading import load
from drexperts.runtime.manifest import digest as digest_of_manifest
from drexperts.runtime.parquet_library import import_parquet
from drexperts.runtime.remote_bundle import absolute, manifest_of
from drexperts.runtime.results.parquet_table import table_of
from drexperts.runtime.scorer import Scorer
from drexperts.runtime.work import Item
from drexperts.scale.batches import cells_in, column_names, in_form_of

_Options: TypeAlias = tuple[tuple[str, Any], ...]


class Scoring:
    """Scores the images in a batch: columns in, columns out, one row per image in their order.

    It serves `map_batches` of Ray Data, `map(batched=True)` of Hugging Face's datasets,
    `mapInPandas` of Spark, `map_partitions` of Dask, and a loop. The result has the form of the
    batch, a table of Arrow, a DataFrame of pandas or a dictionary of lists, and the columns and
    types of a Parquet file of `drx score`. An image that cannot be read is a row with `error`.

    It can be pickled, and holds no engine: each process opens one for all of its Scorings when it
    scores for the first time, and only from the bundle that was there when this was made.

    bundle: the bundle's folder or its URL, which every process must be able to read
    image: the column of images: paths or URLs, the bytes of files, or Hugging Face's structs of
        `bytes` and `path`. Images that were decoded before are scored as well, with another
        fingerprint, see `Scorer.fingerprint`
    key: the column whose cells become the `source` of each row; None takes paths and URLs
        themselves
    keep: columns of the batch to add to the result
    options: of `drexperts.runtime.load`; `isolated` is True unless it is given here

    Raises UserError for a bundle that cannot be read; a call does for a batch without these
    columns and for images without a name.

    Example:
        scores = Scoring("bundle/", image="path")({"path": ["a.jpg", "b.jpg"]})
        scores["source"], scores["value"], scores["error"]
    """

    def __init__(
        self,
        bundle: str | os.PathLike[str],
        *,
        image: str = "image",
        key: str | None = None,
        keep: Sequence[str] = (),
        **options: Any,
    ) -> None:
        import_parquet()  # now, and not in another process
        self._bundle = absolute(bundle)
        manifest = manifest_of(self._bundle, options.get("digest"))
        # Frameworks that keep results know a function by its pickle: another bundle is another one.
        options = {"isolated": True} | options | {"digest": digest_of_manifest(manifest)}
        self._options = tuple(sorted(options.items()))
        self._image, self._key, self._keep = image, key, tuple(keep)

    def __call__(self, batch: Any) -> Any:
        """The scores of a batch, in the form of the batch."""
        images = cells_in(batch, self._image)
        keys = [None] * len(images) if self._key is None else cells_in(batch, self._key)
        scorer = _engine(self._bundle, self._options)
        items = list(map(functools.partial(_item, scorer), images, keys))
        rows = (score.as_row() for score in scorer.score_stream(items))
        table = table_of(rows, scorer.fingerprint(), scorer.manifest.distortions)
        _check_kept(batch, table, self._keep)
        return in_form_of(batch, table, self._keep)


def _check_kept(batch: Any, table: Any, keep: Sequence[str]) -> None:
    for name in keep:
        if name in table.column_names or name not in column_names(batch):
            raise UserError(
                f"keep={name!r} must name a column of the batch, and no column of scores: the "
                f"batch has {', '.join(map(repr, column_names(batch)))}"
            )


_loading = threading.Lock()


def _engine(bundle: str, options: _Options) -> Scorer:
    """The engine of this process, opened once."""
    with _loading:
        return _loaded(bundle, options)


@functools.cache
def _loaded(bundle: str, options: _Options) -> Scorer:
    return load(bundle, **dict(options))


def _item(scorer: Scorer, image: Any, key: Any) -> Item:
    """What a Scorer takes, of a cell and the cell that names it."""
    path = None
    if isinstance(image, dict):
        path = image.get("path")
        image = path if image.get("bytes") is None else image["bytes"]
    elif isinstance(image, (str, os.PathLike)):
        image = path = os.fspath(image)
    name = _name(path if key is None else key)
    if image is None or (isinstance(image, float) and math.isnan(image)):
        return name, failure(name, "its row holds no image")
    if path is not None and image is path and is_remote(path):
        image = remote_image(path, scorer.decoder.limits.for_files).content()
    return name, image


def _name(key: Any) -> str:
    if key is None or key == "":
        raise UserError("an image of the batch has no name: say which column names them with key=")
    return key.decode("utf-8", "surrogateescape") if isinstance(key, bytes) else str(key)
