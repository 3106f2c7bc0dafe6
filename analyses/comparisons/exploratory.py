"""What the other readouts do in the declared contrasts: figures to look at, of which nothing is claimed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from analyses.comparisons.contrast import Contrast
from analyses.statistics.clusters import ClusteredMean
from analyses.statistics.corrections import benjamini_hochberg
from analyses.tables.lookup import Lookup
from analyses.tables.pairs import pair
from analyses.tables.run import value_columns
from analyses.wording import count, listed, plural


@dataclass(frozen=True)
class Exploratory:
    """The difference in one other readout between two conditions that are compared. p: uncorrected, by the
    clustered test; p_bh: by Benjamini and Hochberg over all of these; note: why there is none, or what limits
    it."""

    condition: str
    against: str
    readout: str
    n: int
    difference: float | None
    ci_low: float | None
    ci_high: float | None
    p: float | None
    p_bh: float | None
    note: str


def exploratory(
    trials: pd.DataFrame | Lookup, manifest: Mapping[str, Any], found: Sequence[Contrast], most: int
) -> tuple[list[Exploratory], str]:
    """Every readout of one number but the primary, in every declared contrast, and a sentence on what they
    are worth. most: contrasts with the smallest p, where there are more.

    Trials are paired and clustered as in the contrasts; a readout that is not defined in all of them has its
    own n.
    """
    table = Lookup.of(trials)
    primary = manifest.get("contrasts", {}).get("primary", "score")
    columns = [column for column in value_columns(table.trials) if column != primary]
    pairs = {(each.condition, each.against): each for each in reversed(found)}
    kept = _first(list(pairs.values())[::-1], most)
    if not columns or not kept:
        return [], ""
    conditions = manifest.get("conditions", {})
    tested = [one for each in kept for one in _tested(table, each, columns, conditions)]
    # Nothing was announced: what cannot be tested is no part of a family.
    corrected = iter(benjamini_hochberg([each.p for each in tested if each.p is not None]))
    rows = [each if each.p is None else replace(each, p_bh=next(corrected)) for each in tested]
    return rows, _sentence(rows, columns, len(kept), len(pairs))


def _first(found: Sequence[Contrast], most: int) -> list[Contrast]:
    """All contrasts in their order, or those with the smallest p where there are too many."""
    if len(found) <= most:
        return list(found)
    return sorted(found, key=lambda each: _p(each.test))[:most]


def _p(test: ClusteredMean | None) -> float:
    return 2.0 if test is None or test.p is None else test.p


def _tested(
    table: Lookup, each: Contrast, columns: Sequence[str], conditions: Mapping[str, Any]
) -> list[Exploratory]:
    paired = pair(table, each.condition, each.against, None, conditions)
    assert paired.rows is not None
    first, second = paired.rows
    found = []
    for column in columns:
        values = table.numbers(column)
        assert values is not None
        test = paired.test_of(values[first] - values[second])
        ends = (test.ci_low, test.ci_high)
        found.append(
            Exploratory(
                each.condition, each.against, column, test.n, test.mean, *ends, test.p, None, test.note
            )
        )
    return found


def _sentence(rows: Sequence[Exploratory], columns: Sequence[str], kept: int, whole: int) -> str:
    left = "" if kept == whole else f" of {count(whole)}, those with the smallest p in the primary readout"
    tested = sum(each.p is not None for each in rows)
    return (
        f"Exploratory: {listed(columns)} in {plural(kept, 'contrast')}{left}, "
        f"{plural(tested, 'test')} outside of the declared family. Intervals and p are uncorrected; p (BH) "
        "is by Benjamini and Hochberg over these tests. They may suggest what to declare next, and settle "
        "nothing."
    )
