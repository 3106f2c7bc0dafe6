"""What a batch is measured with, and what has been measured of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch

from backends.measures import Measured
from backends.rowplan import RowPlan
from backends.rows import Receipt, Row
from backends.torch.edits import Recorded
from backends.torch.hooks import Board
from backends.torch.loading import Loaded
from backends.torch.sources import Sources


@dataclass(frozen=True)
class Bench:
    """What a batch is measured with. plan: resolves a row's writes, or raises PositionError; prepare:
    captures what planned rows draw from; tokens: about how many tokens a forward may hold. apart: whether the
    rows have weights of their own; unpatched: the model without them, which captures nothing."""

    loaded: Loaded
    board: Board
    sources: Sources
    plan: Callable[[Row], RowPlan]
    prepare: Callable[[Sequence[RowPlan]], Recorded]
    tokens: int
    apart: bool
    unpatched: Callable[[], AbstractContextManager[None]]


@dataclass
class Measurements:
    """Of some rows: columns, receipts, which rows had logits that are all numbers, and how many rows the
    largest batch that they were read in had."""

    rows: int
    batch_rows: int = 0
    columns: dict[str, list[Measured]] = field(default_factory=dict)
    written: list[Mapping[str, Receipt]] = field(default_factory=list)
    sound: list[bool] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.written = [{} for _ in range(self.rows)]
        self.sound = [True] * self.rows
        self.batch_rows = self.rows

    def judge(self, sound: torch.Tensor) -> None:
        """Only rows that are sound here [rows] too stay so."""
        self.sound = [a and b for a, b in zip(self.sound, sound.tolist(), strict=True)]
