import sys
from pathlib import Path

import pytest
from support import fake_gpu
from support.fake_gpu import Error, FakeCuda, FakeTensorrt, engine_of

from drexperts.runtime import compatibility
from drexperts.runtime.compatibility import (
    Gpu,
    gpus,
    library,
    library_version,
    this_platform,
)
from drexperts.runtime.installing import install_command
from drexperts.runtime.manifest import read_manifest

ADA = Gpu(0, "Ada", "8.9", 2**33, "13.0")
PATH = Path("model.engine")


def obstacle(engine, gpu, version):
    """The obstacle as text; empty if there is none."""
    return compatibility.obstacle(engine, gpu, version) or ""


def why_no_gpu():
    return compatibility.why_no_gpu() or ""


def gpu(capability):
    return Gpu(0, "This GPU", capability, 2**33, "13.0")


@pytest.fixture
def cuda(monkeypatch):
    fake = FakeCuda(names=("First GPU", "Second GPU"))
    fake_gpu.install(monkeypatch, fake)
    return fake


def test_gpus(cuda):
    first, second = gpus()
    assert first == Gpu(0, "First GPU", "8.9", 2**33, "13.4")
    assert (second.index, second.name) == (1, "Second GPU")
    assert why_no_gpu() == ""


@pytest.mark.parametrize(
    ("step", "error"),
    [
        ("cudaDriverGetVersion", Error.cudaErrorInsufficientDriver),
        ("cudaGetDeviceCount", Error.cudaErrorNoDevice),
        ("cudaGetDeviceProperties", Error.cudaErrorInvalidValue),
    ],
)
def test_no_gpu_is_no_error(cuda, step, error):
    cuda.fail(step, error, times=9)
    assert gpus() == ()
    assert error.name in why_no_gpu()


def test_no_cuda_python_is_no_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    assert gpus() == ()
    assert "pip install" in why_no_gpu()


def test_no_obstacle(toy_bundle):
    assert obstacle(engine_of(PATH), ADA, "11.4.0.106") == ""
    assert obstacle(engine_of(PATH, "tensorrt-rtx"), ADA, "1.7.1.116") == ""
    engine_without_a_plan = read_manifest(toy_bundle).engines[0]
    assert obstacle(engine_without_a_plan, None, None) == ""


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
def test_no_library(backend):
    reason = obstacle(engine_of(PATH, backend), ADA, None)
    assert install_command(backend) in reason
    assert "model.engine" in reason


def test_no_gpu(monkeypatch):
    monkeypatch.setattr(compatibility, "why_no_gpu", lambda: "the driver is missing")
    reason = obstacle(engine_of(PATH), None, "11.4.0.106")
    assert "capability 8.9" in reason
    assert "the driver is missing" in reason
    monkeypatch.setattr(compatibility, "why_no_gpu", lambda: None)
    assert "capability 8.9" in obstacle(engine_of(PATH), None, "11.4.0.106")


@pytest.mark.parametrize(
    ("plan", "version", "fits"),
    [
        ({}, "11.4.0.106", True),
        ({}, "11.4.0.107", False),
        ({}, "11.5.0.1", False),
        ({"version_compatible": True}, "11.5.0.1", True),
        ({"version_compatible": True}, "11.4.9.9", True),
        ({"version_compatible": True}, "11.3.0.1", False),
        ({"version_compatible": True}, "10.13.3.9", False),
        ({"version_compatible": True}, "12.0.0.1", True),
        ({"version_compatible": True, "version": "10.13.3.9"}, "11.4.0.106", True),
        ({"version_compatible": True, "version": "10.13.3.9"}, "12.0.0.1", False),
        ({"version_compatible": True, "version": "10.13.3.9"}, "10.3.0.1", False),
        ({"version_compatible": True}, "unknown", False),
    ],
)
def test_versions(plan, version, fits):
    reason = obstacle(engine_of(PATH, **plan), ADA, version)
    assert (reason == "") == fits
    if not fits:
        built = plan.get("version", "11.4.0.106")
        assert built in reason
        assert version in reason
        assert "build_engine(bundle, 'tensorrt')" in reason


def test_rtx_promises_nothing_between_versions():
    engine = engine_of(PATH, "tensorrt-rtx", version_compatible=True)
    assert "1.7.2.1" in obstacle(engine, ADA, "1.7.2.1")


@pytest.mark.parametrize(
    ("backend", "level", "capability", "fits"),
    [
        ("tensorrt", "none", "8.9", True),
        ("tensorrt", "none", "9.0", False),
        ("tensorrt", "same-capability", "8.9", True),
        ("tensorrt", "same-capability", "8.6", False),
        ("tensorrt", "ampere+", "12.0", True),
        ("tensorrt", "ampere+", "8.0", True),
        ("tensorrt", "ampere+", "7.5", False),
        ("tensorrt-rtx", "none", "12.0", False),
        ("tensorrt-rtx", "ampere+", "12.0", False),
    ],
)
def test_capabilities(backend, level, capability, fits):
    engine = engine_of(PATH, backend, hardware_compatibility=level)
    reason = obstacle(engine, gpu(capability), engine.plan.version)
    assert (reason == "") == fits
    if not fits:
        assert f"This GPU has {capability}" in reason
        assert f"build_engine(bundle, {backend!r})" in reason


def test_several_capabilities():
    engine = engine_of(PATH, "tensorrt-rtx", capabilities=("8.6", "8.9"))
    assert obstacle(engine, gpu("8.6"), "1.7.1.116") == ""
    assert "8.6 or 8.9" in obstacle(engine, gpu("8.0"), "1.7.1.116")


def test_platform():
    reason = obstacle(engine_of(PATH, platform="plan9-mips"), ADA, "11.4.0.106")
    assert "plan9-mips" in reason
    assert this_platform() in reason


def test_batches_must_begin_at_one():
    reason = obstacle(engine_of(PATH, profiles=((4, 8, 8), (2, 2, 2))), ADA, "11.4.0.106")
    assert "batches of at least 2" in reason


@pytest.mark.parametrize(
    ("backend", "version_compatible", "installed", "found"),
    [
        ("tensorrt", False, ["tensorrt"], "tensorrt"),
        ("tensorrt", False, ["tensorrt_lean"], None),
        ("tensorrt", True, ["tensorrt_lean"], "tensorrt_lean"),
        ("tensorrt", True, ["tensorrt", "tensorrt_lean"], "tensorrt"),
        ("tensorrt", False, ["tensorrt_rtx"], None),
        ("tensorrt-rtx", False, ["tensorrt_rtx"], "tensorrt_rtx"),
        ("tensorrt-rtx", True, ["tensorrt", "tensorrt_lean"], None),
    ],
)
def test_library(monkeypatch, cuda, backend, version_compatible, installed, found):
    modules = [FakeTensorrt(cuda, name, "11.4.0.106") for name in installed]
    fake_gpu.install(monkeypatch, cuda, *modules)
    engine = engine_of(PATH, backend, version_compatible=version_compatible)
    module = library(engine)
    assert (module and module.__name__) == found
    assert library_version(engine) == ("11.4.0.106" if found else None)
