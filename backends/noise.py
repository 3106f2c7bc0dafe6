"""The random numbers of sampling and of random values: a 32-bit counter hash, the same in every backend.

A draw depends on (stream, step, token id) alone, never on batch, order or device, so that a trial is drawn
with the same noise in every condition and backend. The finaliser is the bijective 32-bit mix with constants
0x7feb352d and 0x846ca68b (C. Wellons, "hash prospector", bias about 0.17). numpy here is the reference;
backends repeat it in their own arrays.
"""

from __future__ import annotations

import hashlib

import numpy as np

MASK = 0xFFFFFFFF
GOLDEN = 0x9E3779B9
MULTIPLIERS = (0x7FEB352D, 0x846CA68B)
SHIFTS = (16, 15, 16)
UNIT = 2.0**-23


def stream_of(*parts: object) -> int:
    """A 64-bit stream from any printable parts (blake2b over their repr, joined by a separator)."""
    text = "\x1f".join(repr(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def mix(x: np.ndarray) -> np.ndarray:
    """The 32-bit finaliser, elementwise over uint32."""
    x = x.astype(np.uint32)
    with np.errstate(over="ignore"):
        x = (x ^ (x >> np.uint32(SHIFTS[0]))) * np.uint32(MULTIPLIERS[0])
        x = (x ^ (x >> np.uint32(SHIFTS[1]))) * np.uint32(MULTIPLIERS[1])
    mixed: np.ndarray = x ^ (x >> np.uint32(SHIFTS[2]))
    return mixed


def step_keys(streams: np.ndarray, step: int) -> np.ndarray:
    """One 32-bit key per row. streams: uint64 [rows]; step: index of the new token (or position)."""
    high = (streams >> np.uint64(32)).astype(np.uint32)
    low = (streams & np.uint64(MASK)).astype(np.uint32)
    counter = mix(np.array((step + 1) & MASK, np.uint32))
    return mix(low ^ mix(high ^ counter))


def uniform(keys: np.ndarray, count: int) -> np.ndarray:
    """Uniforms in (0, 1), float32 [rows, count], from row keys and a counter 0..count-1 (the token id)."""
    counters = np.arange(count, dtype=np.uint64) * np.uint64(GOLDEN) & np.uint64(MASK)
    tokens = mix(counters.astype(np.uint32))
    bits = mix(keys[:, None] ^ tokens[None, :])
    return ((bits >> np.uint32(9)).astype(np.float32) + np.float32(0.5)) * np.float32(UNIT)


def permutation(stream: int, count: int) -> np.ndarray:
    """A permutation of 0..count-1 fixed by the stream."""
    draws = uniform(step_keys(np.array([stream], np.uint64), 0), count)[0]
    return np.argsort(draws, kind="stable")
