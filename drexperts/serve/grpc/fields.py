"""The fields of a message of protobuf, counted before it is parsed."""

from typing import Any

from drexperts.serve.oip import OipError

# A request of many images in typed contents has some hundred.
_MOST = 4096
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def check_fields(message: bytes, descriptor: Any) -> None:
    """Raises OipError for a message of too many fields, and for one that is malformed.

    An empty message within another takes 2 bytes, and a hundred once it is parsed: a message that
    is allowed would fill the memory.

    descriptor: that of the message
    """
    left = _MOST
    waiting: list[tuple[memoryview, Any]] = [(memoryview(message), descriptor)]
    while waiting:
        data, kind = waiting.pop()
        position = 0
        while position < len(data):
            left -= 1
            if left < 0:
                raise OipError(f"the message has more than {_MOST} fields: send fewer")
            key, position = _varint(data, position)
            start, position = _skipped(data, position, key & 7)
            field = kind.fields_by_number.get(key >> 3)
            if field is not None and field.message_type is not None and key & 7 == _BYTES:
                waiting.append((data[start:position], field.message_type))


def _skipped(data: memoryview, position: int, wire: int) -> tuple[int, int]:
    """Where the value of a field begins and ends."""
    start = position
    if wire == _VARINT:
        _, position = _varint(data, position)
    elif wire == _BYTES:
        size, start = _varint(data, position)
        position = start + size
    elif wire in (_FIXED64, _FIXED32):
        position += 8 if wire == _FIXED64 else 4
    else:  # groups, which the protocols have not
        raise OipError("the message has a field of an unknown kind")
    if position > len(data):
        raise OipError("the message has a field that ends after it")
    return start, position


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    """A number, and where it ends."""
    value = 0
    for index, byte in enumerate(data[position : position + 10]):
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, position + index + 1
    raise OipError("the message has a number that does not end")
