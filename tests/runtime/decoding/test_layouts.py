import sys
import tracemalloc

import pytest

from drexperts.runtime.decoding import layouts
from drexperts.runtime.decoding.kinds import READ, kind_of
from drexperts.runtime.decoding.stored import NotReadError


def test_every_kind_that_is_read_has_a_reader():
    assert set(READ) <= set(layouts.INSPECTORS)


def test_the_table_has_the_layouts_of_every_reader():
    modules = {
        sys.modules[reader.__module__]
        for reader in layouts.INSPECTORS.values()
        if reader.__module__ != layouts.__name__
    }
    listed = [layout for module in modules for layout in module.LAYOUTS]
    assert set(layouts.LAYOUTS) == set(listed)
    assert len(set(layouts.LAYOUTS)) == len(layouts.LAYOUTS)


@pytest.mark.parametrize(
    "content",
    [
        b"MM\0*",
        b"\0\0\0\x18ftypavif\0\0\0\0avif",
        b"\0\0\0\x18ftypavif\0\0\0\0avifmif1" + bytes(7),
        b"\0\0\0\x18ftypavif\0\0\0\0avifmif1\0\0\0\xffmeta",
        b"\0\0\0\x0cjP  \r\n\x87\n\0\0\xff\xffjp2h",
        b"\0\0\0\x0cjP  \r\n\x87\n\0\0\0\x08jp2h\0\0\0\x08jp2c",
        b"\xff\x4f\xff\x51\0",
        b"RIFF\x04\0\0\0WEBP",
        b"BM",
        b"GIF89a",
        b"\xff\xd8\xff",
    ],
)
def test_the_reason_names_the_kind(content):
    kind = kind_of(content)
    assert kind
    with pytest.raises(NotReadError, match=kind) as caught:
        layouts.inspect(content)
    assert "unpack" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR\x7f\xff\xff\xff\x7f\xff\xff\xff\x08\2\0\0\0",
        b"GIF89a\xff\xff\xff\xff\x87\0\0",
        b"P6 999999999 999999999 255\n",
        b"BM" + bytes(8) + b"\x36\0\0\0\x28\0\0\0" + b"\xff\xff\xff\x7f" * 2 + b"\1\0\x18\0",
        b"RIFF\xff\xff\xff\x7fWEBPVP8L\xff\xff\xff\x7f\x2f\xff\xff\xff\xff",
        b"\xff\xd8\xff\xc0\xff\xff\x08\xff\xff\xff\xff\3",
    ],
)
def test_nothing_is_allocated_that_a_file_merely_claims(content):
    tracemalloc.start()
    try:
        with pytest.raises(NotReadError):
            layouts.inspect(content)
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()
