"""The torch-free runtime: it turns a bundle and an image into a score.

Example:
    from drexperts import runtime

    scorer = runtime.load("bundle/")
    score = scorer.score("photo.jpg")
    score.value, score.std, score.distortions, score.fingerprint

    runtime.score_files(scorer, "photos/", "scores.csv")
"""

from typing import TYPE_CHECKING

from drexperts.runtime.lazy import lazy_exports

if TYPE_CHECKING:
    from drexperts.runtime.batching import Batcher as Batcher
    from drexperts.runtime.batching import BatchObserver as BatchObserver
    from drexperts.runtime.decoding.limits import DecodingLimits as DecodingLimits
    from drexperts.runtime.errors import BundleError as BundleError
    from drexperts.runtime.errors import ChangedFileError as ChangedFileError
    from drexperts.runtime.errors import ClosedError as ClosedError
    from drexperts.runtime.errors import ConfigError as ConfigError
    from drexperts.runtime.errors import DeadlineError as DeadlineError
    from drexperts.runtime.errors import DecoderFailedError as DecoderFailedError
    from drexperts.runtime.errors import DeviceError as DeviceError
    from drexperts.runtime.errors import DrexpertsError as DrexpertsError
    from drexperts.runtime.errors import ImageError as ImageError
    from drexperts.runtime.errors import InternalError as InternalError
    from drexperts.runtime.errors import MissingDependencyError as MissingDependencyError
    from drexperts.runtime.errors import NotTakenError as NotTakenError
    from drexperts.runtime.errors import QueueFullError as QueueFullError
    from drexperts.runtime.errors import UserError as UserError
    from drexperts.runtime.errors import WeightsError as WeightsError
    from drexperts.runtime.inputs.lists import paths_in as paths_in
    from drexperts.runtime.inputs.shards import Shard as Shard
    from drexperts.runtime.loading import load as load
    from drexperts.runtime.loading import open_engine as open_engine
    from drexperts.runtime.manifest import Engine as Engine
    from drexperts.runtime.manifest import Manifest as Manifest
    from drexperts.runtime.manifest import read_manifest as read_manifest
    from drexperts.runtime.preprocess import Preprocessing as Preprocessing
    from drexperts.runtime.results.merging import MergeSummary as MergeSummary
    from drexperts.runtime.results.merging import merge_shards as merge_shards
    from drexperts.runtime.score import DistortionMaps as DistortionMaps
    from drexperts.runtime.score import Score as Score
    from drexperts.runtime.scorer import PassedOver as PassedOver
    from drexperts.runtime.scorer import Scorer as Scorer
    from drexperts.runtime.scoring import ScoringSummary as ScoringSummary
    from drexperts.runtime.scoring import score_files as score_files
    from drexperts.runtime.selection import capability as capability
    from drexperts.runtime.selection import capability_for as capability_for
    from drexperts.runtime.selection import obstacle as obstacle
    from drexperts.runtime.session import Session as Session

_HOMES = {
    "BatchObserver": "batching",
    "Batcher": "batching",
    "DecodingLimits": "decoding.limits",
    "BundleError": "errors",
    "ChangedFileError": "errors",
    "ClosedError": "errors",
    "ConfigError": "errors",
    "DeadlineError": "errors",
    "DecoderFailedError": "errors",
    "DeviceError": "errors",
    "DrexpertsError": "errors",
    "ImageError": "errors",
    "InternalError": "errors",
    "MissingDependencyError": "errors",
    "NotTakenError": "errors",
    "QueueFullError": "errors",
    "UserError": "errors",
    "WeightsError": "errors",
    "paths_in": "inputs.lists",
    "Shard": "inputs.shards",
    "load": "loading",
    "open_engine": "loading",
    "Engine": "manifest",
    "Manifest": "manifest",
    "read_manifest": "manifest",
    "Preprocessing": "preprocess",
    "MergeSummary": "results.merging",
    "merge_shards": "results.merging",
    "DistortionMaps": "score",
    "PassedOver": "scorer",
    "Score": "score",
    "Scorer": "scorer",
    "Session": "session",
    "ScoringSummary": "scoring",
    "score_files": "scoring",
    "capability": "selection",
    "capability_for": "selection",
    "obstacle": "selection",
}
__getattr__ = lazy_exports(__name__, _HOMES)
