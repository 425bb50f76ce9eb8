"""MATLAB files whose arrays claim more than there is, and the genuine kinds."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.io import savemat

from drexperts.data.matlab_files import read_matlab
from drexperts.runtime.errors import DataError

HEADER = b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack("<H", 0x100) + b"IM"
CELL, STRUCT, TEXT, DOUBLE = 1, 2, 4, 6


def element(kind: int, data: bytes) -> bytes:
    return struct.pack("<II", kind, len(data)) + data + b"\0" * (-len(data) % 8)


def matrix(kind: int, shape: tuple[int, ...], body: bytes = b"", name: bytes = b"x") -> bytes:
    sides = struct.pack(f"<{len(shape)}i", *shape)
    flags = struct.pack("<II", kind, 0)
    return element(14, element(6, flags) + element(5, sides) + element(1, name) + body)


def compressed(data: bytes) -> bytes:
    packed = zlib.compress(data, 9)
    return struct.pack("<II", 15, len(packed)) + packed


def nested(depth: int) -> bytes:
    made = matrix(DOUBLE, (1, 1), element(9, bytes(8)), b"")
    for _ in range(depth):
        made = matrix(CELL, (1, 1), made)
    return made


ONE = element(9, struct.pack("<d", 1.5))


def write(folder: Path, *elements: bytes) -> Path:
    path = folder / "labels.mat"
    path.write_bytes(HEADER + b"".join(elements))
    return path


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("oned_as", ["row", "column"])
def test_numbers_and_cells_of_text_are_read(packed, oned_as, tmp_path):
    names = np.array(["a.bmp", "\u00e4 long name.bmp", ""], object)
    content = {"names": names, "scores": np.array([1.5, 2.0, 3.0]), "on": np.array([0, 1, 1], "u1")}
    path = tmp_path / "labels.mat"
    savemat(path, content, do_compression=packed, oned_as=oned_as)
    assert read_matlab(path, "scores") == [1.5, 2.0, 3.0]
    assert read_matlab(path, "on") == [0, 1, 1]
    assert read_matlab(path, "names") == ["a.bmp", "\u00e4 long name.bmp", None]


def test_an_array_written_by_hand_is_read(tmp_path):
    """So that the refusals below are for what they say."""
    assert read_matlab(write(tmp_path, matrix(DOUBLE, (1, 1), ONE)), "x") == [1.5]
    assert read_matlab(write(tmp_path, compressed(matrix(DOUBLE, (1, 1), ONE))), "x") == [1.5]
    assert read_matlab(write(tmp_path, nested(2)), "x") == [0.0]
    struct_first = write(
        tmp_path, matrix(STRUCT, (1, 1), name=b"about"), matrix(DOUBLE, (1, 1), ONE)
    )
    assert read_matlab(struct_first, "x") == [1.5]


def test_numbers_of_every_type_and_order_are_read(tmp_path):
    for kind, code in {1: "b", 2: "B", 3: "h", 4: "H", 5: "i", 6: "I", 7: "f", 9: "d"}.items():
        body = element(kind, struct.pack(f"<3{code}", 1, 2, 3))
        assert read_matlab(write(tmp_path, matrix(DOUBLE, (1, 3), body)), "x") == [1, 2, 3]
    small = struct.pack(
        "<HH4s", 2, 3, bytes((1, 2, 3))
    )  # inside the tag, as MATLAB saves few bytes
    assert read_matlab(write(tmp_path, matrix(DOUBLE, (3, 1), small)), "x") == [1, 2, 3]


@pytest.mark.parametrize(
    "content",
    [
        matrix(CELL, (10**9, 1)),
        matrix(CELL, (1, 1), matrix(CELL, (10**9, 1), name=b"")),
        matrix(CELL, (2**16, 2**16)),
        matrix(DOUBLE, (-1, 1), ONE),
        matrix(STRUCT, (1, 1)),
        compressed(matrix(DOUBLE, (1, 5 * 10**6), element(9, bytes(40 * 10**6)))),
        nested(500),
        struct.pack("<II", 14, 2**31) + bytes(64),
        matrix(DOUBLE, (2, 1), ONE),
        matrix(TEXT, (10**6, 1), element(16, b"a.bmp")),
        matrix(DOUBLE, (1, 1), element(99, bytes(8))),
    ],
    ids=[
        *("cells", "inner", "area", "negative", "struct", "packed", "deep", "long", "fewer"),
        "rows",
        "unknown",
    ],
)
def test_an_array_that_claims_more_than_there_is_is_refused(content, tmp_path):
    path = write(tmp_path, content)
    assert path.stat().st_size < 100_000
    with pytest.raises(DataError, match=r"labels\.mat"):
        read_matlab(path, "x")


@pytest.mark.parametrize("content", [b"", b"\x89HDF\r\n\x1a\n" + bytes(500), bytes(20)])
def test_other_versions_of_the_format_are_refused(content, tmp_path):
    (tmp_path / "labels.mat").write_bytes(content)
    with pytest.raises(DataError, match=r"labels\.mat .*level 5"):
        read_matlab(tmp_path / "labels.mat", "x")


@pytest.mark.slow
@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    packed=st.booleans(),
    changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=6),
)
def test_a_damaged_file_is_read_or_refused(packed, changes, tmp_path):
    path = tmp_path / "labels.mat"
    savemat(path, {"x": np.array([["a.bmp"], ["b.bmp"]], object)}, do_compression=packed)
    content = bytearray(path.read_bytes())
    for place, value in changes:
        content[int(place * (len(content) - 1))] = value
    path.write_bytes(content)
    try:
        assert len(read_matlab(path, "x")) < 10**7
    except DataError as error:
        message = str(error)
        assert "labels.mat" in message
