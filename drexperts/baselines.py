"""What an engine is measured against, each a function of the same uint8 pixels [B, 3, H, W]."""

import copy
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from open_clip.transformer import TextTransformer
from torch import Tensor, nn

from drexperts.backbone import PromptEncoder, normalised
from drexperts.checkpoint import load_checkpoint
from drexperts.config import ControllerConfig, DRExpertsConfig
from drexperts.export.to_onnx import OPSET
from drexperts.model import DRExperts, new_model

Pixels = NDArray[np.uint8]
Contender = Callable[[Pixels], object]


def baseline_model(config: DRExpertsConfig, checkpoint: Path | None) -> DRExperts:
    """The bundle's model: from its checkpoint, or with random weights, which cost the same."""
    return new_model(config) if checkpoint is None else load_checkpoint(checkpoint).model


def released(model: DRExperts) -> DRExperts:
    """The model with prompts that are encoded on each call, as released; weights are shared.

    A controller that is not DA-CLIP's has no text tower beside it, so its prompts stay constant.
    """
    encoding = copy.copy(model)
    encoding._modules = dict(model._modules)
    if model.config.controller == ControllerConfig():
        encoding.prompts = PromptEncoder(TextTransformer()).eval()
        encoding.freeze_prior()
    return encoding


def eager_dense(model: DRExperts, threads: int | None) -> Contender:
    """The released recipe in PyTorch: every row of ten experts, prompts encoded on each call."""
    return _eager(released(model).forward_dense)


def eager_reduced(model: DRExperts, threads: int | None) -> Contender:
    """The CLS-row form in PyTorch."""
    return _eager(model.forward)


def _eager(forward: Callable[[Tensor], object]) -> Contender:
    def run(pixels: Pixels) -> object:
        with torch.inference_mode():
            return forward(normalised(torch.from_numpy(pixels)))

    return run


class _Backbones(nn.Module):
    """Both image towers on inputs of their own, and nothing else."""

    def __init__(self, model: DRExperts) -> None:
        super().__init__()
        self.encoder, self.visual = model.encoder, model.controller.visual

    def forward(self, images: Tensor, small: Tensor) -> tuple[Tensor, Tensor]:
        return self.encoder(images), self.visual(small)


def backbones(model: DRExperts, threads: int | None) -> Contender:
    """The floor: a plain ONNX export of the two backbones alone, inputs already prepared."""
    size, small = model.config.encoder.image_size, model.config.controller.image_size
    example = torch.zeros(2, 3, size, size), torch.zeros(2, 3, small, small)
    batch = {0: torch.export.Dim("batch", min=1, max=64)}
    program = torch.onnx.export(
        _Backbones(model).eval(),
        example,
        dynamo=True,
        opset_version=OPSET,
        input_names=["images", "small"],
        dynamic_shapes=(batch, batch),
        verbose=False,
    )
    assert program is not None
    with TemporaryDirectory() as folder:
        program.save(f"{folder}/backbones.onnx")
        session = _session(f"{folder}/backbones.onnx", threads)
    prepared: dict[int, dict[str, NDArray[np.float32]]] = {}

    def run(pixels: Pixels) -> object:
        rows = len(pixels)
        if rows not in prepared:
            shapes = {"images": (rows, 3, size, size), "small": (rows, 3, small, small)}
            draw = np.random.default_rng(0).standard_normal
            prepared[rows] = {n: draw(s).astype(np.float32) for n, s in shapes.items()}
        return session.run(None, prepared[rows])

    return run


def _session(path: str, threads: int | None) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


BASELINES: dict[str, Callable[[DRExperts, int | None], Contender]] = {
    "eager-dense": eager_dense,
    "eager-reduced": eager_reduced,
    "backbones": backbones,
}
