"""The torch-free runtime: it turns a bundle and an image into a score.

Example:
    from drexperts import runtime

    scorer = runtime.load("bundle/")
    score = scorer.score("photo.jpg")
    score.value, score.std, score.distortions, score.fingerprint

    runtime.score_files(scorer, "photos/", "scores.csv")
"""

from drexperts.runtime.errors import (
    BundleError,
    ChangedFileError,
    ConfigError,
    DeviceError,
    DrexpertsError,
    ImageError,
    InternalError,
    MissingDependencyError,
    NotTakenError,
    UserError,
    WeightsError,
)
from drexperts.runtime.load import load, open_engine
from drexperts.runtime.manifest import Engine, Manifest, read_manifest
from drexperts.runtime.preprocess import Preprocessing
from drexperts.runtime.scorer import DistortionMaps, PassedOver, Score, Scorer, Session
from drexperts.runtime.scoring import ScoringSummary, score_files
from drexperts.runtime.selection import capability, obstacle

__all__ = [
    "BundleError",
    "ChangedFileError",
    "ConfigError",
    "DeviceError",
    "DistortionMaps",
    "DrexpertsError",
    "Engine",
    "ImageError",
    "InternalError",
    "Manifest",
    "MissingDependencyError",
    "NotTakenError",
    "PassedOver",
    "Preprocessing",
    "Score",
    "Scorer",
    "ScoringSummary",
    "Session",
    "UserError",
    "WeightsError",
    "capability",
    "load",
    "obstacle",
    "open_engine",
    "read_manifest",
    "score_files",
]
