import os
import re

import numpy as np
import onnx
import onnxruntime
import pytest

from drexperts.runtime import onnx_providers
from drexperts.runtime.errors import (
    BundleError,
    DeviceError,
)
from drexperts.runtime.installing import install_command
from drexperts.runtime.onnx_session import OnnxSession

GPU_PROVIDERS = {"cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}


@pytest.fixture(scope="module")
def session(toy_bundle):
    return OnnxSession(toy_bundle / "model.onnx", max_batch=4, threads=1)


def opens(provider):
    try:
        onnx_providers._check_opens(onnxruntime, GPU_PROVIDERS[provider], 0)
    except DeviceError:
        return False
    return True


def needs_no(provider):
    """Skip unless this onnxruntime has the provider, but it cannot be used on this machine."""
    if GPU_PROVIDERS[provider] not in onnxruntime.get_available_providers():
        pytest.skip(f"this onnxruntime was built without {GPU_PROVIDERS[provider]}")
    if opens(provider):
        pytest.skip(f"{GPU_PROVIDERS[provider]} can be used here")


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_no_gpu_is_an_error_with_its_cause(provider, toy_bundle, capfd):
    needs_no(provider)
    capfd.readouterr()
    with pytest.raises(DeviceError) as refused:
        OnnxSession(toy_bundle / "model.onnx", max_batch=4, provider=provider)
    message = str(refused.value)
    assert f"cannot use {GPU_PROVIDERS[provider]}: " in message
    # What ONNX Runtime only logs: a shared library, or CUDA's own error.
    assert ".so" in message or ".dll" in message or "CUDA" in message.partition(": ")[2]
    assert message.endswith(", or use the CPU")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_build_without_the_provider(provider, toy_bundle, monkeypatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(DeviceError, match=re.escape(install_command("gpu"))):
        OnnxSession(toy_bundle / "model.onnx", max_batch=4, provider=provider)


@pytest.mark.parametrize(
    ("cause", "remedy"),
    [
        ("libcuda.so.1: cannot open shared object file", "install NVIDIA's driver"),
        ("CUDA failure 35: CUDA driver version is insufficient", "install NVIDIA's driver"),
        ("libcudnn.so.9: cannot open shared object file", "onnxruntime-gpu[cuda,cudnn]"),
        ("libcudart.so.13: cannot open shared object file", "onnxruntime-gpu[cuda,cudnn]"),
        ("libnvinfer.so.10: cannot open shared object file", "TensorRT version"),
        ("CUDA failure 101: invalid device ordinal", "nvidia-smi"),
    ],
)
def test_remedy(cause, remedy):
    message = str(onnx_providers._unusable("CUDAExecutionProvider", cause))
    assert cause in message
    assert remedy in message


def test_the_probe_is_a_model():
    onnx.checker.check_model(onnx.load_from_string(onnx_providers._IDENTITY))


def test_standard_error_is_caught_and_given_back(capfd):
    with onnx_providers._caught_standard_error() as caught:
        os.write(2, b"\x1b[0;93mone\x1b[m with error: two\n")
    os.write(2, b"three")
    assert caught() == "one with error: two\n"
    assert onnx_providers._missing_library_in(caught()) == "two"
    assert capfd.readouterr().err == "three"


@pytest.fixture
def stand_in(monkeypatch):
    """The code path of a GPU session, which ends at the CPU provider."""
    name = onnx_providers.NAMES["cpu"]
    monkeypatch.setitem(onnx_providers.NAMES, "cuda", name)
    monkeypatch.setitem(onnx_providers._PROVIDERS, "cuda", lambda job: [(name, {})])


def test_a_gpu_session_scores_as_a_cpu_session(stand_in, session, toy_bundle):
    gpu = OnnxSession(toy_bundle / "model.onnx", max_batch=4, provider="cuda")
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3, 32, 32), np.uint8)
    for name, array in session.run(pixels).items():
        np.testing.assert_array_equal(gpu.run(pixels)[name], array)


def test_what_another_provider_runs_is_described(stand_in, toy_bundle):
    gpu = OnnxSession(toy_bundle / "model.onnx", max_batch=4, provider="cuda")
    assert onnx_providers.shared_with(gpu._session, "CPUExecutionProvider") == ""
    elsewhere = onnx_providers.shared_with(gpu._session, "CUDAExecutionProvider")
    assert elsewhere == ", 7 of 7 nodes on CPUExecutionProvider"


def test_a_provider_that_runs_no_node_is_an_error(stand_in, toy_bundle, monkeypatch):
    monkeypatch.setattr(onnx_providers, "_nodes_by_provider", lambda session: {"another": 7})
    with pytest.raises(DeviceError, match="no node"):
        OnnxSession(toy_bundle / "model.onnx", max_batch=4, provider="cuda")


def test_a_bad_file_is_an_error_of_the_bundle(stand_in, tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"not a model")
    with pytest.raises(BundleError, match="drx export"):
        OnnxSession(tmp_path / "model.onnx", max_batch=1, provider="cuda")


def test_a_file_that_holds_an_engine_is_refused(stand_in, tmp_path):
    """The TensorRT provider would deserialise the engine, whatever its source."""
    value = onnx.helper.make_tensor_value_info
    node = onnx.helper.make_node(
        "EPContext",
        ["pixels"],
        ["score"],
        domain="com.microsoft",
        embed_mode=1,
        ep_cache_context=b"a plan",
        main_context=1,
        source="TensorrtExecutionProvider",
    )
    pixels = value("pixels", onnx.TensorProto.UINT8, ["B", 3, 32, 32])
    score = value("score", onnx.TensorProto.FLOAT, ["B"])
    graph = onnx.helper.make_graph([node], "graph", [pixels], [score])
    opsets = [onnx.helper.make_opsetid("", 18), onnx.helper.make_opsetid("com.microsoft", 1)]
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "model.onnx"
    )
    with pytest.raises(BundleError, match="EPContext"):
        OnnxSession(tmp_path / "model.onnx", max_batch=1, provider="cuda")


def test_failure_on_a_gpu_is_the_device(stand_in, toy_bundle, monkeypatch):
    gpu = OnnxSession(toy_bundle / "model.onnx", max_batch=4, provider="cuda")
    monkeypatch.setattr(gpu, "_input", "another name")
    with pytest.raises(DeviceError, match="or use the CPU"):
        gpu.run(np.zeros((1, 3, 32, 32), np.uint8))


@pytest.fixture
def job(toy_bundle, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model = (toy_bundle / "model.onnx").read_bytes()
    return onnx_providers._Job(model, "1.31.1", 16, 1, "pixels", ["batch", 3, 384, 384])


def test_cuda_keeps_float32(job):
    ((name, options),) = onnx_providers._cuda(job)
    assert (name, options["use_tf32"], options["device_id"]) == ("CUDAExecutionProvider", "0", "1")
    assert options["cudnn_conv_algo_search"] != "EXHAUSTIVE"


def test_tensorrt_profile_and_cache(job, tmp_path):
    (name, options), (second, _) = onnx_providers._tensorrt(job)
    assert (name, second) == ("TensorrtExecutionProvider", "CUDAExecutionProvider")
    shapes = [options[f"trt_profile_{kind}_shapes"] for kind in ("min", "opt", "max")]
    assert shapes == [f"pixels:{batch}x3x384x384" for batch in (1, 8, 16)]
    assert not [name for name in options if "fp16" in name or "bf16" in name or "int8" in name]
    folder = options["trt_engine_cache_path"]
    assert os.path.dirname(folder) == str(tmp_path / "drexperts" / "onnx-tensorrt")
    assert options["trt_timing_cache_path"] == folder
    if os.name == "posix":
        assert os.stat(folder).st_mode & 0o077 == 0


def test_without_a_home_tensorrt_keeps_no_engines(job, tmp_path, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    (_, options), _ = onnx_providers._tensorrt(job)
    assert not [name for name in options if "cache" in name]
    assert list(tmp_path.iterdir()) == []


def test_engine_cache_is_of_one_model_and_version(job):
    changed = (job, job._replace(model=b"another"), job._replace(version="2"))
    folders = [onnx_providers._engine_cache(j) for j in (*changed, job._replace(max_batch=4))]
    assert len(set(folders)) == 4
    assert onnx_providers._engine_cache(job) == folders[0]


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_on_a_gpu(provider, session, toy_bundle):
    if not opens(provider):
        pytest.skip(f"{GPU_PROVIDERS[provider]} cannot be used here")
    gpu = OnnxSession(toy_bundle / "model.onnx", max_batch=4, provider=provider)
    assert GPU_PROVIDERS[provider] in gpu.description
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3, 32, 32), np.uint8)
    for name, array in session.run(pixels).items():
        np.testing.assert_allclose(gpu.run(pixels)[name], array, rtol=1e-5)
