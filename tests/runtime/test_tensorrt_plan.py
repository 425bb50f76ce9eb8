import gc
import hashlib
import logging
import os
import subprocess
import sys
import threading

import onnx
import pytest
from conftest import toy_graph
from support import fake_gpu
from support.fake_gpu import FakeCuda, FakeTensorrt, engine_of, plan_bytes
from support.swapping import swap_after_hash

from drexperts.runtime import compatibility, tensorrt_plan
from drexperts.runtime.compatibility import Gpu
from drexperts.runtime.cuda import Stream
from drexperts.runtime.errors import BundleError, DeviceError, OutOfMemoryError
from drexperts.runtime.tensorrt_plan import Execution, LoadedPlan

GPU = Gpu(0, "Fake GPU", "8.9", 2**33, "13.0")
REBUILD = r"rebuild it with `drexperts.export.build_engine\(bundle, 'tensorrt"


@pytest.fixture
def cuda(monkeypatch, tmp_path):
    fake = FakeCuda()
    fake_gpu.install(monkeypatch, fake)
    monkeypatch.setattr(tensorrt_plan, "cache_folder", lambda: tmp_path / "cache")
    yield fake
    assert fake.faults == []


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.engine"


def load(path, trt, content=None, **plan):
    if content is not None:
        path.write_bytes(content)
    backend = "tensorrt-rtx" if trt.__name__ == "tensorrt_rtx" else "tensorrt"
    return LoadedPlan(path, engine_of(path, backend, **plan), trt, GPU)


def test_tensors(cuda, path):
    plan = load(path, FakeTensorrt(cuda), plan_bytes())
    assert (plan.input.name, plan.input.shape, plan.input.nbytes(2)) == (
        "pixels",
        (3, 32, 32),
        6144,
    )
    assert [(t.name, t.shape, t.nbytes(2)) for t in plan.outputs] == [
        ("score", (), 8),
        ("weights", (10,), 80),
    ]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"not a plan", "refused by TensorRT: magicTag mismatch"),
        (b"", "magicTag"),
        (plan_bytes(types={"score": "HALF"}), "tensor 'score' of type DataType.HALF"),
        (plan_bytes(types={"pixels": "FLOAT"}), "tensor 'pixels' of type DataType.FLOAT"),
        (plan_bytes(((1, 8, 8),)), r"profiles \[\(1, 8, 8\)\], its record says 1:2:4"),
        (plan_bytes(((1, 2, 4), (1, 1, 1))), "its record says 1:2:4"),
        (plan_bytes(host_code=True), "host code is not allowed"),
    ],
)
def test_refused_plans(cuda, path, content, said):
    with pytest.raises(BundleError, match=f"model.engine' .*{said}.*; {REBUILD}"):
        load(path, FakeTensorrt(cuda), content)


def test_unreadable_plan(cuda, path):
    with pytest.raises(BundleError, match=f"is missing.*{REBUILD}"):
        load(path, FakeTensorrt(cuda))


def test_changed_plan_is_not_deserialised(cuda, path, monkeypatch):
    trt = FakeTensorrt(cuda)
    monkeypatch.setattr(trt.Runtime, "deserialize_cuda_engine", None)
    path.write_bytes(plan_bytes())
    engine = engine_of(path)
    path.write_bytes(plan_bytes(host_code=True))
    with pytest.raises(BundleError, match=f"SHA-256 differs.*{REBUILD}"):
        LoadedPlan(path, engine, trt, GPU)


@pytest.mark.parametrize("is_null", [True, False])
def test_tensorrt_that_cannot_start_is_left_alone(cuda, path, is_null):
    """Without CUDA TensorRT returns no runtime, or one whose use crashes the process."""
    trt = FakeTensorrt(cuda)
    trt.start_failure, trt.is_null_without_cuda = "CUDA initialization failure 35", is_null
    with pytest.raises(DeviceError, match=r"not start: CUDA initialization failure 35; .*nvidia-"):
        load(path, trt, plan_bytes(), version_compatible=True)


def test_gpu_too_full_for_the_engine(cuda, path, monkeypatch):
    trt = FakeTensorrt(cuda)

    def full(runtime, serialized_engine):
        runtime.logger.log(1, "Requested amount of GPU memory: OutOfMemory")

    monkeypatch.setattr(trt.Runtime, "deserialize_cuda_engine", full)
    with pytest.raises(OutOfMemoryError, match="free memory of the GPU"):
        load(path, trt, plan_bytes())


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt_lean"])
def test_version_compatible_plans_may_contain_host_code(cuda, path, name):
    load(path, FakeTensorrt(cuda, name), plan_bytes(host_code=True), version_compatible=True)


def test_warnings_are_logged(cuda, path, caplog):
    with caplog.at_level(logging.INFO, "drexperts.runtime"):
        load(path, FakeTensorrt(cuda), plan_bytes())
    assert "TensorRT says: the engine is of another model of GPU" in caplog.text


def test_the_first_logger_stays(cuda, path):
    """TensorRT keeps using the first logger after its plan is closed."""
    trt = FakeTensorrt(cuda)
    load(path, trt, plan_bytes()).close()
    gc.collect()
    with pytest.raises(BundleError, match="magicTag mismatch"):
        load(path, trt, b"not a plan")


def test_errors_quote_only_what_this_call_logged_in_this_thread(cuda, path):
    trt = FakeTensorrt(cuda)
    plan = load(path, trt, plan_bytes())
    trt.say("earlier")
    with pytest.raises(DeviceError, match="not work: it logged no reason;"):
        plan.attempt("work", lambda: False)

    def fails_while_others_do():
        trt.say("mine")
        other = threading.Thread(target=trt.say, args=["theirs"])
        other.start()
        other.join()
        return None

    with pytest.raises(DeviceError, match="not work: mine; run it again"):
        plan.attempt("work", fails_while_others_do)


def test_stripped_plan_takes_the_weights_of_its_graph(cuda, path):
    graph = toy_graph().SerializeToString()
    path.with_name("model.onnx").write_bytes(graph)
    sha256 = hashlib.sha256(graph).hexdigest()
    trt = FakeTensorrt(cuda)
    plan = load(path, trt, plan_bytes(refitted=False), stripped=True, onnx_sha256=sha256)
    assert plan.make_context() is not None


@pytest.mark.parametrize("graph", [b"graph of something else", None])
def test_stripped_plan_takes_no_other_weights(cuda, path, graph):
    if graph is not None:
        path.with_name("model.onnx").write_bytes(graph)
    with pytest.raises(BundleError, match=f"model.onnx; {REBUILD}"):
        load(path, FakeTensorrt(cuda), plan_bytes(refitted=False), stripped=True)


def test_stripped_plan_takes_no_weights_from_elsewhere(cuda, path):
    graph = onnx.ModelProto()
    graph.graph.initializer.add().data_location = onnx.TensorProto.EXTERNAL
    path.with_name("model.onnx").write_bytes(graph.SerializeToString())
    sha256 = hashlib.sha256(graph.SerializeToString()).hexdigest()
    with pytest.raises(BundleError, match="outside itself"):
        load(
            path, FakeTensorrt(cuda), plan_bytes(refitted=False), stripped=True, onnx_sha256=sha256
        )


def test_refit_takes_the_bytes_that_were_hashed(cuda, path, monkeypatch):
    """A graph that is exchanged after its hash was taken is not read again."""
    graph = toy_graph().SerializeToString()
    model = path.with_name("model.onnx")
    model.write_bytes(graph)
    sha256 = hashlib.sha256(graph).hexdigest()
    swap_after_hash(monkeypatch, model, b"")
    plan = load(
        path, FakeTensorrt(cuda), plan_bytes(refitted=False), stripped=True, onnx_sha256=sha256
    )
    assert model.read_bytes() == b""
    assert plan.make_context() is not None


def test_refit_that_fails(cuda, path):
    path.with_name("model.onnx").write_bytes(b"")  # a graph without anything
    sha256 = hashlib.sha256(b"").hexdigest()
    trt = FakeTensorrt(cuda)
    with pytest.raises(BundleError, match=f"model.onnx: this is no graph; {REBUILD}"):
        load(path, trt, plan_bytes(refitted=False), stripped=True, onnx_sha256=sha256)


def test_lean_runtime_cannot_refit(cuda, path):
    trt = FakeTensorrt(cuda, "tensorrt_lean")
    with pytest.raises(BundleError, match="the lean runtime"):
        load(path, trt, plan_bytes(), stripped=True, version_compatible=True)


def test_scratch_memory_is_that_of_the_shapes(cuda, path):
    trt = FakeTensorrt(cuda)
    plan = load(path, trt, plan_bytes())
    with Stream() as stream:
        execution = Execution(plan, 3)
        execution.choose(0, stream)
        assert execution.scratch() == 3000
        trt.size_failure = "no such shape"
        with pytest.raises(DeviceError, match="no such shape"):
            execution.scratch()
        execution.close()
    assert plan.attempt("need no memory", lambda: 0) == 0


def test_shapes_outside_the_profile(cuda, path):
    plan = load(path, FakeTensorrt(cuda), plan_bytes())
    with Stream() as stream:
        execution = Execution(plan, 5)
        with pytest.raises(Exception, match=r"take the shape \(5, .* outside the profile"):
            execution.choose(0, stream)
        execution.close()
    assert cuda.live["context"] == 0


# Kernels compiled by TensorRT for RTX.


def kernels(tmp_path):
    folder = tmp_path / "cache" / "rtx-kernels"
    return sorted(folder.iterdir()) if folder.exists() else []


@pytest.fixture
def rtx(cuda):
    return FakeTensorrt(cuda, "tensorrt_rtx", "1.7.1.116")


def test_kernels_are_kept_for_the_next_process(rtx, path, tmp_path):
    plan = load(path, rtx, plan_bytes())
    Execution(plan, 1).close()
    plan.close()
    (file,) = kernels(tmp_path)
    assert file.name.endswith("-8.9-1.7.1.116")
    assert file.read_bytes() == b"kernels: kernel"
    load(path, rtx).close()
    assert rtx.caches_read == [b"kernels: kernel"]
    assert file.parent.stat().st_mode & 0o077 == 0


def test_kernels_of_another_engine_are_not_read(rtx, path, tmp_path):
    load(path, rtx, plan_bytes()).close()
    load(path, rtx, plan_bytes(other=1)).close()
    assert len(kernels(tmp_path)) == 2
    assert rtx.caches_read == []


def test_kernels_that_do_not_match_are_compiled_anew(rtx, path, tmp_path, caplog):
    load(path, rtx, plan_bytes()).close()
    (file,) = kernels(tmp_path)
    file.write_bytes(b"damaged")
    with caplog.at_level(logging.INFO, "drexperts.runtime"):
        load(path, rtx).close()
    assert "compiled anew" in caplog.text
    assert file.read_bytes() == b"kernels:"


def test_kernels_that_cannot_be_written_are_no_error(rtx, path, tmp_path, caplog):
    (tmp_path / "cache").write_text("in the way")
    plan = load(path, rtx, plan_bytes())
    with caplog.at_level(logging.INFO, "drexperts.runtime"):
        plan.close()
    assert "not kept" in caplog.text


def test_kernels_are_written_whole_or_not_at_all(rtx, path, tmp_path, monkeypatch):
    load(path, rtx, plan_bytes()).close()
    (file,) = kernels(tmp_path)
    plan = load(path, rtx)
    Execution(plan, 1).close()

    def fails(*_):
        raise OSError("no")

    monkeypatch.setattr(os, "replace", fails)
    plan.close()
    assert kernels(tmp_path) == [file]
    assert file.read_bytes() == b"kernels:"


def test_tensorrt_keeps_no_kernels(cuda, path, tmp_path):
    load(path, FakeTensorrt(cuda), plan_bytes()).close()
    assert kernels(tmp_path) == []


def test_the_real_lean_runtime_without_a_driver(path):
    """In a process of its own, which must not crash."""
    pytest.importorskip("tensorrt_lean", reason="TensorRT's lean runtime is not installed")
    if compatibility.why_no_gpu() is None:
        pytest.skip("there is a GPU")
    path.write_bytes(b"not a plan")
    code = (
        "import sys, tensorrt_lean, test_tensorrt_plan as test; from pathlib import Path\n"
        "try:\n test.load(Path(sys.argv[1]), tensorrt_lean, version_compatible=True)\n"
        "except test.DeviceError as error:\n print(error)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, str(path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "TensorRT could not start: " in done.stdout


def test_refused_by_the_real_library(path):
    """With the real logger and runtime; accepting a plan would need a GPU."""
    rtx = pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    path.write_bytes(b"not a plan" * 100)
    engine = engine_of(path, "tensorrt-rtx", version=rtx.__version__)
    with pytest.raises(BundleError, match=f"magicTag.*{REBUILD}-rtx'"):
        LoadedPlan(path, engine, rtx, GPU)
