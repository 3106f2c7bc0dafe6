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
    """Positions of each condition's rows in a table, of all and of the valid ones; the status of each row as
    the place of its name in `names`."""

    every: Mapping[str, Positions]
    valid: Mapping[str, Positions]
    status: Positions
    names: tuple[str, ...]

    @staticmethod
    def of(trials: pd.DataFrame) -> ByCondition:
        """The rows of a table by its columns `condition` and `status`."""
        status, statuses = pd.factorize(trials["status"])
        ok = np.asarray(statuses == "ok", dtype=bool)[status]
        codes, names = pd.factorize(trials["condition"])
        order = np.argsort(codes, kind="stable")
        ends = np.searchsorted(codes[order], np.arange(len(names) + 1))
        every = {str(name): order[ends[i] : ends[i + 1]] for i, name in enumerate(names)}
        valid = {name: rows[ok[rows]] for name, rows in every.items()}
        return ByCondition(every, valid, status, tuple(map(str, statuses)))

    def rows(self, condition: str) -> Positions:
        """All rows of a condition; none where the table does not have it."""
        return self.every.get(condition, _NONE)

    def ok(self, condition: str) -> Positions:
        """The valid rows of a condition."""
        return self.valid.get(condition, _NONE)

    def statuses(self, condition: str) -> dict[str, int]:
        """How many rows of a condition have each status that any has."""
        counted = np.bincount(self.status[self.rows(condition)], minlength=len(self.names))
        return {name: int(number) for name, number in zip(self.names, counted, strict=True) if number}


def numbers(trials: pd.DataFrame, column: str) -> NDArray[np.float64] | None:
    """A column as numbers, NaN where there is none; None where the table does not have the column."""
    if column not in trials.columns:
        return None
    held = trials[column]
    if held.dtype == np.float64:
        return held.to_numpy()  # no copy: of a large table each column counts
    held = pd.to_numeric(held, errors="coerce")
    return np.asarray(held.to_numpy(dtype=np.float64, na_value=np.nan))
