"""What each repeat alone would have said: a declared difference, repeat by repeat."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analyses.tables.pairs import declared_pairs, pair
from analyses.wording import plural, together


@dataclass(frozen=True)
class Repeat:
    """One repeat of one difference, as if it were the whole run. excludes_zero: of the uncorrected 95%
    interval; None where there is no interval."""

    repeat: int
    n: int
    difference: float | None
    ci_low: float | None
    ci_high: float | None
    excludes_zero: bool | None


@dataclass(frozen=True)
class ByRepeat:
    """A declared difference in every repeat. excluding_zero: repeats whose interval leaves out 0, of `of`."""

    condition: str
    against: str
    readout: str
    rows: tuple[Repeat, ...]
    excluding_zero: int
    of: int
    sentence: str


def by_repeat(trials: pd.DataFrame, manifest: Mapping[str, Any]) -> list[ByRepeat]:
    """Each declared difference repeat by repeat, clustered as in the whole; empty for a
    run with one repeat. Each repeat draws other tokens for the same items, so that they are ten seeds, not
    ten samples of prompts: the test of a difference is that of the whole."""
    primary = manifest.get("contrasts", {}).get("primary", "score")
    conditions = manifest.get("conditions", {})
    repeats = sorted(trials["repeat"].unique())
    if len(repeats) < 2 or primary not in trials.columns:
        return []
    apart = {repeat: trials[trials["repeat"] == repeat] for repeat in repeats}
    found = []
    for first, second, margin in declared_pairs(manifest):
        if margin is None:
            rows = tuple(_repeat(int(r), apart[r], first, second, primary, conditions) for r in repeats)
            found.append(_whole(first, second, primary, rows))
    return found


def _repeat(
    number: int,
    trials: pd.DataFrame,
    first: str,
    second: str,
    primary: str,
    conditions: Mapping[str, Any],
) -> Repeat:
    test = pair(trials, first, second, primary, conditions).test()
    low, high = test.ci_low, test.ci_high
    excludes = None if low is None or high is None else low > 0 or high < 0
    return Repeat(number, test.n, test.mean, low, high, excludes)


def _whole(first: str, second: str, primary: str, rows: tuple[Repeat, ...]) -> ByRepeat:
    excluding = sum(row.excludes_zero is True for row in rows)
    known = [row.difference for row in rows if row.difference is not None]
    names = f"{first} - {second}"
    if not known:
        told = f"{names} by repeat: no repeat has a difference in {primary}."
    else:
        up, down = sum(d > 0 for d in known), sum(d < 0 for d in known)
        signs = f"{up} of {len(rows)} above 0" if up >= down else f"{down} of {len(rows)} below 0"
        low, high = together(min(known), max(known))
        told = (
            f"{names} by repeat: from {low} to {high} in {primary}, {signs}; "
            f"{excluding} of {plural(len(rows), '95% interval')} leave out 0, each repeat taken alone."
        )
    return ByRepeat(first, second, primary, rows, excluding, len(rows), told)
