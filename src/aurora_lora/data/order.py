"""An order that a seed alone fixes and no library's generator can change: by a hash."""

import hashlib


def place(key: str | bytes, seed: int) -> bytes:
    """What to sort by: where a thing of this key stands in the order of the seed."""
    return hashlib.sha256(f"{seed}\n".encode() + (key if isinstance(key, bytes) else key.encode())).digest()


def seeded_order(count: int, seed: int) -> list[int]:
    """0 to count - 1 in the order of the seed."""
    return sorted(range(count), key=lambda index: place(str(index), seed))
