"""A toy bundle and images made in memory, shared by the tests."""

import dataclasses
import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, settings
from onnx import TensorProto, helper
from PIL import Image

from drexperts.runtime.manifest import (
    SCHEMA,
    BatchProfile,
    Engine,
    EnginePlan,
    Manifest,
    ScoreScale,
    sha256_of,
    write_manifest,
)
from drexperts.runtime.preprocess import Preprocessing
from drexperts.runtime.proof import LIMITS, BatchInvariance, ConfidenceInterval, Parity

TESTS = Path(__file__).parent

# Before anything imports Triton, so that its kernels are interpreted on the CPU.
os.environ.setdefault("TRITON_INTERPRET", "1")
# Before anything imports torch: tests that run in parallel (`pytest -n`) get one core each.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell that starts the tests in the background makes them, and what they start, ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples everywhere, and no deadline, so that a slow machine passes too.
settings.register_profile(
    "ours",
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("ours")

SIDE = 32
DISTORTIONS = tuple(f"distortion {i}" for i in range(10))


def toy_graph() -> onnx.ModelProto:
    """score = mean brightness; weight i = (i + 1) / 55 of it, over 255; maps = 4x4 brightness."""
    nodes = [
        helper.make_node("Cast", ["pixels"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["floats", "image_axes"], ["score"], keepdims=0),
        helper.make_node("Unsqueeze", ["score", "last"], ["column"]),
        helper.make_node("Mul", ["column", "shares"], ["weights"]),
        helper.make_node("ReduceMean", ["floats", "channel_axis"], ["grey"], keepdims=1),
        helper.make_node("AveragePool", ["grey"], ["cells"], kernel_shape=[8, 8], strides=[8, 8]),
        helper.make_node("Mul", ["cells", "map_shares"], ["maps"]),
    ]
    shares = [(i + 1) / 55 / 255 for i in range(10)]
    constants = [
        helper.make_tensor("image_axes", TensorProto.INT64, [3], [1, 2, 3]),
        helper.make_tensor("channel_axis", TensorProto.INT64, [1], [1]),
        helper.make_tensor("last", TensorProto.INT64, [1], [1]),
        helper.make_tensor("shares", TensorProto.FLOAT, [1, 10], shares),
        helper.make_tensor("map_shares", TensorProto.FLOAT, [1, 10, 1, 1], shares),
    ]
    pixels = helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["B", 3, SIDE, SIDE])
    outputs = [
        helper.make_tensor_value_info("score", TensorProto.FLOAT, ["B"]),
        helper.make_tensor_value_info("weights", TensorProto.FLOAT, ["B", 10]),
        helper.make_tensor_value_info("maps", TensorProto.FLOAT, ["B", 10, 4, 4]),
    ]
    graph = helper.make_graph(nodes, "toy", [pixels], outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return model


def toy_manifest(sha256: str) -> Manifest:
    parity = Parity(
        images=100,
        rows=400,
        reference="PyTorch float32 eager",
        score_max=1e-6,
        score_mean=1e-7,
        score_p99=1e-6,
        srcc=1.0,
        plcc=1.0,
        order_flips=0,
        pairs=4950,
        weights_max=1e-6,
        maps_max=1e-6,
        srcc_interval=ConfidenceInterval(1.0, 1.0),
        plcc_interval=ConfidenceInterval(1.0, 1.0),
        leading_flips=0,
        limits=LIMITS["fp32"],
        passed=True,
    )
    invariance = BatchInvariance(
        batches=(1, 8, 16),
        cases=("repeated", "permuted"),
        score_max=0.0,
        tolerance=1e-6,
        passed=True,
    )
    engine = Engine(
        backend="onnx",
        file="model.onnx",
        sha256=sha256,
        precision="fp32",
        max_batch=16,
        versions={"onnx": "1"},
        parity=parity,
        invariance=invariance,
    )
    return Manifest(
        schema=SCHEMA,
        preset="paper",
        config={"alpha": 0.5, "layers": [1, 2], "encoder": {"patch_size": 8}},
        preprocessing=Preprocessing(
            crop=SIDE, short_side_min=SIDE, short_side_max=2 * SIDE, crops_per_side=2
        ),
        scale=ScoreScale(0.0, 255.0, higher_is_better=True),
        distortions=DISTORTIONS,
        outputs=("score", "weights", "maps"),
        engines=(engine,),
        created_with={"drexperts": "0.1.0"},
    )


@pytest.fixture(scope="session", autouse=True)
def user_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What tests keep in the user's folders goes elsewhere."""
    with pytest.MonkeyPatch.context() as patched:
        for name in ("XDG_CACHE_HOME", "XDG_STATE_HOME"):
            patched.setenv(name, str(tmp_path_factory.mktemp(name.lower())))
        yield


@pytest.fixture(scope="session")
def toy_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A proven bundle of a tiny graph. Shared: copy it before changing it."""
    folder = tmp_path_factory.mktemp("toy") / "bundle"
    folder.mkdir()
    onnx.save(toy_graph(), folder / "model.onnx")
    write_manifest(toy_manifest(sha256_of(folder / "model.onnx")), folder)
    return folder


@pytest.fixture(scope="session")
def planned(toy_bundle: Path) -> Callable[..., Engine]:
    """planned(backend, **changes of its plan): the record of a TensorRT engine, never executed."""

    def make(backend: str = "tensorrt-rtx", **changes: Any) -> Engine:
        plan = EnginePlan(
            version="1.7.1.116",
            capabilities=("8.9",),
            platform="linux-x86_64",
            profiles=(BatchProfile(1, 8, 16),),
            version_compatible=False,
            hardware_compatibility="none",
            stripped=False,
            plugin_layers=0,
            fused_attention=True,
            onnx_sha256="0" * 64,
            inspected=True,
        )
        plan = dataclasses.replace(plan, **changes)
        name, most = f"{backend}.engine", max(profile.max for profile in plan.profiles)
        return Engine(
            backend=backend,
            file=name,
            sha256="0" * 64,
            precision="fp16",
            max_batch=most,
            versions={},
            parity=None,
            invariance=None,
            plan=plan,
        )

    return make


@pytest.fixture(scope="session")
def photo() -> Callable[..., Image.Image]:
    """photo(width, height, seed=0): a smooth RGB image with some grain."""

    def make(width: int, height: int, seed: int = 0) -> Image.Image:
        rng = np.random.default_rng(seed)
        coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.int16)
        grain = rng.integers(-8, 9, (height, width, 3))
        return Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8))

    return make


@pytest.fixture(scope="session")
def encode() -> Callable[..., bytes]:
    """encode(image, format, **options): the bytes of the file."""

    def to_bytes(image: Image.Image, format: str, **options: Any) -> bytes:
        stream = io.BytesIO()
        image.save(stream, format, **options)
        return stream.getvalue()

    return to_bytes


@pytest.fixture(scope="session")
def compiling() -> Callable[..., subprocess.CompletedProcess[str]]:
    """compiling(*arguments, folder=tests): Python in a process with Triton's compiler."""

    def run(*arguments: str, folder: Path = TESTS) -> subprocess.CompletedProcess[str]:
        environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
        environment["PYTHONPATH"] = os.pathsep.join((str(TESTS), str(folder)))
        command = [sys.executable, "-P", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    return run


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Uninitialised memory of torch is NaN."""
    import torch

    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture(scope="session")
def tiny() -> Callable[..., Any]:
    """tiny(preset="paper", **switches): a DRExpertsConfig of small sizes, 64 px images."""
    from dataclasses import replace

    from drexperts.model.config import ControllerConfig, DRExpertsConfig, EncoderConfig

    encoder = EncoderConfig(image_size=64, patch_size=16, width=32, depth=2, heads=2)
    controller = ControllerConfig(48, 16, width=48, depth=2, heads=3, embedding=24)

    def make(preset: str = "paper", **switches: Any) -> DRExpertsConfig:
        config = getattr(DRExpertsConfig, preset)().with_sizes(encoder, controller)
        return replace(config, **switches)

    return make


@pytest.fixture(scope="session")
def random_model() -> Callable[..., Any]:
    """random_model(config, seed=0, spread=0.3): float32, every parameter off its initial value.

    With the default spread scores are in the hundreds and softmaxes sharp; with 0.05, of order one.
    """
    import torch

    from drexperts.model.dr_experts import new_model

    def make(config: Any, seed: int = 0, spread: float = 0.3) -> Any:
        torch.manual_seed(seed)
        model = new_model(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(spread * torch.randn_like(parameter))
        return model

    return make
