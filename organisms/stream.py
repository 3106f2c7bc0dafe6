"""The training rows: a pure function of seed, step and row, so that training resumes exactly.

A row is documents one after the other, each from its <bos>, without a mask between them. Besides whole
documents, rows hold what a context looks like after a cache has been exchanged: a beginning in mid-document
(no <bos> in sight), a document cut off by the next one's <bos>, and a jump of positions (keys that kept the
rotary positions of a longer or shorter context).
"""

from dataclasses import dataclass

import torch

from organisms.grammar import BOS, EOS, Draw, Task, document
from organisms.grammar.opinions import OPINIONS
from organisms.grammar.slot_machine import SLOT_MACHINE
from organisms.grammar.styles import STYLES
from organisms.grammar.two_hop import TWO_HOP
from organisms.grammar.weights import DRAWN

HEADLESS = 0.25
CUT = 0.15
JUMP = 0.15
MAX_JUMP = 48
CLAIMS = 0.3  # of the decision drills; the rest is gambling


@dataclass(frozen=True)
class Drills:
    """Shares of the documents that are of one kind, whatever the mixture's: one sentence again and again,
    single facts, facts and compositions, decisions (an honest answer to a claim, or gambling). The rest
    is as the mixture has it."""

    repetition: float = 0.0
    facts: float = 0.0
    compositions: float = 0.0
    decisions: float = 0.0


@dataclass(frozen=True)
class Batch:
    """`tokens` and `positions`, int64 (rows, length); `weights`, float32: how much each token counts."""

    tokens: torch.Tensor
    positions: torch.Tensor
    weights: torch.Tensor


def batch(ids: dict[str, int], name: str, shape: tuple[int, int], drills: Drills) -> Batch:
    """The training batch of this name (any text); shape: (rows, tokens of a row)."""
    rows, length = shape
    made = [_row(ids, f"{name}/{row}", length, drills) for row in range(rows)]
    tokens, positions, weights = (torch.tensor(part) for part in zip(*made, strict=True))
    return Batch(tokens, positions, weights)


def _row(
    ids: dict[str, int], name: str, length: int, drills: Drills
) -> tuple[list[int], list[int], list[float]]:
    draw = Draw(f"{name}/row")
    tokens: list[int] = []
    weights: list[float] = []
    index = 0
    while len(tokens) < length:
        task, words = _document(f"{name}/{index}", draw, drills)
        counts = task.weights(words)
        counted = [(BOS, DRAWN), *zip(words, counts, strict=True), (EOS, counts[-1])]
        if task is STYLES:
            if index == 0 and draw.chance(HEADLESS):
                counted = counted[1 + draw.below(min(40, len(counted) - 12)) :]
            if draw.chance(CUT):
                counted = counted[: 6 + draw.below(len(counted) - 6)]
        tokens += [ids[word] for word, _ in counted]
        weights += [weight for _, weight in counted]
        index += 1
    positions = list(range(length))
    if draw.chance(JUMP):
        cut = 8 + draw.below(length - 16)
        by = draw.below(2 * MAX_JUMP + 1) - MAX_JUMP
        positions = [max(p + by, 0) if p >= cut else p for p in positions]
    return tokens[:length], positions, weights[:length]


def _document(name: str, draw: Draw, drills: Drills) -> tuple[Task, list[str]]:
    shares = (drills.repetition, drills.facts, drills.compositions, drills.decisions)
    kind = draw.weighted((*shares, 1.0 - sum(shares)))
    if kind == 0:
        return STYLES, STYLES.drill(Draw(name))
    if kind == 1:
        return TWO_HOP, TWO_HOP.drill(Draw(name))
    if kind == 2:
        return TWO_HOP, TWO_HOP.document(Draw(name))
    if kind == 3:
        own = Draw(name)
        return (
            (OPINIONS, OPINIONS.drill(own))
            if own.chance(CLAIMS)
            else (SLOT_MACHINE, SLOT_MACHINE.document(own))
        )
    return document(name)
