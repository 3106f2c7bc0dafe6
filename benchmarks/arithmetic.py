"""How many floating point operations a run needs, counted from the model's shape and the tokens."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from benchmarks.made_models import Shape, total


@dataclass(frozen=True)
class Work:
    """Operations (multiplications and additions) of the phases of an experiment."""

    capture: float
    prefill: float
    decode: float
    score: float


def forward(shape: Shape, tokens: int, past: int = 0, heads: int | None = None) -> float:
    """Operations of one forward over `tokens` tokens of one row that has `past` behind it.

    Matrices of the blocks; scores and sums of attention over what each token sees, itself included; the
    unembedding of `heads` of the tokens (None: all). Norms, rotations and activations are not counted.
    """
    seen = tokens * past + tokens * (tokens + 1) / 2
    attention = 4.0 * shape.layers * shape.heads * shape.head_width * seen
    unembedded = tokens if heads is None else heads
    blocks = shape.layers * total(shape.products())
    return tokens * blocks + attention + 2.0 * unembedded * shape.width * shape.vocabulary


def of_rows(
    shape: Shape, rows: Iterable[tuple[tuple[int, ...], int]], donors: Iterable[tuple[int, ...]]
) -> Work:
    """Operations that rows need where nothing is computed twice.

    rows: prompt and number of new tokens of each; donors: prompts that are captured, the distinct ones of
    which count. The prefill is that of distinct prompts but for their last token, which every row feeds
    itself.
    """
    rows = list(rows)
    decode = score = 0.0
    for ids, new in rows:
        past = len(ids) - 1
        decode += sum(forward(shape, 1, past + step) for step in range(new))
        score += forward(shape, len(ids) + new, heads=new)
    prefill = sum(forward(shape, len(ids) - 1, heads=0) for ids in {ids for ids, _ in rows})
    capture = sum(forward(shape, len(ids), heads=0) for ids in set(donors))
    return Work(capture, prefill, decode, score)
