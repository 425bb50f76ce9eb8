"""From a trained model to a verified bundle, to engines for GPUs and to a model repository.

Importing this package needs no torch: each function's module is imported when it is first used.
"""

from typing import TYPE_CHECKING

from drexperts.runtime.lazy import lazy_exports

if TYPE_CHECKING:
    from drexperts.export.bundle import export_bundle
    from drexperts.export.engines.build import build_engine
    from drexperts.export.engines.options import EngineOptions
    from drexperts.export.proof.prove import Measured, Verification, verify
    from drexperts.export.speed import CropSpeed, crop_speed
    from drexperts.export.triton_repository import write_triton_repository

__all__ = [
    "CropSpeed",
    "EngineOptions",
    "Measured",
    "Verification",
    "build_engine",
    "crop_speed",
    "export_bundle",
    "verify",
    "write_triton_repository",
]

__getattr__ = lazy_exports(
    __name__,
    {
        "CropSpeed": "speed",
        "EngineOptions": "engines.options",
        "Measured": "proof.prove",
        "Verification": "proof.prove",
        "build_engine": "engines.build",
        "crop_speed": "speed",
        "export_bundle": "bundle",
        "verify": "proof.prove",
        "write_triton_repository": "triton_repository",
    },
)
