"""How much work a pickle asks for, found before it is read.

A few bytes can describe a tuple of tuples of tuples with more elements than there are atoms,
because each level names the one below it twice. No code runs, but the hash of such a key takes
years.
"""

import pickletools
from typing import BinaryIO

from torch.serialization import MAGIC_NUMBER

_MOST = 10_000_000  # objects inside those that are named again; published files have thousands
_LARGEST_INT = 2**64  # larger ones can all have the same hash, which makes a dict slow
_GET, _PUT = ("GET", "BINGET", "LONG_BINGET"), ("PUT", "BINPUT", "LONG_BINPUT")


def check_pickle(stream: BinaryIO) -> None:
    """Read a pickle, and raise a ValueError if it is damaged or would take long to unpickle.

    It runs the pickle's stack with sizes in place of objects.
    """
    stack: list[int] = []
    marks: list[int] = []  # how much of the stack is below each mark
    memo: dict[object, int] = {}
    named = 0
    try:
        for operation, argument, _ in pickletools.genops(stream):
            large = isinstance(argument, int) and abs(argument) >= _LARGEST_INT
            if large and argument != MAGIC_NUMBER:
                raise ValueError("it has an integer of more than 64 bits")
            if operation.name in _PUT:
                memo[argument] = stack[-1]
            elif operation.name == "MEMOIZE":
                memo[len(memo)] = stack[-1]
            elif operation.name in _GET:
                stack.append(memo[argument])
                named += stack[-1]
            else:
                _apply(operation, stack, marks)
            if named > _MOST:
                raise ValueError("its objects name each other too often")
    except (IndexError, KeyError, AttributeError, OverflowError, MemoryError) as error:
        raise ValueError("it is not a pickle") from error


def _apply(operation: pickletools.OpcodeInfo, stack: list[int], marks: list[int]) -> None:
    """Replace what an operation takes from the stack by what it makes, which has all of it."""
    taken, size = operation.stack_before, 0
    if pickletools.markobject in taken:
        start = marks.pop()
        size = sum(stack[start:])
        del stack[start:]
        taken = taken[: taken.index(pickletools.markobject)]
    size += sum(stack.pop() for _ in taken)
    for made in operation.stack_after:
        if made is pickletools.markobject:
            marks.append(len(stack))
        else:
            stack.append(size + 1)
