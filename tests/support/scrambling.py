"""What a decoder of bytes must withstand."""

import random


def scrambled(message: bytes, rng: random.Random) -> bytes:
    """Bytes of which some are changed, gone or new."""
    found = bytearray(message)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(found))
        action = rng.randrange(3)
        if action == 0:
            found[place] = rng.randrange(256)
        elif action == 1:
            del found[place : place + rng.randint(1, 8)]
        else:
            found[place:place] = rng.randbytes(rng.randint(1, 8))
        if not found:
            break
    return bytes(found)
