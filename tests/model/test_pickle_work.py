"""Pickles that ask for more work than they have bytes are refused before they are read."""

import io
import pickle
import zipfile

import pytest
import torch
from torch.serialization import MAGIC_NUMBER

from drexperts.model.pickle_work import check_pickle
from drexperts.model.weight_files import read_torch_file
from drexperts.runtime.errors import WeightsError

DOUBLED = b"h\0\x86q\0"  # the pair of what is named 0 and itself, which is named 0 from then on
TRIPLED = b"(h\0h\0h\0tq\0"


def key_of(*levels: bytes) -> bytes:
    """A pickle of a dict whose key is a tuple that these operations make of ()."""
    return b"\x80\x02})q\0" + b"".join(levels) + b"K\x01s."


def integers(count: int) -> bytes:
    """A pickle of a dict whose keys have the same hash."""
    prime = 2**61 - 1
    numbers = (b"\x8a\x0c" + (i * prime).to_bytes(12, "little") for i in range(8, 8 + count))
    return b"\x80\x02}(" + b"".join(number + b"K\x01" for number in numbers) + b"u."


BOMBS = {
    "pairs": key_of(*[DOUBLED] * 60),
    "triples": key_of(*[TRIPLED] * 40),
    "integers": integers(10),
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS.keys())
@pytest.mark.parametrize("member", ["data.pkl", "DATA.PKL", "of the old format"])
def test_work_beyond_all_bounds_is_refused(bomb, member, tmp_path):
    path = tmp_path / "bomb.pt"
    if member == "of the old format":
        parts = (MAGIC_NUMBER, 1001, {"little_endian": True})
        path.write_bytes(b"".join(pickle.dumps(part, 2) for part in parts) + bomb)
    else:
        torch.save({"a": torch.zeros(1)}, tmp_path / "good.pt")
        with zipfile.ZipFile(tmp_path / "good.pt") as good, zipfile.ZipFile(path, "w") as bad:
            for name in good.namelist():
                is_pickle = name.endswith("data.pkl")
                changed = name.replace("data.pkl", member)
                bad.writestr(changed, bomb if is_pickle else good.read(name))
    with pytest.raises(WeightsError, match=r"bomb\.pt.*(too often|64 bits)"):
        read_torch_file(path)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_ordinary_objects_pass(protocol):
    shared = (0.9, 0.999)
    groups = [{"betas": shared, "parameters": list(range(1000)), "lr": 2.0**40} for _ in range(50)]
    content = {"groups": groups, "seed": 2**63, "set": {1, frozenset("ab")}, "none": None, -1: b"x"}
    check_pickle(io.BytesIO(pickle.dumps(content, protocol)))


@pytest.mark.parametrize("old", [False, True])
def test_a_training_state_is_read(old, tmp_path):
    model = torch.nn.Sequential(*(torch.nn.Linear(2, 2) for _ in range(20)))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(state, tmp_path / "x.pt", _use_new_zipfile_serialization=not old)
    read = read_torch_file(tmp_path / "x.pt")
    assert torch.equal(read["model"]["3.weight"], state["model"]["3.weight"])
    assert read["optimizer"]["param_groups"] == state["optimizer"]["param_groups"]


@pytest.mark.parametrize("content", [b"", b"\x80\x02", b"t.", b"h\x07.", b"\xff", b"0.", b"}s."])
def test_damaged_pickles(content):
    with pytest.raises(ValueError, match=r"."):
        check_pickle(io.BytesIO(content))
