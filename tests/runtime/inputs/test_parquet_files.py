"""Images in the columns of Parquet files."""

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.archives import png, write_parquet

from drexperts.runtime.errors import ImageError, MissingDependencyError, UserError
from drexperts.runtime.inputs import parquet_files
from drexperts.runtime.inputs.listed import ListedImage
from drexperts.runtime.inputs.parquet_files import parquet_images
from drexperts.runtime.inputs.parquet_layout import Columns
from drexperts.runtime.inputs.remote import opened

ANY = Columns()
IMAGES = [png(i) for i in range(10)]


def images_in(path: Path, columns: Columns = ANY, done: Any = ()) -> list[ListedImage]:
    open_it = partial(opened, str(path))
    return list(parquet_images(path.name, open_it, columns, lambda source: source in done))


def read(image: ListedImage) -> Any:
    assert image.read is not None
    found = image.read()
    return found if isinstance(found, bytes) else found()


def structs(paths: list[str | None] | None = None) -> list[dict[str, Any]]:
    """As Hugging Face's `datasets` writes images."""
    paths = [f"{i}.png" for i in range(10)] if paths is None else paths
    return [{"bytes": data, "path": path} for data, path in zip(IMAGES, paths, strict=True)]


def test_structs_of_bytes_and_path(tmp_path: Path) -> None:
    columns = {"label": list(range(10)), "image": structs(), "thumbnail": IMAGES}
    path = write_parquet(tmp_path / "x.parquet", columns)
    found = images_in(path)
    assert [image.source for image in found] == [f"x.parquet/{i}.png" for i in range(10)]
    assert [read(image) for image in found] == IMAGES


def test_paths_that_are_null_are_replaced_by_numbers(tmp_path: Path) -> None:
    paths = [None if i % 3 else f"{i}.png" for i in range(10)]
    path = write_parquet(tmp_path / "x.parquet", {"image": structs(paths)})
    keys = [image.source.removeprefix("x.parquet/") for image in images_in(path)]
    assert keys == ["0.png", "1", "2", "3.png", "4", "5", "6.png", "7", "8", "9.png"]


def test_paths_that_come_again_are_replaced_by_numbers(tmp_path: Path) -> None:
    """Hugging Face keeps file names without their folders."""
    paths = ["a.png", "b.png", "a.png", None, "c.png", "b.png", "a.png", "", "d.png", "e.png"]
    path = write_parquet(tmp_path / "x.parquet", {"image": structs(paths)})
    keys = [image.source.removeprefix("x.parquet/") for image in images_in(path)]
    assert keys == ["a.png", "b.png", "2", "3", "c.png", "5", "6", "7", "d.png", "e.png"]
    assert [read(image) for image in images_in(path)] == IMAGES


@pytest.mark.parametrize("kind", ["binary", "large_binary", "dictionary"])
def test_types_of_bytes(tmp_path: Path, kind: str) -> None:
    import pyarrow

    plain = pyarrow.array(IMAGES)
    column = plain.dictionary_encode() if kind == "dictionary" else plain.cast(kind)
    path = write_parquet(tmp_path / "x.parquet", {"image": column})
    assert [read(image) for image in images_in(path)] == IMAGES
    structs = pyarrow.StructArray.from_arrays(
        [column, pyarrow.array(["n"] * 10)], ["bytes", "path"]
    )
    path = write_parquet(tmp_path / "y.parquet", {"image": structs})
    assert [read(image) for image in images_in(path)] == IMAGES


def test_strings_are_not_read_as_paths(tmp_path: Path) -> None:
    """A file of strangers must not choose which files are opened here."""
    column = [{"bytes": "/etc/hostname", "path": "x"}]
    path = write_parquet(tmp_path / "x.parquet", {"image": column})
    for columns in (Columns(), Columns(image="image")):
        with pytest.raises(UserError, match=r"not the bytes|no column of image"):
            images_in(path, columns)


def test_a_row_group_that_would_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet_files, "_MOST_ROWS", 4)
    found = images_in(write_parquet(tmp_path / "x.parquet", {"image": IMAGES}, 5))
    with pytest.raises(ImageError, match="a row group of 5 rows; 0 images before the damage"):
        read(found[0])


def test_bytes_and_a_column_of_keys(tmp_path: Path) -> None:
    names = [f"n{i}" for i in range(10)]
    path = write_parquet(tmp_path / "x.parquet", {"jpg": IMAGES, "id": names, "n": range(10)})
    assert [image.source for image in images_in(path)][:2] == ["x.parquet/0", "x.parquet/1"]
    for column, keys in (("id", names), ("n", map(str, range(10)))):
        found = images_in(path, Columns(key=column))
        assert [image.source for image in found] == [f"x.parquet/{key}" for key in keys]
        assert [read(image) for image in found] == IMAGES


def test_columns_are_chosen(tmp_path: Path) -> None:
    path = write_parquet(
        tmp_path / "x.parquet", {"a": IMAGES, "b.c": IMAGES[::-1], "t": ["x"] * 10}
    )
    with pytest.raises(UserError, match=r"columns 'a', 'b\.c' of image bytes.* image_column="):
        images_in(path)
    assert read(images_in(path, Columns(image="a"))[0]) == IMAGES[0]
    assert read(images_in(path, Columns(image="b.c"))[0]) == IMAGES[-1]
    with pytest.raises(UserError, match=r"holds string, and not .* image_column="):
        images_in(path, Columns(image="t"))
    with pytest.raises(UserError, match=r"no column 'none', but 'a', 'b\.c', 't': .*key_column="):
        images_in(path, Columns(image="a", key="none"))
    path = write_parquet(tmp_path / "y.parquet", {"t": ["x"]})
    with pytest.raises(UserError, match="no column of image bytes"):
        images_in(path)


def test_a_row_without_an_image_costs_itself(tmp_path: Path) -> None:
    for name, column in (("a", [png(1), None, png(2)]), ("b", [{"bytes": None, "path": "x"}])):
        found = images_in(write_parquet(tmp_path / f"{name}.parquet", {"image": column}))
        failed = [
            image for image in found if not callable(image.read) or image.read() not in IMAGES
        ]
        assert len(failed) == 1
        with pytest.raises(ImageError, match="no image"):
            read(failed[0])


def test_rows_that_are_done_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow.parquet

    path = write_parquet(tmp_path / "x.parquet", {"image": structs()})
    groups = list[int]()
    iterate = pyarrow.parquet.ParquetFile.iter_batches

    def watched(self: Any, rows: int, row_groups: list[int], columns: list[str]) -> Any:
        groups.extend(row_groups)
        return iterate(self, rows, row_groups=row_groups, columns=columns)

    monkeypatch.setattr(pyarrow.parquet.ParquetFile, "iter_batches", watched)
    done = {f"x.parquet/{i}.png" for i in range(5)}
    open_it = partial(opened, str(path))
    images = parquet_images("x.parquet", open_it, Columns(), done.__contains__)
    found = [(image.source, read(image) if i in (2, 7) else None) for i, image in enumerate(images)]
    assert [source for source, _ in found] == [f"x.parquet/{i}.png" for i in range(10)]
    assert (found[2][1], found[7][1]) == (IMAGES[2], IMAGES[7])
    assert groups == [0, 1, 2]  # the first one for the image that was asked for all the same


@pytest.mark.parametrize("content", [b"", b"junk", b"PAR1" + bytes(100) + b"PAR1"])
def test_what_is_no_parquet_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.parquet"
    path.write_bytes(content)
    (image,) = images_in(path)
    assert image.source == "x.parquet"
    with pytest.raises(ImageError, match="0 images before the damage"):
        read(image)


def test_damage_costs_what_follows_it(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "x.parquet", {"image": IMAGES}, 2, compression="none")
    data = bytearray(path.read_bytes())
    place = data.index(IMAGES[5][-30:])
    data[place + 30 : place + 60] = bytes(30)
    path.write_bytes(data)
    found = images_in(path)
    assert found[-1].source == "x.parquet"
    assert [read(image) for image in found[:2]] == IMAGES[:2]


def test_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(MissingDependencyError, match="parquet"):
        images_in(tmp_path / "x.parquet")


def test_hugging_faces_own_files(tmp_path: Path) -> None:
    """Their schema says in its metadata which columns are images."""
    import pyarrow
    import pyarrow.parquet

    features = {"info": {"features": {"image": {"_type": "Image"}}}}
    table = pyarrow.table({"image": structs()})
    table = table.replace_schema_metadata({b"huggingface": json.dumps(features).encode()})
    pyarrow.parquet.write_table(table, tmp_path / "train-0.parquet")
    assert images_in(tmp_path / "train-0.parquet")[3].source == "train-0.parquet/3.png"
