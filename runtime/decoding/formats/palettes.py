"""Colour tables: transparent entries over white, and indices that a table does not have."""

from PIL import Image

from drexperts.runtime.decoding import convert
from drexperts.runtime.decoding.stored import NotReadError


def over_white(colours: bytes, alphas: bytes) -> bytes:
    """Opaque colours, as RGB bytes; entries beyond `alphas` are opaque already."""
    entries = len(colours) // 3
    alphas = alphas[:entries]
    if not alphas:
        return colours
    table = Image.frombytes("RGB", (entries, 1), colours)
    table.putalpha(Image.frombytes("L", (entries, 1), alphas.ljust(entries, b"\xff")))
    return convert.over_white(table).tobytes()


def to_rgb(image: Image.Image, known: frozenset[int]) -> Image.Image:
    """RGB of an image of indices. Raises NotReadError for an index that is not in `known`."""
    for index, count in enumerate(image.histogram()):
        if count and index not in known:
            raise NotReadError(f"a pixel has colour {index}, which the palette does not have")
    return convert.to_rgb(image)
