"""The comparisons as the published analysis made them: every pair taken for independent."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import pandas as pd

from analyses.statistics.clusters import Floats
from analyses.statistics.t_tests import TTest, paired_t, unpaired_t
from analyses.tables.lookup import Lookup
from analyses.tables.pairs import pair


def naive_against_baseline(trials: pd.DataFrame | Lookup, manifest: Mapping[str, Any]) -> dict[str, TTest]:
    """The published way of comparing a treated arm with the baseline: one-sample t on the paired differences,
    every pair taken as independent."""
    return {name: paired_t(delta) for name, delta in _deltas(trials, manifest).items()}


def naive_between_arms(
    trials: pd.DataFrame | Lookup, manifest: Mapping[str, Any]
) -> dict[tuple[str, str], TTest]:
    """The published way of comparing two treated arms: pooled t test on their differences from the
    baseline, the pairing ignored. For every two conditions that are not the baseline and share a readout
    with it."""
    deltas = _deltas(trials, manifest)
    return {(a, b): unpaired_t(deltas[a], deltas[b], pooled=True) for a, b in combinations(deltas, 2)}


def naive(trials: pd.DataFrame | Lookup, manifest: Mapping[str, Any], first: str, second: str) -> TTest:
    """One comparison in the published way: against the baseline on the paired differences, between two arms
    on their differences from it, unpaired. Raises KeyError where the table has no column of the primary
    readout."""
    options = manifest.get("contrasts", {})
    baseline, primary = options.get("baseline", "baseline"), options.get("primary", "score")
    if baseline in (first, second):
        return paired_t(pair(trials, first, second, primary).difference)
    a, b = (pair(trials, name, baseline, primary).difference for name in (first, second))
    return unpaired_t(a, b, pooled=True)


def _deltas(trials: pd.DataFrame | Lookup, manifest: Mapping[str, Any]) -> dict[str, Floats]:
    """The differences from the baseline of every other condition that shares a trial with it."""
    options = manifest.get("contrasts", {})
    baseline, primary = options.get("baseline", "baseline"), options.get("primary", "score")
    table = Lookup.of(trials)
    if table.numbers(primary) is None:
        return {}
    found = {
        name: pair(table, name, baseline, primary).difference
        for name in manifest.get("conditions", {})
        if name != baseline
    }
    return {name: delta for name, delta in found.items() if len(delta)}
