"""What decoding makes of a file in a test: its pixels, or why it is refused."""

import numpy as np
import pytest
from numpy.typing import NDArray

from drexperts.runtime.decoding import decode
from drexperts.runtime.errors import ImageError


def pixels(content: bytes) -> NDArray[np.int64]:
    """RGB [H, W, 3], as integers that can be subtracted."""
    return np.asarray(decode(content)).astype(np.int64)


def refused(content: bytes) -> str:
    """The message of the ImageError."""
    with pytest.raises(ImageError) as error:
        decode(content)
    return str(error.value)
