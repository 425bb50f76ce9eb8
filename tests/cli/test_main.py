import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import types
from pathlib import Path

import pytest
from support.waiting import PATIENCE

from drexperts import __version__
from drexperts.cli.main import main
from drexperts.runtime.compatibility import gpus
from drexperts.runtime.errors import InternalError, StoppedError, UserError
from drexperts.runtime.manifest import read_manifest, sha256_of, write_manifest
from drexperts.runtime.scorer import Scorer

RUNNER = "import sys; from drexperts.cli.main import main; sys.exit(main(sys.argv[1:]))"
BLOCKED = (
    "import sys\n"
    "for name in ('torch', 'torchvision', 'timm', 'open_clip', 'onnx', 'onnxscript', 'scipy',\n"
    "             'safetensors', 'skimage', 'triton'):\n"
    "    sys.modules[name] = None\n"
)


def drx(*arguments, before=""):
    command = [sys.executable, "-P", "-c", before + RUNNER, *map(os.fspath, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)


@pytest.fixture
def call(capsys):
    """call(...): the status, the last line of stdout as JSON, and stderr of `drx ... --json`."""

    def run(*arguments):
        status = main([*map(os.fspath, arguments), "--json"])
        out, err = capsys.readouterr()
        return status, json.loads(out.splitlines()[-1]), err

    return run


@pytest.fixture
def photos(tmp_path, photo):
    folder = tmp_path / "photos"
    for seed, name in enumerate(["a.png", "b.png", "sub/a.png"]):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        photo(60, 40, seed).save(folder / name)
    (folder / "broken.jpg").write_bytes(b"junk")
    return folder


@pytest.fixture
def bundle(toy_bundle, tmp_path):
    return shutil.copytree(toy_bundle, tmp_path / "bundle")


def change_engine(bundle, **changes):
    manifest = read_manifest(bundle)
    engine = dataclasses.replace(manifest.engines[0], **changes)
    manifest = dataclasses.replace(manifest, engines=(engine,))
    write_manifest(manifest, bundle)
    return manifest


def provide(monkeypatch, name, **functions):
    """A stand-in for a module; returns what its functions were called with."""
    calls = {}

    def recorder(function, result):
        def record(*args, **kwargs):
            calls[function] = (args, kwargs)
            if isinstance(result, BaseException):
                raise result
            return result

        return record

    module = types.ModuleType(name)
    for function, result in functions.items():
        setattr(module, function, recorder(function, result))
    monkeypatch.setitem(sys.modules, name, module)
    return calls


# The frame


def test_version(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"drx {__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [[], ["fly"], ["score"], ["score", "b"], ["export", "c"], ["bench", "b", "--batch", "1,x"]],
)
def test_wrong_usage(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert "usage: drx" in capsys.readouterr().err


def test_wrong_usage_has_its_document(capsys):
    with pytest.raises(SystemExit):
        main(["score", "b", "--json"])
    assert "error" in json.loads(capsys.readouterr().out.splitlines()[-1])


def test_help_is_fast():
    code = (
        "import sys\n"
        "from drexperts.cli.main import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'numpy', 'PIL', 'rich', 'onnxruntime', 'torch', 'drexperts.runtime'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    command = [sys.executable, "-P", "-c", code]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert lines[-1] == "[]"
    trained = ("train", "eval", "reproduce", "synth", "explain", "convert-prior")
    for verb in ("demo", "export", "build", "verify", "score", "bench", "info", *trained):
        assert any(line.split()[:1] == [verb] for line in lines)


def test_no_torch_for_scoring_and_info(toy_bundle, photos, tmp_path):
    out = tmp_path / "r.csv"
    arguments = ["score", toy_bundle, photos, "--explain", tmp_path / "e", "--out", out]
    result = drx(*arguments, "--json", before=BLOCKED)
    assert (result.returncode, json.loads(result.stdout)["scored"]) == (0, 3)
    result = drx("info", toy_bundle, before=BLOCKED)
    assert (result.returncode, result.stderr) == (0, "")
    assert "proven" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        (["export", "c.safetensors", "--out", "b"], "export"),
        (["verify", "b"], "export"),
        (["convert-prior", "a.pt", "b.safetensors"], "train"),
        (["train", "--data", "livec", "d", "--out", "r"], "train"),
        (["eval", "c.safetensors", "--data", "livec", "d"], "train"),
        (["reproduce", "table1", "--data-root", "d"], "train"),
        (["synth", "d", "--out", "s"], "train"),
        (["explain", "c.safetensors", "a.png", "--out", "e.png"], "train"),
    ],
)
def test_a_missing_library_names_its_extra(arguments, extra):
    result = drx(*arguments, before=BLOCKED)
    assert result.returncode == 2
    assert f'pip install "drexperts[{extra}]"' in result.stderr
    assert "Traceback" not in result.stderr


def test_a_missing_engine_library(toy_bundle, photos, call, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    status, document, error = call("score", toy_bundle, photos)
    assert status == 2
    assert 'pip install "drexperts[cpu]"' in error
    assert "drexperts[cpu]" in document["error"]


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (UserError("try this"), 2, "drx: try this\n"),
        (StoppedError("stopped", signal.SIGTERM), 143, "drx: stopped\n"),
        (PermissionError(13, "Permission denied", "x"), 2, "check the path"),
        (KeyboardInterrupt(), 130, "drx: interrupted\n"),
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


# score


def test_score(toy_bundle, photos, call):
    status, document, error = call("score", toy_bundle, photos, "--batch", "3", "--threads", "1")
    assert status == 0
    assert "broken.jpg" in error
    counts = [document[name] for name in ("images", "scored", "failed", "already_there")]
    assert counts == [4, 3, 1, 0]
    rows = {row["source"]: row for row in document["results"]}
    assert rows[str(photos / "a.png")]["value"] > 0
    assert rows[str(photos / "broken.jpg")]["value"] is None


def test_tables_go_to_stdout_without_json(toy_bundle, photos, capsys):
    assert main(["score", str(toy_bundle), str(photos)]) == 0
    out, err = capsys.readouterr()
    assert "3 scored, 1 failed" in out
    assert "worst first" in out
    assert "onnxruntime" in err


def test_many_scores_show_their_ends(toy_bundle, tmp_path, photo, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "250")
    for level in range(30):
        photo(34, 34).point(lambda v, level=level: level * 8).save(tmp_path / f"{level:02}.png")
    assert main(["score", str(toy_bundle), f"{tmp_path}/*.png"]) == 0
    lines = capsys.readouterr().out.splitlines()
    values = [
        float(line.split("│")[2]) for line in lines if line.startswith("│") and ".png" in line
    ]
    assert values == [level * 8 for level in (0, 1, 2, 3, 4, 25, 26, 27, 28, 29)]


def test_none_could_be_scored(toy_bundle, photos, call):
    status, document, _ = call("score", toy_bundle, photos / "broken.jpg")
    assert (status, document["failed"]) == (1, 1)


def test_nothing_to_score(toy_bundle, tmp_path, call):
    status, _, error = call("score", toy_bundle, tmp_path)
    assert status == 2
    assert "no image in" in error


@pytest.mark.parametrize("option", [["--threads", "0"], ["--batch", "17"], ["--device", "tpu"]])
def test_values_out_of_range(option, toy_bundle, photos, call):
    status, document, _ = call("score", toy_bundle, photos, *option)
    assert status == 2
    assert "must be" in document["error"]


def test_results_go_on(toy_bundle, photos, tmp_path, photo, call):
    out = tmp_path / "r.jsonl"
    arguments = ["score", toy_bundle, photos, "--out", out]
    assert call(*arguments)[1]["results"] is None
    photo(50, 50).save(photos / "new.png")
    status, document, _ = call(*arguments)
    assert status == 0
    assert (document["already_there"], document["scored"], document["failed"]) == (4, 1, 0)
    photo(50, 50).save(photos / "broken.jpg")
    assert call(*arguments)[1]["scored"] == 0
    status, document, _ = call(*arguments, "--retry-errors")
    assert (document["already_there"], document["scored"], document["failed"]) == (4, 1, 0)
    assert len(out.read_text().splitlines()) == 5
    assert call(*arguments, "--overwrite")[1]["scored"] == 5


def test_results_of_another_bundle(toy_bundle, bundle, photos, tmp_path, call):
    out = tmp_path / "r.jsonl"
    call("score", toy_bundle, photos, "--out", out)
    manifest = read_manifest(bundle)
    spec = dataclasses.replace(manifest.preprocessing, crops_per_side=1)
    write_manifest(dataclasses.replace(manifest, preprocessing=spec), bundle)
    status, document, _ = call("score", bundle, photos, "--out", out)
    assert status == 2
    assert "--overwrite" in document["error"]


def test_explanations(toy_bundle, photos, call):
    folder = photos / "explained"
    arguments = ["score", toy_bundle, photos, "--explain", folder]
    assert call(*arguments)[0] == 0
    names = sorted(path.name for path in folder.iterdir())
    assert [name.split("-")[0] for name in names] == ["a.png", "a.png", "b.png"]
    assert call(*arguments)[1]["images"] == 4  # its own pictures are no photographs


def test_explaining_without_maps(bundle, photos, tmp_path, call):
    write_manifest(dataclasses.replace(read_manifest(bundle), outputs=("score", "weights")), bundle)
    status, document, _ = call("score", bundle, photos, "--explain", tmp_path / "e")
    assert status == 2
    assert "no maps" in document["error"]


def test_names_that_no_encoding_can_print(toy_bundle, photos, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")  # or a table breaks the names
    source = photos / "a.png"
    for name in (b"\xff[red].png", b":smile: [bold].png", "照 片.png".encode()):
        shutil.copy(source, os.fsencode(photos) + b"/" + name)
    result = drx("score", toy_bundle, photos)
    assert result.returncode == 0
    assert "6 scored" in result.stdout
    assert "[red]" in result.stdout


def test_interrupted_scoring_keeps_its_rows(toy_bundle, photos, tmp_path, call, monkeypatch):
    stream = Scorer.score_stream

    def interrupted(self, sources, *, maps=False):
        yield from list(stream(self, sources, maps=maps))[:2]
        raise KeyboardInterrupt

    monkeypatch.setattr(Scorer, "score_stream", interrupted)
    monkeypatch.setattr(Scorer, "score", lambda self, sources: list(stream(self, sources)))
    out = tmp_path / "r.jsonl"
    status, document, _ = call("score", toy_bundle, photos, "--out", out)
    assert status == 130
    assert "are kept" in document["error"]
    assert len(out.read_text().splitlines()) == 2


def test_ctrl_c(toy_bundle):
    pressed = (
        "import os, signal\n"
        "from drexperts.runtime import results\n"
        "results.find_images = lambda paths: os.kill(os.getpid(), signal.SIGINT)\n"
    )
    result = drx("score", toy_bundle, "x", before=pressed)
    assert (result.returncode, result.stderr) == (130, "drx: interrupted\n")


# info


def test_info(toy_bundle, call):
    status, document, tables = call("info", toy_bundle)
    assert status == 0
    assert (document["proven"], document["intact"]) == (True, True)
    assert document["files"] == {"model.onnx": "intact"}
    assert document["manifest"]["preset"] == "paper"
    for text in ("alpha", "0 to 255, higher is better", "distortion 9", "batch invariance"):
        assert text in tables


def test_info_of_a_changed_or_missing_file(bundle, call):
    (bundle / "model.onnx").write_bytes(b"other")
    status, document, tables = call("info", bundle)
    assert (status, document["intact"], document["proven"]) == (1, False, True)
    assert "CHANGED" in tables
    (bundle / "model.onnx").unlink()
    status, document, _ = call("info", bundle)
    assert (status, document["files"]) == (1, {"model.onnx": "MISSING"})


def test_info_of_an_unproven_bundle(bundle, call):
    parity = dataclasses.replace(
        read_manifest(bundle).engines[0].parity,
        score_max=0.5,
        srcc=0.1,
        order_flips=3,
        passed=False,
    )
    limits = {"score_max": 1e-3, "srcc": 0.99, "order_flips": 0.1, "plcc": 0.9}
    change_engine(bundle, parity=dataclasses.replace(parity, limits=limits))
    status, document, tables = call("info", bundle)
    assert (status, document["proven"], document["intact"]) == (1, False, True)
    assert "NOT PROVEN" in tables
    assert tables.count("FAILS") == 3
    change_engine(bundle, parity=None, invariance=None)
    assert call("info", bundle)[2].count("never measured") == 2


def test_info_without_engines(bundle, call):
    write_manifest(dataclasses.replace(read_manifest(bundle), engines=()), bundle)
    status, document, _ = call("info", bundle)
    assert (status, document["proven"]) == (1, False)


def test_info_of_what_is_no_bundle(tmp_path, call):
    status, document, _ = call("info", tmp_path)
    assert status == 2
    assert "drx export" in document["error"]


# The verbs that need more than the runtime


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
        "max_batch": 4,
    }
    provide(monkeypatch, "drexperts.export.bundle", export_bundle=unproven)
    assert call("export", "c.pth", "--out", "b")[:1] == (1,)


@pytest.mark.parametrize("scale", ["1", "5:1", "a:b", "0:inf", "0:1:better", "0:nan", ":"])
def test_scales_that_cannot_be(scale, call, monkeypatch):
    provide(monkeypatch, "drexperts.export.bundle", export_bundle=None)
    assert call("export", "c.pth", "--out", "b", f"--scale={scale}")[0] == 2


def test_verify(bundle, call, monkeypatch):
    proven, unproven = read_manifest(bundle), change_engine(bundle, invariance=None)
    for manifest, wanted in ((proven, 0), (unproven, 1)):
        calls = provide(monkeypatch, "drexperts.export.proof.prove", verify=manifest)
        status, document, tables = call("verify", "b", "--checkpoint", "c.pth")
        assert (status, document["proven"]) == (wanted, wanted == 0)
        assert "batch invariance" in tables
    args, kwargs = calls["verify"]
    assert (args, kwargs["checkpoint"], kwargs["images"]) == ((Path("b"),), Path("c.pth"), None)


@pytest.mark.parametrize(("tensor", "wanted"), [(None, 0), ("linear_3", 1)])
def test_verify_looks_into_layers(tensor, wanted, bundle, call, monkeypatch):
    manifest = read_manifest(bundle)
    first = tensor and types.SimpleNamespace(tensor=tensor, hidden=True)
    report = types.SimpleNamespace(first=first)
    provide(monkeypatch, "drexperts.export.proof.prove", verify=manifest)
    provide(
        monkeypatch,
        "drexperts.export.engines.debug_layers",
        bundle_layers=[(manifest.engines[0], report)],
        divergence_table="a table",
        check_comparable=None,
    )
    status, document, tables = call("verify", bundle, "--debug-layers")
    assert (status, document["first_divergence"]) == (wanted, {"model.onnx": tensor})
    assert "a table" in tables
    assert ("--no-fused-attention" in tables) == (tensor is not None)


def test_layers_that_cannot_be_compared_are_refused_before_any_proof(bundle, call, monkeypatch):
    pytest.importorskip("drexperts.export.engines.debug_layers")  # it imports the proof for itself
    calls = provide(monkeypatch, "drexperts.export.proof.prove", verify=None)
    change_engine(bundle, precision="int8")
    status, document, _ = call("verify", bundle, "--debug-layers")
    assert status == 2
    assert "--precision fp32" in document["error"]
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
    assert "batch invariance" in tables
    (place, backend, chosen), kwargs = calls["build_engine"]
    assert (place, backend) == (Path("b"), "tensorrt-rtx")
    assert [str(profile) for profile in chosen.profiles] == ["1:1:1", "2:8:64"]
    assert (chosen.capabilities, chosen.workspace) == (("8.9",), 4 * 2**30)
    assert (chosen.optimization_level, chosen.plugin) == (5, "prefer")
    assert (kwargs["precision"], kwargs["fused_attention"]) == ("bf16", False)


def test_build_fails_when_the_new_engine_fails_its_proof(bundle, call, monkeypatch, planned):
    manifest = read_manifest(bundle)
    (onnx,) = manifest.engines
    failed = dataclasses.replace(planned(), parity=dataclasses.replace(onnx.parity, passed=False))
    for engine, wanted in ((planned(), 0), (failed, 1)):
        both = dataclasses.replace(manifest, engines=(onnx, engine))
        provide(monkeypatch, "drexperts.export.engines.build", build_engine=both)
        status, document, tables = call("build", "b", "--backend", "tensorrt-rtx")
        assert (status, document["proven"]) == (wanted, wanted == 0)
        assert ("never executed" in " ".join(tables.split())) == (wanted == 0)


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


def test_info_of_engines_that_do_not_run_here(bundle, call, planned):
    if gpus():
        pytest.skip("this machine has a GPU")
    engine = dataclasses.replace(planned(), sha256=sha256_of(bundle / "model.onnx"))
    shutil.copy(bundle / "model.onnx", bundle / engine.file)
    manifest = read_manifest(bundle)
    write_manifest(dataclasses.replace(manifest, engines=(*manifest.engines, engine)), bundle)
    status, document, tables = call("info", bundle)
    assert (status, document["proven"], document["intact"]) == (0, True, True)
    assert "runs here" in tables
    assert "no: tensorrt-rtx.engine needs" in " ".join(tables.split())


def test_score_says_which_engines_it_did_not_take(bundle, call, planned, photos):
    if gpus():
        pytest.skip("this machine has a GPU")
    manifest = read_manifest(bundle)
    write_manifest(dataclasses.replace(manifest, engines=(*manifest.engines, planned())), bundle)
    status, document, notes = call("score", bundle, photos)
    assert (status, document["engine"]) == (0, "model.onnx")
    (passed,) = document["passed_over"]
    assert (passed["file"], passed["backend"]) == ("tensorrt-rtx.engine", "tensorrt-rtx")
    assert "not tensorrt-rtx.engine (tensorrt-rtx)" in notes
    assert call("score", bundle, photos, "--device", "cuda")[0] == 2


@pytest.mark.parametrize("passed", [True, False])
def test_demo(call, monkeypatch, passed):
    calls = provide(monkeypatch, "drexperts.demo.run", run_demo={"passed": passed})
    status, document, _ = call("demo")
    assert (status, document) == (0 if passed else 1, {"passed": passed})
    assert calls["run_demo"][0][0] == Path("runs/demo")


def test_convert_prior(call, monkeypatch):
    calls = provide(monkeypatch, "drexperts.model.daclip", convert_daclip=None)
    status, document, _ = call("convert-prior", "a.pt", "b.safetensors")
    assert (status, document) == (0, {"target": "b.safetensors"})
    assert calls["convert_daclip"][0] == (Path("a.pt"), Path("b.safetensors"))


def test_photographs_may_lie_where_the_explanations_go(call, toy_bundle, photos):
    for _ in range(2):  # the second time, among the pictures of the first
        status, document, _ = call("score", toy_bundle, photos, "--explain", photos)
        assert (status, document["scored"], document["failed"]) == (0, 3, 1)


def test_an_image_is_one_image_however_its_path_is_spelled(call, toy_bundle, photos, monkeypatch):
    out = photos.parent / "scores.jsonl"
    assert call("score", toy_bundle, photos / "a.png", "--out", out)[1]["scored"] == 1
    monkeypatch.chdir(photos)
    _, document, _ = call("score", toy_bundle, "./a.png", "--out", out)
    assert (document["scored"], document["already_there"]) == (0, 1)


@pytest.mark.parametrize("flag", ["--overwrite", "--retry-errors"])
def test_flags_about_a_result_file_need_one(call, toy_bundle, photos, flag):
    status, document, _ = call("score", toy_bundle, photos, flag)
    assert status == 2
    assert "--out" in document["error"]
