"""What an engine is compared with: functions of the same uint8 pixels [B, 3, H, W].

Baselines in PyTorch run on the engine's kind of device, and return their results to the host as
engines do.
"""

import contextlib
import copy
import functools
import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from open_clip.transformer import TextTransformer
from torch import Tensor, nn

from drexperts.export.graph.to_onnx import OPSET
from drexperts.model.backbones import ImageEncoder, PromptEncoder, normalised
from drexperts.model.checkpoint import load_checkpoint
from drexperts.model.config import ControllerConfig, DRExpertsConfig
from drexperts.model.dr_experts import DRExperts, new_model
from drexperts.runtime.errors import MissingDependencyError, UserError, WeightsError
from drexperts.runtime.manifest import OUTPUTS
from drexperts.runtime.onnx_library import import_onnxruntime
from drexperts.runtime.onnx_providers import cpu_session, gpu_session, new_options
from drexperts.runtime.onnx_session import OnnxSession
from drexperts.runtime.openvino_library import openvino_core

Pixels = NDArray[np.uint8]
Baseline = Callable[[Pixels], object]

# Forms of the bundle's model, which compute the same scores.
FORMS = (
    *("eager-dense", "eager-reduced", "compile", "aotinductor"),
    *("onnx-dense", "openvino", "openvino-fp32"),
)
# Most between their scores, relative to the larger one. On a GPU, PyTorch convolves in TF32.
ALIKE = {"cpu": 1e-3, "cuda": 1e-2}
# OpenVINO computes in bfloat16 unless it is told not to, without a proof that would limit it.
HALF_ALIKE = {"openvino": 1e-1}
PYIQA = "pyiqa:"  # before the name of one of its metrics


@dataclass(frozen=True)
class Subject:
    """What baselines are built from.

    checkpoint: None makes random weights, which take the same time
    crop: side of the pixels
    max_batch: the largest batch that they are called with
    threads: of ONNX Runtime; PyTorch's are set for the process
    device: "cpu" or "cuda"
    """

    config: DRExpertsConfig
    checkpoint: Path | None
    crop: int
    max_batch: int
    threads: int
    device: str

    @functools.cached_property
    def model(self) -> DRExperts:
        """The bundle's model. Raises WeightsError for a checkpoint of another configuration."""
        model = baseline_model(self.config, self.checkpoint)
        if model.config != self.config:
            raise WeightsError(
                f"{self.checkpoint} has another configuration than the bundle: "
                "name the checkpoint that the bundle was exported from"
            )
        return model.to(self.device)

    @functools.cached_property
    def dense_graph(self) -> bytes:
        """A plain ONNX export of the dense form with constant prompts: without reduction."""
        program = torch.onnx.export(
            _exported(_Form(self.model, dense=True), self),
            dynamo=True,
            opset_version=OPSET,
            input_names=["pixels"],
            output_names=OUTPUTS,
            verbose=False,
        )
        assert program is not None
        return program.model_proto.SerializeToString()

    @functools.cached_property
    def released(self) -> DRExperts:
        """The same model with prompts that are encoded on each call, where it can encode them."""
        return released(self.model)


def build(name: str, subject: Subject) -> Baseline:
    """A baseline, ready except for what its first call adds.

    Raises UserError, which says why it cannot be built and what to do, or whatever the library that
    it uses raises.
    """
    if name.startswith(PYIQA):
        return incumbent(name.removeprefix(PYIQA), subject)
    return BASELINES[name](subject)


def difference(name: str, run: Baseline, subject: Subject, pixels: Pixels) -> float:
    """How far scores are from those of the reduced form in PyTorch, relative to the larger ones.

    Both have the same weights and the same prompts.
    """
    model = subject.released if name == "eager-dense" else subject.model
    wanted: Any = _called(_Form(model, dense=False), subject)(pixels)
    found: Any = run(pixels)
    scores = np.stack([found["score"], wanted["score"]])
    return float(np.abs(scores[0] - scores[1]).max() / np.abs(scores).max())


def baseline_model(config: DRExpertsConfig, checkpoint: Path | None) -> DRExperts:
    """The model of a checkpoint, or one with random weights, which takes the same time."""
    return new_model(config) if checkpoint is None else load_checkpoint(checkpoint).model


def released(model: DRExperts) -> DRExperts:
    """The model with prompts that are encoded on each call, as in the released code.

    Weights are shared. Only DA-CLIP has a text tower: with another controller, prompts stay
    constant.
    """
    encoding = copy.copy(model)
    encoding._modules = dict(model._modules)
    if model.config.controller == ControllerConfig():
        device = model.score.weight.device
        encoding.prompts = PromptEncoder(TextTransformer()).eval().to(device)
        encoding.freeze_prior()
    return encoding


class _Form(nn.Module):
    """One form of a model, from pixels to all outputs, to run, compile or export."""

    def __init__(self, model: DRExperts, *, dense: bool) -> None:
        super().__init__()
        self.model, self._dense = model, dense

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        predict = self.model.forward_dense if self._dense else self.model
        return tuple(predict(normalised(pixels)))


def eager_dense(subject: Subject) -> Baseline:
    """The released recipe in PyTorch: every row of ten experts, prompts encoded on each call.

    On a GPU its attention is our fused kernel, so that there it is faster than the released code.
    """
    return _called(_Form(subject.released, dense=True), subject)


def eager_reduced(subject: Subject) -> Baseline:
    """The CLS-row form in PyTorch."""
    return _called(_Form(subject.model, dense=False), subject)


def compiled(subject: Subject) -> Baseline:
    """The CLS-row form by torch.compile, for each batch size anew, with its fastest options."""
    on_gpu = subject.device == "cuda"
    options: dict[str, Any] = {"freezing": True, "triton.cudagraphs": on_gpu}
    form = torch.compile(_Form(subject.model, dense=False), dynamic=False, options=options)
    return _called(form, subject)


def aot_inductor(subject: Subject) -> Baseline:
    """The CLS-row form as an AOTInductor package."""
    with torch.inference_mode(), TemporaryDirectory() as folder:
        path = torch._inductor.aoti_compile_and_package(
            _exported(_Form(subject.model, dense=False), subject),
            package_path=f"{folder}/form.pt2",
        )
        return _called(torch._inductor.aoti_load_package(path), subject)


def onnx_dense(subject: Subject) -> Baseline:
    """The plain export of the dense form, run by ONNX Runtime."""
    provider = "cpu" if subject.device == "cpu" else "cuda"
    session = OnnxSession(
        "dense.onnx",
        content=subject.dense_graph,
        max_batch=subject.max_batch,
        threads=subject.threads,
        provider=provider,
    )
    return session.run


def openvino_dense(subject: Subject, precision: str | None = None) -> Baseline:
    """The plain export of the dense form, run by OpenVINO as it is by default.

    By default it computes in bfloat16 on a CPU that has it.

    precision: "f32" computes in float32 everywhere

    Raises MissingDependencyError without openvino, UserError for a bundle on a GPU.
    """
    if subject.device != "cpu":
        raise UserError("OpenVINO runs on the CPU here, and this engine on a GPU: name onnx-dense")
    core = openvino_core()
    settings: dict[str, object] = {"INFERENCE_NUM_THREADS": subject.threads}
    settings |= {} if precision is None else {"INFERENCE_PRECISION_HINT": precision}
    compiled = core.compile_model(core.read_model(subject.dense_graph), "CPU", settings)
    request = compiled.create_infer_request()

    def run(pixels: Pixels) -> dict[str, NDArray[Any]]:
        arrays = request.infer({0: pixels})
        return {name: arrays[place] for place, name in enumerate(OUTPUTS)}

    return run


class _Backbones(nn.Module):
    """Both image towers with an input each, and nothing else."""

    def __init__(self, model: DRExperts) -> None:
        super().__init__()
        self.encoder, self.visual = model.encoder, model.controller.visual

    def forward(self, images: Tensor, small: Tensor) -> tuple[Tensor, Tensor]:
        return self.encoder(images), self.visual(small)


def backbones(subject: Subject) -> Baseline:
    """The lower bound: a plain ONNX export of the two backbones alone, with prepared inputs."""
    config = subject.config
    sides = {"images": config.encoder.image_size, "small": config.controller.image_size}
    example = tuple(torch.zeros(2, 3, s, s, device=subject.device) for s in sides.values())
    program = torch.onnx.export(
        _Backbones(subject.model).eval(),
        example,
        dynamo=True,
        opset_version=OPSET,
        input_names=list(sides),
        dynamic_shapes=({0: _batch(subject)},) * 2,
        verbose=False,
    )
    assert program is not None
    with TemporaryDirectory() as folder:
        program.save(f"{folder}/backbones.onnx")
        session = _session(f"{folder}/backbones.onnx", subject)

    @functools.cache
    def inputs(rows: int) -> dict[str, NDArray[np.float32]]:
        draw = np.random.default_rng(0).standard_normal
        return {n: draw((rows, 3, s, s)).astype(np.float32) for n, s in sides.items()}

    return lambda pixels: session.run(None, inputs(len(pixels)))


def timm_backbone(subject: Subject) -> Baseline:
    """The lower bound for PyTorch: timm's image encoder alone, as large as the bundle's."""
    encoder = ImageEncoder(subject.config.encoder).eval().to(subject.device)
    return _called(lambda pixels: (encoder(normalised(pixels)),), subject)


def incumbent(metric: str, subject: Subject) -> Baseline:
    """A metric of pyiqa, with random weights where its code allows them.

    pyiqa's licence is for non-commercial use, so neither we nor our tests depend on it. Raises
    UserError where it is not installed or lacks the metric.
    """
    try:
        pyiqa = importlib.import_module("pyiqa")
    except ImportError as cause:
        raise MissingDependencyError(
            f"pyiqa is not installed ({cause.name or cause}): pip install pyiqa, if its licence "
            "for non-commercial use allows what you do"
        ) from cause
    if metric not in pyiqa.list_models("NR"):
        raise UserError(f"pyiqa has no metric {metric!r} that needs no reference image")
    with _weights_stay_random():
        network = pyiqa.create_metric(metric, device=torch.device(subject.device), pretrained=False)
    return _called(lambda pixels: (network(pixels.float() / 255),), subject)


@contextlib.contextmanager
def _weights_stay_random() -> Iterator[None]:
    """Some of pyiqa's metrics download their backbone's weights whatever their arguments say."""
    make = timm.create_model

    def without_weights(*arguments: Any, **options: Any) -> nn.Module:
        return make(*arguments, **options | {"pretrained": False})

    timm.create_model = without_weights
    try:
        yield
    finally:
        timm.create_model = make


def _called(form: Callable[[Tensor], tuple[Tensor, ...]], subject: Subject) -> Baseline:
    """From pixels on the host to results on the host, with an engine's names."""

    def run(pixels: Pixels) -> dict[str, NDArray[Any]]:
        with torch.inference_mode():
            outputs = form(torch.from_numpy(pixels).to(subject.device))
            return {n: o.cpu().numpy() for n, o in zip(OUTPUTS, outputs, strict=False)}

    return run


def _exported(form: _Form, subject: Subject) -> torch.export.ExportedProgram:
    crop = subject.crop
    example = torch.zeros(2, 3, crop, crop, dtype=torch.uint8, device=subject.device)
    return torch.export.export(form.eval(), (example,), dynamic_shapes=({0: _batch(subject)},))


def _batch(subject: Subject) -> torch.export.Dim:
    """The dynamic dimension; torch.export needs a range that includes two."""
    return torch.export.Dim("batch", min=1, max=max(2, subject.max_batch))


def _session(path: str, subject: Subject) -> Any:
    """ONNX Runtime on a graph without our inputs and outputs."""
    runtime = import_onnxruntime()
    options, model = new_options(runtime, subject.threads), Path(path).read_bytes()
    if subject.device == "cpu":
        return cpu_session(runtime, model, options, path)
    return gpu_session(runtime, model, options, path, "cuda", 0, subject.max_batch)


BASELINES: dict[str, Callable[[Subject], Baseline]] = {
    "eager-dense": eager_dense,
    "eager-reduced": eager_reduced,
    "compile": compiled,
    "aotinductor": aot_inductor,
    "onnx-dense": onnx_dense,
    "openvino": openvino_dense,
    "openvino-fp32": functools.partial(openvino_dense, precision="f32"),
    "backbones": backbones,
    "timm-backbone": timm_backbone,
    f"{PYIQA}musiq": functools.partial(incumbent, "musiq"),
}
