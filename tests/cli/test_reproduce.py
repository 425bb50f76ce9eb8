"""`drx reproduce`, as it is typed."""

import json
from pathlib import Path

import pytest
from support import miniature
from support.training_verbs import Call, refused

pytestmark = pytest.mark.usefixtures("own_cache", "one_thread")


def test_a_table_with_its_page(tmp_path: Path, start: Path, call: Call) -> None:
    root, out = tmp_path / "data", tmp_path / "out"
    miniature.write("koniq10k", root / "koniq10k", contents=4, side=(72, 66))
    command = ["reproduce", "table4", "--data-root", root, "--out", out, "--init", start]
    command += ["--splits", "1", "--epochs", "1", "--device", "cpu", "--workers", "0"]
    ended = call(*command, "--only", "koniq10k", "--only", "encoder")
    assert ended.status == 0
    assert ended.document["failures"] == []
    measured = [cell for cell in ended.document["cells"] if cell["runs"]]
    assert [cell["name"] for cell in measured] == ["koniq10k-encoder"]
    states = {(cell["row"], cell["column"]): cell["state"] for cell in ended.document["cells"]}
    assert states.pop(("Image encoder", "koniq10k")) == "done"
    assert set(states.values()) == {"not asked for"}
    assert "| --- |" not in ended.error  # a table for a terminal, not Markdown's
    assert "0.941 0.954" in ended.error
    assert "PLCC of the validation images" in ended.error  # chosen as in the released code
    text = (out / "table4.md").read_text()
    assert str(start) in text
    assert "(1 of 1)" in text
    assert json.loads((out / "table4.json").read_text()) == ended.document
    ended = call(*command, "--only", "livec", "--only", "encoder")
    assert ended.status == 1
    (failure,) = ended.document["failures"]
    states = {(cell["row"], cell["column"]): cell["state"] for cell in ended.document["cells"]}
    assert states["Image encoder", "livec"] == "data missing"
    assert str(root / "livec") in failure["error"]
    assert failure["error"] in (out / "table4.md").read_text()
    refused(call(*command, "--only", "kadid10k"), "--only kadid10k")
