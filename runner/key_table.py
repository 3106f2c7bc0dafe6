"""Result keys by the hundred thousand: 16 bytes each, found by bisection."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

WIDTH = 16  # bytes of a key, which is written as twice as many hex digits
Keys = NDArray[np.uint64]  # [keys, 2], the halves of each; ordered as the hex digits are
Places = NDArray[np.int64]


def packed(key: str) -> bytes:
    """A key as 16 bytes. What is no key of 32 hex digits becomes the hash of its text, which is none that a
    plan has."""
    try:
        held = bytes.fromhex(key)
    except ValueError:
        held = b""
    return held if len(held) == WIDTH else hashlib.blake2b(key.encode(), digest_size=WIDTH).digest()


def keys_of(held: bytes | bytearray) -> Keys:
    """Keys from their bytes, one after the other."""
    return np.frombuffer(held, dtype=">u8").astype(np.uint64).reshape(-1, 2)


def keys_named(names: Iterable[str]) -> Keys:
    """Keys from their hex digits."""
    return keys_of(b"".join(map(packed, names)))


def hexes(keys: Keys) -> list[str]:
    """The hex digits of keys."""
    digits = keys.astype(">u8").tobytes().hex()
    return [digits[at : at + 2 * WIDTH] for at in range(0, len(digits), 2 * WIDTH)]


@dataclass(frozen=True)
class KeyTable:
    """Different keys, in order. rows: the first place of each among the keys that the table was made of."""

    keys: Keys
    rows: Places

    @staticmethod
    def of(keys: Keys) -> KeyTable:
        """The table of keys, of which some may be equal."""
        order = np.lexsort(
            (keys[:, 1], keys[:, 0])
        )  # stable, so that the first of equal ones stays the first
        held = keys[order]
        new = np.ones(len(held), dtype=bool)
        new[1:] = (held[1:] != held[:-1]).any(axis=1)
        return KeyTable(held[new], order[new])

    def __len__(self) -> int:
        return len(self.keys)

    def find(self, keys: Keys) -> Places:
        """The place of each key in the table; -1 where it is not there."""
        high, low = self.keys[:, 0], self.keys[:, 1]
        place = np.searchsorted(high, keys[:, 0])
        if not len(high):
            return np.full(len(keys), -1, dtype=np.int64)
        while True:  # once, but for two keys that agree in their first half
            within = np.minimum(place, len(high) - 1)
            same = (place < len(high)) & (high[within] == keys[:, 0])
            there = same & (low[within] == keys[:, 1])
            onwards = same & ~there
            if not onwards.any():
                return np.where(there, place, -1)
            place = place + onwards
