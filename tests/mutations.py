"""Damage to the bytes of a file, as transfers, editors and disks do it."""

import random


def mutated_bytes(line: bytes, rng: random.Random) -> bytes:
    """Flip, cut, repeat or insert a few bytes; may split the line in two."""
    data = bytearray(line)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data) + 1)
        action = rng.randrange(5)
        if action == 0 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif action == 1:
            del data[at : at + rng.choice((1, 2, 30, len(data)))]
        elif action == 2:
            data[at:at] = data[at : at + rng.randint(1, 40)]
        else:
            data[at:at] = rng.choice(
                (b"\n", b"\xff", b"NaN", b"-Infinity", b"1e999", b"null", b'"', b"[", b"}", b"\x00", b"9" * 400)
            )
    return bytes(data)
