"""Which figures describe one sample."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analyses.statistics.samples import Values, scaled, usable

STRONG, MODERATE = 8.0, 5.0


@dataclass(frozen=True)
class Description:
    """n defined values and `missing` undefined ones; sd has ddof 1. Shares are of n: `strong` >= 8,
    `moderate` >= 5 (the strong ones included, as published), `none` == 0. What is undefined is None, and
    `note` says why."""

    n: int
    missing: int
    mean: float | None
    sd: float | None
    median: float | None
    minimum: float | None
    maximum: float | None
    strong: float | None
    moderate: float | None
    none: float | None
    note: str


def describe(values: Values) -> Description:
    """Mean, sd, median, range and shares of one sample; undefined values (NaN) are counted, not used."""
    every, kept, notes = usable(values)
    x, unit = scaled(every[kept])
    missing = len(every) - len(x)
    if len(x) == 0:
        note = "; ".join([*notes, "no value"])
        return Description(0, missing, None, None, None, None, None, None, None, None, note)
    if len(x) == 1:
        notes.append("one value: no spread")
    return Description(
        n=len(x),
        missing=missing,
        mean=float(x.mean()) * unit,
        sd=float(x.std(ddof=1)) * unit if len(x) > 1 else None,
        median=float(np.median(x)) * unit,
        minimum=float(x.min()) * unit,
        maximum=float(x.max()) * unit,
        strong=float((x * unit >= STRONG).mean()),
        moderate=float((x * unit >= MODERATE).mean()),
        none=float((x == 0).mean()),
        note="; ".join(notes),
    )
