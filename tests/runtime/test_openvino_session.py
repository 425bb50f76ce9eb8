"""Sessions of OpenVINO: the graph's own types, own arrays, and engines of a bundle."""

import dataclasses
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import pytest
from support.openvino_engines import FILE, PRODUCTS, add_openvino_engine, mixed_graph
from support.swapping import swap_after_hash

from drexperts import runtime
from drexperts.runtime.cpus import cpu_capability
from drexperts.runtime.errors import (
    BundleError,
    ChangedFileError,
    DeviceError,
    InternalError,
    MissingDependencyError,
    UserError,
)
from drexperts.runtime.installing import install_command
from drexperts.runtime.manifest import read_manifest, sha256_of, write_manifest
from drexperts.runtime.onnx_session import OnnxSession
from drexperts.runtime.openvino_session import OpenvinoSession

pytest.importorskip("openvino")
has_bf16 = pytest.mark.skipif(
    not cpu_capability().endswith(("-amx", "-avx512-bf16")), reason="this CPU has no bfloat16"
)


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def session():
    content = mixed_graph("fp32").SerializeToString()
    return OpenvinoSession("m.onnx", max_batch=4, content=content, threads=2, streams=2)


@pytest.fixture
def bundle(toy_bundle, tmp_path):
    return shutil.copytree(toy_bundle, tmp_path / "bundle")


def pixels(batch, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (batch, 3, 32, 32), np.uint8)


def test_it_computes_what_onnx_runtime_does(session):
    content = mixed_graph("fp32").SerializeToString()
    other = OnnxSession("m.onnx", max_batch=4, content=content).run(pixels(4))
    found = session.run(pixels(4))
    assert {name: a.shape for name, a in found.items()} == {n: a.shape for n, a in other.items()}
    for name, array in found.items():
        assert array.dtype == np.float32
        np.testing.assert_allclose(array, other[name], rtol=1e-5, atol=1e-4)


def test_the_arrays_are_the_callers_own(session):
    first = session.run(pixels(2))
    before = {name: array.copy() for name, array in first.items()}
    session.run(pixels(2, seed=1))
    session.run(pixels(2, seed=2))
    for name, array in first.items():
        np.testing.assert_array_equal(array, before[name])
        array[...] = 0  # and may be written


def test_concurrent_callers_get_their_own_scores(session):
    assert session.concurrency == 2
    batches = [pixels(1 + seed % 4, seed) for seed in range(40)]
    alone = [session.run(batch)["score"] for batch in batches]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda batch: session.run(batch)["score"], batches))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)


def test_its_options_are_those_that_it_runs_with(session):
    told = session.options
    assert told["INFERENCE_PRECISION_HINT"] == "f32"
    assert told["DYNAMIC_QUANTIZATION_GROUP_SIZE"] == "0"
    assert (told["INFERENCE_NUM_THREADS"], told["NUM_STREAMS"]) == ("2", "2")
    assert told["ENABLE_CPU_PINNING"] == "False"


def test_streams_are_at_most_one_per_thread():
    content = mixed_graph().SerializeToString()
    assert OpenvinoSession("m", max_batch=1, content=content, threads=1, streams=3).concurrency == 1


def test_compute_is_timed(session):
    assert session.compute_seconds(pixels(4)) > 0
    with pytest.raises(InternalError):
        session.compute_seconds(pixels(4).astype(np.float32))


@pytest.mark.parametrize(
    "wrong",
    [pixels(1).astype(np.float32), pixels(1)[0], pixels(1)[:, :, :31], pixels(0), pixels(5)],
)
def test_other_pixels_are_our_bug(session, wrong):
    with pytest.raises(InternalError, match="please report"):
        session.run(wrong)


def test_a_failure_inside_the_engine_is_our_bug_and_leaves_it_usable(session, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(session, "_input", "another name")
        for call in (session.run, session.compute_seconds) * 2:
            with pytest.raises(InternalError, match="another name"):
                call(pixels(1))
    assert session.run(pixels(1))["score"].shape == (1,)


def unknown_operation():
    model = mixed_graph()
    model.graph.node[4].op_type = "Pool"
    model.graph.node[4].domain = "drexperts"
    return model.SerializeToString()


@pytest.mark.parametrize("content", [b"not a model", b"<?xml version='1.0'?>", "unknown"])
def test_a_model_that_cannot_be_loaded(content, tmp_path, capfd):
    path = tmp_path / "model.onnx"
    path.write_bytes(unknown_operation() if content == "unknown" else content)
    with pytest.raises(BundleError, match=r"model\.onnx"):
        OpenvinoSession(path, max_batch=1)
    assert capfd.readouterr().err == ""


def test_weights_outside_the_file_are_refused(tmp_path, monkeypatch):
    model = mixed_graph()
    model.graph.initializer[1].data_location = onnx.TensorProto.EXTERNAL
    with pytest.raises(BundleError, match="outside itself"):
        OpenvinoSession("m", max_batch=1, content=model.SerializeToString())


def test_missing_openvino(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingDependencyError, match=re.escape(install_command("openvino"))):
        OpenvinoSession("m", max_batch=1, content=mixed_graph().SerializeToString())


def test_a_bundle_scores_with_it(bundle, photo):
    engine = add_openvino_engine(bundle, "fp32")
    scorer = runtime.load(bundle, "cpu")
    assert (scorer.engine, scorer.passed_over) == (engine, ())
    assert scorer.score(photo(40, 40)).error is None
    said = f"{engine.versions['openvino']} CPU {cpu_capability()}, products 2 fp32"
    assert scorer.session.description == f"openvino {said}"
    assert scorer.fingerprint_parts()["session"] == scorer.session.description


def test_a_file_swapped_after_its_hash_never_runs(bundle, photo, monkeypatch):
    engine = add_openvino_engine(bundle, "fp32")
    path, other = bundle / engine.file, mixed_graph("fp32")
    other.graph.initializer[1].raw_data = bytes(len(other.graph.initializer[1].raw_data))
    image = photo(40, 40)
    expected = runtime.load(bundle).score(image).value
    shutil.rmtree(os.environ["XDG_CACHE_HOME"])
    swap_after_hash(monkeypatch, path, other.SerializeToString())
    assert runtime.load(bundle).score(image).value == expected != 0
    with pytest.raises(ChangedFileError, match=r"SHA-256.*build_engine"):
        runtime.load(bundle)


def test_other_products_than_recorded_are_refused(bundle):
    add_openvino_engine(bundle, "fp32", products={"bf16": 1, "fp32": 1})
    scorer = runtime.load(bundle)
    assert scorer.engine.backend == "onnx"
    ((_, _, reason),) = scorer.passed_over
    assert re.search(r"1 bf16, 1 fp32.*with 2 fp32.*build_engine\(bundle, 'openvino'\)", reason)
    with pytest.raises(DeviceError, match="2 fp32"):
        runtime.load(bundle, engine="openvino")


def test_products_that_were_not_read_back_are_no_proof_and_not_compared(bundle):
    add_openvino_engine(bundle, "fp32", products={})
    scorer = runtime.load(bundle)
    assert scorer.engine.backend == "onnx"
    ((_, _, reason),) = scorer.passed_over
    assert re.search(r"never read back.*build_engine\(bundle, 'openvino'\)", reason)
    assert runtime.load(bundle, allow_unverified=True).engine.backend == "openvino"


LOAD = """
import sys
from drexperts import runtime
scorer = runtime.load(sys.argv[1])
print(scorer.engine.file, scorer.session.description)
print(*(reason for _, _, reason in scorer.passed_over))
"""


@has_bf16
def test_a_cpu_without_bfloat16_falls_back(bundle):
    """In a process whose oneDNN is told that the CPU has no more than AVX2."""
    add_openvino_engine(bundle)
    told = []
    for isa in ("DEFAULT", "AVX2", "DEFAULT"):
        command = [sys.executable, "-P", "-c", LOAD, str(bundle)]
        settings = os.environ | {"ONEDNN_MAX_CPU_ISA": isa}
        done = subprocess.run(command, env=settings, capture_output=True, text=True, check=True)
        told.append(done.stdout)
    assert told[0] == told[2]
    assert told[0].startswith(f"{FILE} openvino")
    assert told[0].splitlines()[0].endswith("products 1 bf16, 1 fp32")
    assert told[1].startswith("model.onnx onnxruntime")
    assert "unset ONEDNN_MAX_CPU_ISA" in told[1]


OPEN = """
import sys
from drexperts.runtime.errors import DeviceError
from drexperts.runtime.openvino_session import OpenvinoSession
try:
    OpenvinoSession(sys.argv[1], max_batch=1, wanted={"bf16": 1, "fp32": 1})
except DeviceError as error:
    print(error)
"""


@has_bf16
def test_a_session_on_a_cpu_without_bfloat16_is_an_error(bundle):
    engine = add_openvino_engine(bundle)
    command = [sys.executable, "-P", "-c", OPEN, str(bundle / engine.file)]
    settings = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = subprocess.run(command, env=settings, capture_output=True, text=True, check=True)
    assert "computes it with 2 fp32" in done.stdout


@pytest.mark.parametrize("variable", ["ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE"])
def test_where_float32_may_become_bfloat16_it_is_passed_over(bundle, variable, monkeypatch):
    add_openvino_engine(bundle, "fp32")
    monkeypatch.setenv(variable, "BF16")
    for unverified in (False, True):
        scorer = runtime.load(bundle, allow_unverified=unverified)
        assert scorer.engine.backend == "onnx"
        assert f"unset {variable}" in scorer.passed_over[0].reason


@has_bf16
def test_the_types_that_the_graph_asks_for_are_those_that_it_gets():
    session = OpenvinoSession("m", max_batch=1, content=mixed_graph().SerializeToString())
    assert session.products == PRODUCTS


WITHOUT = """
import sys
sys.modules[sys.argv[2]] = None
from drexperts import runtime
print(runtime.load(sys.argv[1]).engine.backend, *sorted({"onnx", "torch"} & sys.modules.keys()))
"""


def test_timing_leaves_no_array_bound():
    content = mixed_graph("fp32").SerializeToString()
    session = OpenvinoSession("m.onnx", max_batch=8, content=content, threads=1)
    expected = {batch: session.run(pixels(batch))["score"] for batch in (4, 1, 8)}
    for strange in (lambda a: a, read_only, lambda a: np.ascontiguousarray(a[::-1])[::-1]):
        given = strange(pixels(4))
        for batch, score in expected.items():
            assert session.compute_seconds(given) > 0
            np.testing.assert_array_equal(session.run(strange(pixels(batch)))["score"], score)
        np.testing.assert_array_equal(given, pixels(4))


def read_only(array):
    array.setflags(write=False)
    return array


@pytest.mark.parametrize("backend", ["openvino", "onnx"])
@pytest.mark.parametrize("threads", [0, 4097, 10**12])
def test_threads_beyond_any_machine_are_refused(bundle, backend, threads):
    add_openvino_engine(bundle, "fp32")
    with pytest.raises(UserError, match="threads must be a whole number from 1 to 4096"):
        runtime.load(bundle, engine=backend, threads=threads)


def test_what_does_not_fit_its_manifest_is_built_again(bundle):
    engine = add_openvino_engine(bundle, "fp32")
    other = mixed_graph("fp32")
    other.graph.output[0].name = other.graph.node[8].output[0] = "mark"
    other.graph.node[9].input[0] = "mark"
    for content in (other.SerializeToString(), b"no model"):
        (bundle / engine.file).write_bytes(content)
        manifest = read_manifest(bundle)
        changed = dataclasses.replace(engine, sha256=sha256_of(bundle / engine.file))
        engines = (manifest.engines[0], changed)
        write_manifest(dataclasses.replace(manifest, engines=engines), bundle)
        with pytest.raises(BundleError, match=r"build_engine\(bundle, 'openvino'\)") as refused:
            runtime.load(bundle, engine="openvino")
        assert "drx export" not in str(refused.value)


def test_timing_leaves_the_callers_pixels_alone(bundle):
    add_openvino_engine(bundle, "fp32")
    session = runtime.load(bundle, engine="openvino").session
    assert isinstance(session, OpenvinoSession)
    zeros = np.zeros((1, 3, 32, 32), np.uint8)
    assert session.compute_seconds(zeros) > 0
    for batch in (1, 4):
        session.run(np.full((batch, 3, 32, 32), 7, np.uint8))
    assert not zeros.any()


@pytest.mark.parametrize(("missing", "used"), [("onnxruntime", "openvino"), ("openvino", "onnx")])
def test_one_library_does_not_need_the_other(bundle, missing, used):
    add_openvino_engine(bundle, "fp32")
    command = [sys.executable, "-P", "-c", WITHOUT, str(bundle), missing]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [used]


def test_another_version_than_it_was_built_with(bundle):
    add_openvino_engine(bundle, "fp32", versions={"openvino": "2026.0.0"})
    scorer = runtime.load(bundle, allow_unverified=True)
    ((_, _, reason),) = scorer.passed_over
    assert re.search(r"with openvino 2026\.0\.0, .* is installed here; rebuild it", reason)


@pytest.mark.parametrize("where", ["x86_64-avx2", "aarch64", None])
def test_a_proof_holds_for_one_kind_of_cpu(bundle, where):
    add_openvino_engine(bundle, "fp32", proven_on=where)
    scorer = runtime.load(bundle)
    assert scorer.engine.backend == "onnx"
    ((_, _, reason),) = scorer.passed_over
    assert f"this CPU is {cpu_capability()}: prove it here" in reason
    assert (where or "an unknown CPU") in reason
    assert runtime.load(bundle, allow_unverified=True).engine.backend == "openvino"


def test_it_is_opened_again_after_a_fork(bundle, photo):
    add_openvino_engine(bundle, "fp32")
    code = (
        "import os, sys\n"
        "from PIL import Image\n"
        "from drexperts import runtime\n"
        "scorer = runtime.load(sys.argv[1])\n"
        "image = Image.new('RGB', (40, 40), (90, 90, 90))\n"
        "print(scorer.score(image).value, flush=True)\n"
        "child = os.fork()\n"
        "print(scorer.score(image).value, flush=True)\n"
        "assert not child or os.waitpid(child, 0)[1] == 0\n"
    )
    command = [sys.executable, "-P", "-c", code, str(bundle)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert len(done.stdout.split()) == 3
    assert len(set(done.stdout.split())) == 1


def test_of_its_engines_the_one_of_fewest_bits_comes_first(bundle):
    files = [f"{name}.onnx" for name in ("a", "b", "c")]
    for file, precision in zip(files, ("fp32", "bf16", "fp32"), strict=True):
        engine = add_openvino_engine(bundle, precision)
        (bundle / engine.file).rename(bundle / file)
        manifest = read_manifest(bundle)
        renamed = dataclasses.replace(
            manifest.engines[-1], file=file, precision={"c.onnx": "int8"}.get(file, precision)
        )
        engines = (*manifest.engines[:-1], renamed)
        write_manifest(dataclasses.replace(manifest, engines=engines), bundle)
    from drexperts.runtime.selection import by_preference

    found = [engine.file for engine in by_preference(read_manifest(bundle).engines)]
    assert found == ["c.onnx", "b.onnx", "a.onnx", "model.onnx"]


SIGNALLED = """
import gc, os, signal, sys
from drexperts.runtime.openvino_session import OpenvinoSession
first, second = (OpenvinoSession(sys.argv[1], max_batch=1) for _ in range(2))
first.close(); del first; gc.collect()  # in the order in which they were opened
second.close(); del second; gc.collect()
signal.signal(signal.SIGTERM, lambda *_: print("handled"))
os.kill(os.getpid(), signal.SIGTERM)
"""


def test_a_signal_after_sessions_were_closed_is_handled(tmp_path):
    """With a Core for each session, a CPU with AMX ends the process there."""
    onnx.save(mixed_graph(), tmp_path / "m.onnx")
    command = [sys.executable, "-P", "-c", SIGNALLED, str(tmp_path / "m.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr
