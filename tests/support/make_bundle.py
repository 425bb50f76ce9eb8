"""Write a small verified bundle and a photograph: `python tests/support/make_bundle.py FOLDER`.

The model has random weights; the wheel's test scores with it where there is no torch.
"""

import sys
from pathlib import Path

import torch

from drexperts.export.bundle import export_bundle
from drexperts.export.proof.photographs import photograph
from drexperts.model.checkpoint import Checkpoint
from drexperts.model.config import ControllerConfig, DRExpertsConfig, EncoderConfig
from drexperts.model.dr_experts import new_model
from drexperts.runtime.manifest import ScoreScale
from drexperts.runtime.preprocess import Preprocessing


def main(folder: Path) -> None:
    torch.manual_seed(0)
    encoder = EncoderConfig(image_size=64, width=32, depth=2, heads=2)
    controller = ControllerConfig(48, 16, width=48, depth=2, heads=2, embedding=24)
    model = new_model(DRExpertsConfig.paper().with_sizes(encoder, controller))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    scale = ScoreScale(0.0, 100.0, higher_is_better=True)
    checkpoint = Checkpoint(model, scale, Preprocessing(64, 64, 128, 2))
    manifest = export_bundle(checkpoint, folder / "bundle")
    assert manifest.engines[0].proven, manifest.engines[0]
    photograph("astronaut.png").save(folder / "photo.jpg")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
