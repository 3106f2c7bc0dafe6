"""Values on their way into a test: which of them count, and what has to be said of the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analyses.wording import count, plural

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
Values = Sequence[float] | NDArray[Any] | pd.Series
LARGEST = 1e300  # beyond it a sum of two values may not be a number any more


def usable(values: Values, noun: str = "value") -> tuple[Floats, Mask, list[str]]:
    """All values as numbers, which of them a test can use, and a note on the others: undefined ones (NaN,
    None, infinite) and those beyond 1e300 in size. Raises ValueError for a table in place of a column."""
    if isinstance(values, pd.Series):
        x = values.to_numpy(dtype=np.float64, na_value=np.nan)
    else:
        x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1:
        raise ValueError(f"expected one column of values, got {x.ndim} dimensions")
    finite = np.isfinite(x)
    kept = finite & (np.abs(x) <= LARGEST)
    notes = []
    undefined, beyond = len(x) - int(finite.sum()), int((finite & ~kept).sum())
    if undefined:
        notes.append(f"{count(undefined)} of {plural(len(x), noun)} undefined and left out")
    if beyond:
        notes.append(f"{count(beyond)} of {plural(len(x), noun)} beyond 1e300 and left out")
    return x, kept, notes


def all_equal(x: Floats) -> bool:
    """Whether the values differ by no more than rounding."""
    return bool(np.ptp(x) <= 1e-12 * max(1.0, float(np.abs(x).max())))


def scaled(x: Floats) -> tuple[Floats, float]:
    """The values in a unit whose squares can be added up, and that unit: 1 but for values of absurd size. A
    power of two, so that nothing is rounded."""
    greatest = float(np.abs(x).max()) if len(x) else 0.0
    if greatest < 1e100:
        return x, 1.0
    unit = 2.0 ** int(np.frexp(greatest)[1])
    return x / unit, unit
