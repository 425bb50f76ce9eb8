"""`drx` itself: usage, exit statuses, missing libraries; and verbs that call a library function."""

import dataclasses
import json
import signal
import subprocess
import sys
import types
from pathlib import Path

import pytest
from support.command_line import NO_TRAINING_LIBRARY, change_engine, drx, provide, without

from drexperts import __version__
from drexperts.cli.main import main
from drexperts.export import Measured, Verification
from drexperts.runtime.errors import InternalError, StoppedError, UserError
from drexperts.runtime.installing import install_command
from drexperts.runtime.manifest import read_manifest


def test_version(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"drx {__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [[], ["fly"], ["score"], ["export", "c"], ["bench", "b", "--batch", "1,x"]],
)
def test_wrong_usage(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert "usage: drx" in capsys.readouterr().err


def test_wrong_usage_has_its_document(capsys):
    with pytest.raises(SystemExit):
        main(["score", "--json"])
    assert "error" in json.loads(capsys.readouterr().out.splitlines()[-1])


def test_help_is_fast():
    code = (
        "import sys\n"
        "from drexperts.cli.main import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'numpy', 'PIL', 'rich', 'onnxruntime', 'torch', 'drexperts.runtime.scorer'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    command = [sys.executable, "-P", "-c", code]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert lines[-1] == "[]"
    trained = ("train", "eval", "reproduce", "synth", "explain", "convert-prior")
    for verb in ("demo", "export", "build", "verify", "score", "bench", "info", *trained):
        assert any(line.split()[:1] == [verb] for line in lines)


@pytest.mark.slow
def test_no_torch_for_scoring_and_info(toy_bundle, photos, tmp_path):
    out = tmp_path / "r.csv"
    arguments = ["score", toy_bundle, photos, "--explain", tmp_path / "e", "--out", out]
    result = drx(*arguments, "--json", before=NO_TRAINING_LIBRARY)
    assert (result.returncode, json.loads(result.stdout)["scored"]) == (0, 3)
    result = drx("info", toy_bundle, before=NO_TRAINING_LIBRARY)
    assert (result.returncode, result.stderr) == (0, "")
    assert "proven" in result.stdout


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        pytest.param(["export", "c.safetensors", "--out", "b"], "export", marks=SLOW),
        (["verify", "b"], "export"),
        (["convert-prior", "a.pt", "b.safetensors"], "train"),
        pytest.param(["eval", "c.safetensors", "--data", "livec", "d"], "train", marks=SLOW),
        pytest.param(["reproduce", "table1", "--data-root", "d"], "train", marks=SLOW),
        pytest.param(["synth", "d", "--out", "s"], "train", marks=SLOW),
        pytest.param(["explain", "c.safetensors", "a.png", "--out", "e.png"], "train", marks=SLOW),
    ],
)
def test_a_missing_library_names_its_extra(arguments, extra):
    result = drx(*arguments, before=NO_TRAINING_LIBRARY)
    assert result.returncode == 2
    assert install_command(extra) in result.stderr
    assert "Traceback" not in result.stderr


def test_without_rich_the_command_line_names_its_extra(toy_bundle):
    result = drx("info", toy_bundle, before=without("rich"))
    assert result.returncode == 2
    assert install_command("cli") in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (UserError("try this"), 2, "drx: try this"),
        (StoppedError("stopped", signal.SIGTERM), 143, "drx: stopped"),
        (PermissionError(13, "Permission denied", "x"), 2, "check the path"),
        (KeyboardInterrupt(), 130, "drx: interrupted"),
        (InternalError("odd"), 70, "odd. This is a bug in drexperts: please report it"),
        (ZeroDivisionError("x"), 70, "This is a bug in drexperts: please report it"),
        (ModuleNotFoundError("no numpyro", name="numpyro"), 70, "This is a bug"),
    ],
)
def test_exit_statuses(error, status, said, call, monkeypatch):
    provide(monkeypatch, "drexperts.model.daclip", convert_daclip=error)
    got, document, stderr = call("convert-prior", "a.pt", "b.safetensors")
    assert got == status
    assert said in stderr
    assert ("Traceback" in stderr) == (status == 70)
    assert document["error"] in stderr


def test_export(bundle, call, monkeypatch):
    proven, unproven = read_manifest(bundle), change_engine(bundle, parity=None)
    calls = provide(monkeypatch, "drexperts.export.bundle", export_bundle=proven)
    options = ["--scale=-1:5:lower-is-better", "--precision", "fp16", "--no-maps"]
    status, document, _ = call("export", "c.pth", "--out", "b", *options, "--max-batch", "4")
    assert (status, document["proven"], document["bundle"]) == (0, True, "b")
    args, kwargs = calls["export_bundle"]
    assert args == (Path("c.pth"), Path("b"))
    assert callable(kwargs.pop("progress"))
    scale = kwargs.pop("scale")
    assert (scale.low, scale.high, scale.higher_is_better) == (-1, 5, False)
    assert kwargs == {
        "images": None,
        "precision": "fp16",
        "target": "cpu",
        "maps": False,
        "crops_per_side": None,
        "max_batch": 4,
    }
    provide(monkeypatch, "drexperts.export.bundle", export_bundle=unproven)
    assert call("export", "c.pth", "--out", "b")[:1] == (1,)


def test_an_export_ends_with_what_a_user_wants(bundle, call, monkeypatch):
    provide(monkeypatch, "drexperts.export.bundle", export_bundle=read_manifest(bundle))
    status, document, shown = call("export", "c.pth", "--out", bundle)
    assert status == 0
    assert document["engine"] == "model.onnx"
    assert document["bytes"] == sum(path.stat().st_size for path in bundle.iterdir())
    assert document["speed"]["ms"] > 0
    assert document["speed"]["calls"] >= 3
    assert document["next"] == f"drx score {bundle} photos/ --out scores.jsonl"
    for text in (str(bundle), "fp32", "proven", "on 100 pictures", "ms per crop", document["next"]):
        assert text in shown
    assert "holds" not in shown


def test_a_failed_export_shows_what_failed_and_nothing_else(bundle, call, monkeypatch):
    (engine,) = read_manifest(bundle).engines
    assert engine.parity is not None
    parity = dataclasses.replace(engine.parity, score_max=0.5, srcc=0.1, passed=False)
    failed = change_engine(bundle, parity=parity)
    provide(monkeypatch, "drexperts.export.bundle", export_bundle=failed)
    status, document, shown = call("export", "c.pth", "--out", bundle)
    assert (status, document["proven"]) == (1, False)
    assert shown.count("FAILS") == 2
    assert "holds" not in shown
    assert "NOT PROVEN" in shown
    assert document["next"].startswith(f"drx info {bundle}")


@pytest.mark.parametrize("scale", ["1", "5:1", "a:b", "0:inf", "0:1:better", "0:nan", ":"])
def test_scales_that_cannot_be(scale, call, monkeypatch):
    provide(monkeypatch, "drexperts.export.bundle", export_bundle=None)
    assert call("export", "c.pth", "--out", "b", f"--scale={scale}")[0] == 2


def verified(manifest, **measured):
    """What `verify` returns; its engines share what was measured of them."""
    given = {"parity": True, "batch_invariance": True, "reason": None} | measured
    each = tuple(Measured(e.file, e.backend, **given) for e in manifest.engines)
    return Verification(manifest, "4 images in photos", each)


def test_verify(bundle, call, monkeypatch):
    proven, unproven = read_manifest(bundle), change_engine(bundle, invariance=None)
    for manifest, wanted in ((proven, 0), (unproven, 1)):
        calls = provide(monkeypatch, "drexperts.export.proof.prove", verify=verified(manifest))
        status, document, tables = call("verify", "b", "--checkpoint", "c.pth")
        assert (status, document["proven"]) == (wanted, wanted == 0)
        assert document["measured"][0]["parity"]
        assert "batch invariance" in tables
        assert "not measured here" not in tables
    args, kwargs = calls["verify"]
    assert (args, kwargs["checkpoint"], kwargs["images"]) == ((Path("b"),), Path("c.pth"), None)


def test_verify_says_what_it_did_not_measure(bundle, call, monkeypatch):
    done = verified(read_manifest(bundle), parity=False, reason="there is no checkpoint")
    provide(monkeypatch, "drexperts.export.proof.prove", verify=done)
    status, document, tables = call("verify", "b", "--images", "photos")
    assert (status, document["images"]) == (0, "4 images in photos")
    (measured,) = document["measured"]
    assert (measured["parity"], measured["batch_invariance"]) == (False, True)
    assert measured["reason"] == "there is no checkpoint"
    shown = " ".join(tables.split())
    assert "not measured here: parity" in shown
    assert "PARITY: recorded at export" in shown
    assert "BATCH INVARIANCE" not in shown


@pytest.mark.parametrize(("tensor", "wanted"), [(None, 0), ("linear_3", 1)])
def test_verify_looks_into_layers(tensor, wanted, bundle, call, monkeypatch):
    manifest = read_manifest(bundle)
    first = tensor and types.SimpleNamespace(tensor=tensor, hidden=True)
    report = types.SimpleNamespace(first=first)
    provide(monkeypatch, "drexperts.export.proof.prove", verify=verified(manifest))
    provide(
        monkeypatch,
        "drexperts.export.engines.debug_layers",
        bundle_layers=[(manifest.engines[0], report)],
        check_comparable=None,
    )
    provide(monkeypatch, "drexperts.cli.divergence", divergence_table="a table")
    status, document, tables = call("verify", bundle, "--debug-layers")
    assert (status, document["first_divergence"]) == (wanted, {"model.onnx": tensor})
    assert "a table" in tables
    assert ("--no-fused-attention" in tables) == (tensor is not None)


@pytest.mark.slow
def test_layers_that_cannot_be_compared_are_refused_before_any_proof(bundle, call, monkeypatch):
    pytest.importorskip("drexperts.export.engines.debug_layers")  # it imports the proof for itself
    calls = provide(monkeypatch, "drexperts.export.proof.prove", verify=None)
    change_engine(bundle, precision="int8")
    status, document, _ = call("verify", bundle, "--debug-layers")
    assert status == 2
    assert "export the checkpoint in fp32" in document["error"]
    assert "verify" not in calls


def test_build(bundle, call, monkeypatch):
    calls = provide(
        monkeypatch, "drexperts.export.engines.build", build_engine=read_manifest(bundle)
    )
    options = ["--backend", "tensorrt-rtx", "--batch", "1:1:1", "--batch", "2:8:64"]
    options += [
        "--capability",
        "8.9",
        "--workspace",
        "4G",
        "--opt-level",
        "5",
        "--no-fused-attention",
    ]
    status, document, tables = call(
        "build", "b", *options, "--precision", "bf16", "--no-fused-attention"
    )
    assert (status, document["proven"]) == (0, True)
    assert document["speed"] is None  # there is no bundle
    assert "not measured here" in tables
    (place, backend, chosen), kwargs = calls["build_engine"]
    assert (place, backend) == (Path("b"), "tensorrt-rtx")
    assert [str(profile) for profile in chosen.profiles] == ["1:1:1", "2:8:64"]
    assert (chosen.capabilities, chosen.workspace) == (("8.9",), 4 * 2**30)
    assert (chosen.optimization_level, chosen.plugin) == (5, "prefer")
    assert (kwargs["precision"], kwargs["fused_attention"]) == ("bf16", False)


def test_build_fails_when_the_new_engine_fails_its_proof(bundle, call, monkeypatch, planned):
    manifest = read_manifest(bundle)
    (onnx,) = manifest.engines
    assert onnx.parity is not None
    failed = dataclasses.replace(planned(), parity=dataclasses.replace(onnx.parity, passed=False))
    for engine, wanted in ((planned(), 0), (failed, 1)):
        both = dataclasses.replace(manifest, engines=(onnx, engine))
        provide(monkeypatch, "drexperts.export.engines.build", build_engine=both)
        status, document, tables = call("build", "b", "--backend", "tensorrt-rtx")
        assert (status, document["proven"]) == (wanted, wanted == 0)
        assert ("never executed" in " ".join(tables.split())) == (wanted == 0)
        assert document["engine"] == engine.file
        assert "model.onnx" not in tables  # the engine that was there before


@pytest.mark.parametrize(
    "options",
    [
        ["--backend", "abacus"],
        [],
        ["--backend", "tensorrt", "--workspace", "4 GB"],
        ["--backend", "tensorrt", "--opt-level", "6"],
    ],
)
def test_builds_that_cannot_be(options, bundle):
    assert drx("build", bundle, *options).returncode == 2


@pytest.mark.parametrize("batch", ["0", "1:2", "2:1:3", "x", "1:8:64:128", "4:8:16"])
def test_profiles_that_cannot_be(batch, bundle, call):
    status, document, _ = call("build", bundle, "--backend", "tensorrt-rtx", "--batch", batch)
    assert status == 2
    assert "batch" in document["error"] or "profile" in document["error"]


def test_triton_repo(bundle, call, tmp_path):
    out = tmp_path / "repository"
    status, document, _ = call("triton-repo", bundle, "--out", out, "--name", "iqa")
    assert status == 0
    assert str(out / "iqa_onnx" / "config.pbtxt") in document["files"]
    other = f"sha256:{'0' * 64}"
    status, document, _ = call("triton-repo", bundle, "--out", out, "--digest", other)
    assert status == 2
    assert other in document["error"]


def test_demo(call, monkeypatch, bundle):
    from drexperts.demo.run import DemoReport

    (engine,) = read_manifest(bundle).engines
    report = DemoReport(bundle, dataclasses.replace(engine, parity=None))
    calls = provide(monkeypatch, "drexperts.demo.run", run_demo=report, AIM=0.8)
    assert call("demo")[:2] == (1, {"passed": False, "bundle": str(bundle)})
    assert calls["run_demo"][0][0] == Path("runs/demo")


def test_convert_prior(call, monkeypatch):
    calls = provide(monkeypatch, "drexperts.model.daclip", convert_daclip=None)
    status, document, _ = call("convert-prior", "a.pt", "b.safetensors")
    assert (status, document) == (0, {"target": "b.safetensors"})
    assert calls["convert_daclip"][0] == (Path("a.pt"), Path("b.safetensors"))
