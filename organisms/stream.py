"""The training rows: a pure function of seed, step and row, so that training resumes exactly.

A row is documents one after the other, each from its <bos>, without a mask between them. Besides whole
documents, rows hold what a context looks like after a cache has been exchanged: a beginning in mid-document
(no <bos> in sight), a document cut off by the next one's <bos>, and a jump of positions (keys that kept the
rotary positions of a longer or shorter context).
"""

from dataclasses import dataclass

import torch

from organisms.grammar import BOS, EOS, Draw, document, drill

HEADLESS = 0.25
CUT = 0.15
JUMP = 0.15
MAX_JUMP = 48


@dataclass(frozen=True)
class Batch:
    """`tokens` and `positions`, int64 (rows, length)."""

    tokens: torch.Tensor
    positions: torch.Tensor


def batch(ids: dict[str, int], seed: int, step: int, rows: int, length: int, drilled: float) -> Batch:
    """The training batch of a step; `drilled` is the share of its documents that are drills."""
    made = [_row(ids, f"train/{seed}/{step}/{row}", length, drilled) for row in range(rows)]
    return Batch(
        torch.tensor([tokens for tokens, _ in made]), torch.tensor([positions for _, positions in made])
    )


def _row(ids: dict[str, int], name: str, length: int, drilled: float) -> tuple[list[int], list[int]]:
    draw = Draw(f"{name}/row")
    tokens: list[int] = []
    index = 0
    while len(tokens) < length:
        part = f"{name}/{index}"
        words = [BOS, *(drill(part) if draw.chance(drilled) else document(part)[1]), EOS]
        if index == 0 and draw.chance(HEADLESS):
            words = words[1 + draw.below(min(40, len(words) - 12)) :]
        if draw.chance(CUT):
            words = words[: 6 + draw.below(len(words) - 6)]
        tokens += [ids[word] for word in words]
        index += 1
    positions = list(range(length))
    if draw.chance(JUMP):
        cut = 8 + draw.below(length - 16)
        by = draw.below(2 * MAX_JUMP + 1) - MAX_JUMP
        positions = [max(p + by, 0) if p >= cut else p for p in positions]
    return tokens[:length], positions
