"""The bytes of tensors as the Open Inference Protocol sends them outside of JSON."""

import struct

import numpy as np
from numpy.typing import NDArray

from drexperts.serve.oip import OipError


def uint8_of(data: memoryview, elements: int) -> NDArray[np.uint8]:
    """The elements of UINT8. Raises OipError for another number of them."""
    if len(data) != elements:
        raise OipError(f"UINT8 has {len(data)} bytes, its shape {elements} elements")
    return np.frombuffer(data, np.uint8)


def strings_of(data: memoryview, elements: int) -> list[bytes]:
    """The elements of BYTES: before each its length in 4 bytes, little-endian.

    Raises OipError for another number of them, and for one that ends after the data.
    """
    found = []
    while data:
        if len(data) < 4 or (size := struct.unpack_from("<I", data)[0]) > len(data) - 4:
            raise OipError("an element of BYTES ends after its data")
        found.append(bytes(data[4 : 4 + size]))
        data = data[4 + size :]
        if len(found) > elements:
            break
    if len(found) != elements:
        raise OipError(f"BYTES has other elements than the {elements} of its shape")
    return found
