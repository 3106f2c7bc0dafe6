"""Which figures describe one sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analyses.statistics.clusters import Floats
from analyses.wording import count, plural

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


def describe(values: Sequence[float] | Floats | pd.Series) -> Description:
    """Mean, sd, median, range and shares of one sample; undefined values (NaN) are counted, not used."""
    every = np.asarray(values, dtype=np.float64)
    x = every[np.isfinite(every)]
    missing = len(every) - len(x)
    notes = [f"{count(missing)} of {plural(len(every), 'value')} undefined and left out"] if missing else []
    if len(x) == 0:
        note = "; ".join([*notes, "no value"])
        return Description(0, missing, None, None, None, None, None, None, None, None, note)
    if len(x) == 1:
        notes.append("one value: no spread")
    return Description(
        n=len(x),
        missing=missing,
        mean=float(x.mean()),
        sd=float(x.std(ddof=1)) if len(x) > 1 else None,
        median=float(np.median(x)),
        minimum=float(x.min()),
        maximum=float(x.max()),
        strong=float((x >= STRONG).mean()),
        moderate=float((x >= MODERATE).mean()),
        none=float((x == 0).mean()),
        note="; ".join(notes),
    )
