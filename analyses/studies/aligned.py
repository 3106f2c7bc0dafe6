"""Which trials several conditions share: their values side by side, with the prompts that they are clustered
by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analyses.statistics.clusters import ClusteredMean, Floats, clustered_mean
from analyses.studies.study import NoStudy
from analyses.tables.by_condition import Positions
from analyses.tables.lookup import OWN, Lookup
from analyses.tables.pairs import OTHER, roles_read
from analyses.wording import count, listed, plural

Cell = tuple[str, str]  # a condition and a column of it


@dataclass(frozen=True)
class Source:
    """What a study is made from: the table of a stage, and what the manifest says of it."""

    lookup: Lookup
    manifest: Mapping[str, Any]

    @property
    def trials(self) -> pd.DataFrame:
        return self.lookup.trials

    @property
    def conditions(self) -> Mapping[str, Any]:
        """Those of the manifest, by name."""
        found: Mapping[str, Any] = self.manifest.get("conditions") or {}
        return found

    @property
    def baseline(self) -> str:
        return str(self.manifest.get("contrasts", {}).get("baseline", "baseline"))

    def has(self, column: str) -> bool:
        return column in self.trials.columns

    def column(self, name: str) -> Floats:
        """A column as numbers, NaN where there is none. Raises NoStudy for one that the table lacks."""
        found = self.lookup.numbers(name)
        if found is None:
            raise NoStudy(f"the table has no column {name}")
        return found

    def ok(self, condition: str) -> Positions:
        """The valid rows of a condition. Raises NoStudy where there is none."""
        rows = self.lookup.by_condition.ok(condition)
        if not len(rows):
            raise NoStudy(f"{condition} has no valid trial")
        return rows

    def place(self, condition: str) -> Positions:
        """The row of each unit's valid trial, -1 where it has none. Raises NoStudy where there are two."""
        try:
            return self.lookup.place(condition)
        except ValueError as error:
            raise NoStudy(str(error)) from error

    def donors(self, conditions: Sequence[str], rows: Sequence[Positions]) -> dict[str, pd.Series]:
        """The donors that any of the conditions reads, by dimension, as contrasts have them; where none is
        read, the item's own. rows: of each condition, the same units in one order. Prompts without donors
        have no clusters of them."""
        found: dict[str, pd.Series] = {}
        for name, mine in zip(conditions, rows, strict=True):
            for role in roles_read(self.conditions.get(name, {})):
                dimension = role if role in (OWN, OTHER) else f"{OWN}:{role}"
                if dimension not in found:
                    found[dimension] = pd.Series(self.lookup.donor(role, mine), dtype=object)
        if not found:
            found[OWN] = pd.Series(self.lookup.donor(OWN, rows[0]), dtype=object)
        return {name: labels for name, labels in found.items() if labels.notna().any()}


@dataclass(frozen=True)
class Aligned:
    """Values of (condition, column), trial by trial, over the trials (item and repeat) in which all of them
    have one. `donors` are those that any of the conditions reads, by dimension; `rows` are the places of the
    first condition's trials in the table; `dropped` is a sentence on trials that were left out, empty where
    none was."""

    values: Mapping[Cell, Floats]
    donors: Mapping[str, pd.Series]
    target: pd.Series
    rows: Positions
    dropped: str

    @property
    def n(self) -> int:
        return len(self.rows)

    def test(self, values: Floats, confidence: float = 0.95) -> ClusteredMean:
        """The cluster-robust test of the mean of values, one for each trial."""
        return clustered_mean(values, donor=self.donors or None, target=self.target, confidence=confidence)


def align(source: Source, cells: Sequence[Cell]) -> Aligned:
    """Line up columns of conditions on stage, item and repeat.

    Raises NoStudy for a condition without valid trials, a column that the table lacks, two valid trials of
    one item and repeat, and where no trial is shared.
    """
    cells = list(dict.fromkeys(cells))
    names = list(dict.fromkeys(name for name, _ in cells))
    columns = {column: source.column(column) for _, column in cells}
    units = np.sort(source.lookup.units.codes[source.ok(names[0])])
    places = {name: source.place(name)[units] for name in names if len(source.ok(name))}
    shared = np.ones(len(units), dtype=bool)
    for name, column in cells:
        held = columns[column][places[name]]
        there = (places[name] >= 0) & np.isfinite(held)
        if not there.any():
            raise NoStudy(f"no trial of {name} has a value of {column} and a partner in {names[0]}")
        shared &= there
    if not shared.any():
        raise NoStudy(f"there is no trial that {listed(names)} share")
    kept = {name: place[shared] for name, place in places.items()}
    rows = list(kept.values())
    sizes = {name: len(source.ok(name)) for name in names}
    return Aligned(
        {(name, column): columns[column][kept[name]] for name, column in cells},
        source.donors(names, rows),
        pd.Series(source.lookup.target(rows[0]), dtype=object),
        rows[0],
        _dropped(sizes, len(rows[0])),
    )


def _dropped(numbers: Mapping[str, int], shared: int) -> str:
    lost = {name: number - shared for name, number in numbers.items() if number > shared}
    if not lost:
        return ""
    parts = [f"{count(k)} of {plural(numbers[name], 'trial')} of {name}" for name, k in lost.items()]
    return f"{listed(parts)} had no valid partner and were left out; {plural(shared, 'trial')} remain"
