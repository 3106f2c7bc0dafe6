"""Where the rows of each condition are: found once, so that a grid of a thousand cells is no thousand
searches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Positions = NDArray[np.intp]
_NONE: Positions = np.empty(0, dtype=np.intp)


@dataclass(frozen=True)
class ByCondition:
    """Positions of each condition's rows in a table, of all and of the valid ones."""

    trials: pd.DataFrame
    every: Mapping[str, Positions]
    valid: Mapping[str, Positions]

    @staticmethod
    def of(trials: pd.DataFrame) -> ByCondition:
        """The rows of a table by its columns `condition` and `status`."""
        ok = (trials["status"] == "ok").to_numpy(dtype=bool)
        codes, names = pd.factorize(trials["condition"])
        order = np.argsort(codes, kind="stable")
        ends = np.searchsorted(codes[order], np.arange(len(names) + 1))
        every = {str(name): order[ends[i] : ends[i + 1]] for i, name in enumerate(names)}
        return ByCondition(trials, every, {name: rows[ok[rows]] for name, rows in every.items()})

    def rows(self, condition: str) -> Positions:
        """All rows of a condition; none where the table does not have it."""
        return self.every.get(condition, _NONE)

    def ok(self, condition: str) -> Positions:
        """The valid rows of a condition."""
        return self.valid.get(condition, _NONE)

    def statuses(self, condition: str) -> dict[str, int]:
        """How many rows of a condition have each status."""
        found = self.trials["status"].to_numpy()[self.rows(condition)]
        names, numbers = np.unique(found.astype(str), return_counts=True)
        return {str(name): int(number) for name, number in zip(names, numbers, strict=True)}


def numbers(trials: pd.DataFrame, column: str) -> NDArray[np.float64] | None:
    """A column as numbers, NaN where there is none; None where the table does not have the column."""
    if column not in trials.columns:
        return None
    held = pd.to_numeric(trials[column], errors="coerce")
    return np.asarray(held.to_numpy(dtype=np.float64, na_value=np.nan))
