"""One trial that was run again, held against what was stored of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from analyses.tables.cells import grid_name
from runner.config.resolve import Design
from runner.execute import Result

# Gaps of the two best tokens, in logits, that the error of a number format can close: ten times the error.
NEAR: Mapping[str, float] = {"float32": 1e-2, "float16": 1e-1, "bfloat16": 8e-1}
# Numbers that differ by less than this share of their size are equal but for rounding; so are values that
# differ by less than it, and relative changes of writes that are both no change.
ROUNDING: Mapping[bool, float] = {True: 1e-5, False: 1e-2}
NO_CHANGE: Mapping[bool, float] = {True: 1e-6, False: 1e-3}


@dataclass(frozen=True)
class Repeated:
    """One trial that was run again. verdict: `same`, `near_tie` (other tokens, from a step on at which two
    were as good as equally likely), `differs`, or `failed`. step: the first token that differs, from 0;
    margin: the smallest gap of the two best tokens over all steps, as recorded and now, in logits. scores,
    receipts: column -> (recorded, now), only those that differ. same_shape: whether its batch had the shape
    that it had then."""

    stage: str
    condition: str
    item: str
    repeat: int
    key: str
    verdict: str
    step: int | None = None
    margin: tuple[float | None, float | None] = (None, None)
    scores: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    receipts: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    same_shape: bool = False
    reason: str = ""

    @property
    def stratum(self) -> tuple[str, str]:
        """What samples are spread over: stages, and in them conditions, the cells of a grid being one."""
        return self.stage, grid_name(self.condition)


def held_against(
    row: Mapping[str, Any],
    then: Result,
    now: Result,
    design: Design,
    low: bool,
    elsewhere: bool,
    orders: Mapping[str, Sequence[str]],
) -> Repeated:
    """One trial as it was and as it is now."""
    place = {name: row[name] for name in ("stage", "condition", "item", "repeat", "key")}
    if now["status"] != "ok":
        return Repeated(**place, verdict="failed", reason=f"{now['status']} now: {now['reason']}")
    same_shape = all(_number(then[name]) == _number(now[name]) for name in ("batch_rows", "batch_length"))
    margin = (_number(then["min_margin"]), _number(now["min_margin"]))
    step = _first_difference(_ids(then["output_ids"]), _ids(now["output_ids"]))
    tolerance = ROUNDING[not low]
    scores = _apart(then["scores"], now["scores"], tolerance, tolerance)
    names = orders.get(row["condition"], ())
    before, after = (_by_column(each["receipts"], names) for each in (then, now))
    receipts = _apart(before, after, tolerance, NO_CHANGE[not low])
    verdict = "same" if step is None and not scores and not receipts else "differs"
    if step is not None:
        # In low precision an unchanged batch on an unchanged machine has no error that could turn a token.
        excused = not low or not same_shape or elsewhere
        gap = min((each for each in margin if each is not None), default=math.inf)
        verdict = "near_tie" if excused and gap < NEAR[str(design.dtype)] else "differs"
    return Repeated(
        **place,
        verdict=verdict,
        step=step,
        margin=margin,
        scores=scores,
        receipts=receipts,
        same_shape=same_shape,
    )


def _ids(cell: Any) -> tuple[int, ...]:
    return () if cell is None else tuple(int(each) for each in cell)


def _number(value: Any) -> float | None:
    return None if value is None or pd.isna(value) else float(value)


def _first_difference(one: Sequence[int], other: Sequence[int]) -> int | None:
    """The first place at which two sequences differ; where one goes on longer, its first further one."""
    for place, (mine, theirs) in enumerate(zip(one, other, strict=False)):
        if mine != theirs:
            return place
    return None if len(one) == len(other) else min(len(one), len(other))


def _by_column(receipts: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    return {
        f"{write}.{column}": value
        for write, receipt in zip(names, receipts, strict=False)
        for column, value in receipt.items()
    }


def _apart(
    then: Mapping[str, Any], now: Mapping[str, Any], tolerance: float, least: float
) -> dict[str, tuple[Any, Any]]:
    """Values that differ beyond rounding, relative and absolute. What the run did not measure is not
    compared."""
    found = {}
    for name, value in then.items():
        mine, theirs = _plain(value), _plain(now.get(name))
        if not _alike(mine, theirs, tolerance, least):
            found[name] = (mine, theirs)
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(each) for each in value]
    return _number(value)


def _alike(one: Any, other: Any, tolerance: float, least: float) -> bool:
    if isinstance(one, list) or isinstance(other, list):
        pair = isinstance(one, list) and isinstance(other, list) and len(one) == len(other)
        return pair and all(_alike(*each, tolerance, least) for each in zip(one, other, strict=True))
    if one is None or other is None:
        return one is None and other is None
    return bool(abs(one - other) <= max(least, tolerance * max(abs(one), abs(other))))
