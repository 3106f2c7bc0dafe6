"""Draws by hash: each depends on the seed, what it is for and where, and on nothing drawn before it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from runner.prompts.banks import Prompt


def hashed(*parts: object) -> int:
    """64 bits of the parts."""
    return int.from_bytes(hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()[:8], "big")


def draw(seed: int, what: str, index: int, size: int) -> int:
    """One of 0 to size - 1."""
    return hashed(seed, what, index) % size


def in_order(seed: int, what: str, prompts: Sequence[Prompt]) -> list[Prompt]:
    """The prompts in a drawn order, in which each keeps its place whatever others there are."""
    return sorted(prompts, key=lambda prompt: hashed(seed, what, prompt.id))
