"""Numbers of any number of bits, as in the headers of AV1 and HEVC."""

from drexperts.runtime.decoding.stored import NotReadError


class Bits:
    """Reads one number after the other; beyond the end it raises NotReadError."""

    def __init__(self, data: bytes) -> None:
        self._value = int.from_bytes(data, "big")
        self._left = 8 * len(data)

    def __call__(self, count: int = 1) -> int:
        self._left -= count
        if self._left < 0:
            raise NotReadError("it is truncated: a header is cut off")
        return self._value >> self._left & ((1 << count) - 1)

    def exponential_golomb(self) -> int:
        zeros = 0
        while not self():
            zeros += 1
        return (1 << zeros) - 1 + self(zeros)
