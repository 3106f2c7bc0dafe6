"""Which trials of two conditions are compared: those of the same item and repeat that both have a value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analyses.clusters import ClusteredMean, Floats, clustered_mean
from analyses.tables import ok_rows
from analyses.wording import count, plural

_KEY = ["stage", "item", "repeat"]


@dataclass(frozen=True)
class Paired:
    """Values of `first` and `second` on the trials that they share, row by row, with donor and target of
    each.

    `n_first` and `n_second` count the valid trials of each side that have a value; `dropped` is a sentence on
    those that found no partner, empty where every trial did.
    """

    first: Floats
    second: Floats
    donor: pd.Series
    target: pd.Series
    n_first: int
    n_second: int
    dropped: str

    @property
    def difference(self) -> Floats:
        """first - second."""
        return self.first - self.second

    def test(self, confidence: float = 0.95) -> ClusteredMean:
        """The cluster-robust test of the differences."""
        return clustered_mean(self.difference, donor=self.donor, target=self.target, confidence=confidence)


def pair(trials: pd.DataFrame, first: str, second: str, column: str) -> Paired:
    """Pair two conditions on stage, item and repeat. Raises KeyError for a column that the table lacks, and
    ValueError where a condition has two valid trials of one item and repeat."""
    if column not in trials.columns:
        raise KeyError(
            f"{column}: expected a column of the table; it has {', '.join(map(str, trials.columns))}"
        )
    sides = {name: _side(trials, name, column) for name in (first, second)}
    other = sides[second]["value"].rename("value_second")
    both = sides[first].join(other, how="inner").sort_index()
    numbers = {name: len(side) for name, side in sides.items()}
    lost = {name: number - len(both) for name, number in numbers.items() if number > len(both)}
    sentence = ""
    if lost:
        parts = " and ".join(
            f"{count(k)} of {plural(numbers[name], 'trial')} of {name}" for name, k in lost.items()
        )
        sentence = f"{parts} had no valid partner and were left out; {plural(len(both), 'pair')} remain."
    return Paired(
        first=both["value"].to_numpy(dtype=float),
        second=both["value_second"].to_numpy(dtype=float),
        donor=both["donor"],
        target=both["target"],
        n_first=numbers[first],
        n_second=numbers[second],
        dropped=sentence,
    )


def _side(trials: pd.DataFrame, condition: str, column: str) -> pd.DataFrame:
    rows = ok_rows(trials, condition)
    rows = rows[rows[column].notna()]
    if rows.duplicated(_KEY).any():
        twice = rows[rows.duplicated(_KEY)].iloc[0]
        raise ValueError(f"{condition}: two valid trials of item {twice['item']}, repeat {twice['repeat']}")
    side = rows.set_index(_KEY)
    clusters = {name: side[name] if name in side.columns else None for name in ("donor", "target")}
    return pd.DataFrame({"value": side[column], **clusters}, index=side.index)


def declared_pairs(manifest: Mapping[str, Any]) -> list[tuple[str, str, float | None]]:
    """Every comparison that the experiment declares, as (condition, against, equivalence margin or None).

    The family `each_against_baseline` comes first, in the order of the conditions, then `extra`, then `same`.
    """
    contrasts = manifest.get("contrasts", {})
    baseline = contrasts.get("baseline", "baseline")
    pairs: list[tuple[str, str, float | None]] = []
    if contrasts.get("family", "none") == "each_against_baseline":
        pairs += [(name, baseline, None) for name in manifest.get("conditions", {}) if name != baseline]
    pairs += [(a, b, None) for a, b in contrasts.get("extra") or () if (a, b, None) not in pairs]
    for a, b, options in contrasts.get("same") or ():
        pairs.append((a, b, float(options["margin"])))
    return pairs
