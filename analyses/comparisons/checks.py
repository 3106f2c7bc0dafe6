"""Whether what must come out in a known way did: the declared checks of an experiment, a verdict each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analyses.statistics.clusters import ClusteredMean, Floats, all_equal, clustered_mean
from analyses.statistics.corrections import holm
from analyses.tables.pairs import KEY, pair
from analyses.tables.run import ok_rows
from analyses.wording import count, p_value, plural, small

ALPHA = 0.05
MOST = 0.5  # of the trials; `different` needs surely more than this share
MET, NOT_MET, UNDECIDED = "met", "not met", "undecided"


@dataclass(frozen=True)
class Check:
    """One check. sides: both things compared, in words; mean, of: mean of the first side and of the other; n:
    trials compared; share: of them that differ (same, different); test: of the difference (higher, lower) or
    of the share less one half (different); p_holm: corrected over the checks that are tested."""

    name: str
    expect: str
    sides: tuple[str, str]
    verdict: str
    n: int
    first: float | None
    second: float | None
    share: float | None
    test: ClusteredMean | None
    p_holm: float | None
    sentence: str


@dataclass(frozen=True)
class _Open:
    name: str
    spec: Mapping[str, Any]
    sides: tuple[str, str]
    first: Floats
    second: Floats
    test: ClusteredMean | None
    note: str = ""


def checks(trials: pd.DataFrame, manifest: Mapping[str, Any]) -> list[Check]:
    """Every declared check, with its verdict: met, not met, or undecided where there is too little to say.

    same: no trial differs by more than `within`. different: more than half of the trials differ by more than
    `within`, sure by the clustered test of that share. higher, lower: the mean difference is, by the
    clustered test. Tests are corrected together, by Holm. Where no value varies there is nothing to test, and
    the values decide.
    """
    declared = manifest.get("contrasts", {}).get("checks") or {}
    opened = [_open(name, spec, trials, manifest) for name, spec in declared.items()]
    corrected = holm([None if each.test is None else each.test.p for each in opened])
    return [_close(each, p) for each, p in zip(opened, corrected, strict=True)]


def _open(name: str, spec: Mapping[str, Any], trials: pd.DataFrame, manifest: Mapping[str, Any]) -> _Open:
    expect, of, against = spec["expect"], spec["of"], spec["against"]
    sides = (f"{spec['readout']} of {of}", _other_side(spec))
    missing = [c for c in (spec["column"], spec["than_column"]) if c not in trials.columns]
    if missing:
        note = f"the table has no column {missing[0]}"
        return _Open(name, spec, sides, np.empty(0), np.empty(0), None, note)
    a = _values(ok_rows(trials, of), spec["column"], spec["entry"])
    if spec["value"] is not None:
        b = pd.Series(float(spec["value"]), index=a.index)
    else:
        b = _values(ok_rows(trials, against), spec["than_column"], spec["than_entry"])
    both = pd.DataFrame({"a": a, "b": b}).dropna()
    first, second = both["a"].to_numpy(dtype=float), both["b"].to_numpy(dtype=float)
    if not len(both) or expect == "same":
        return _Open(name, spec, sides, first, second, None)
    signal = first - second
    if expect == "different":
        signal = (np.abs(signal) > spec["within"]).astype(float) - MOST
    labels = _labels(trials, manifest, of, against, both.index)
    return _Open(name, spec, sides, first, second, clustered_mean(signal, **labels))


def _labels(
    trials: pd.DataFrame, manifest: Mapping[str, Any], of: str, against: str, index: pd.Index
) -> dict[str, Any]:
    """Donors and targets of the trials compared, as contrasts take them."""
    if of == against:
        rows = ok_rows(trials, of).set_index(KEY).loc[index]
        return {"donor": rows["donor"], "target": rows["target"]}
    marked = trials.assign(_one=1.0)
    paired = pair(marked, of, against, "_one", manifest.get("conditions", {}))
    donors = {name: labels.loc[index] for name, labels in paired.donors.items()}
    return {"donor": donors, "target": paired.target.loc[index]}


def _values(rows: pd.DataFrame, column: str, entry: int | None) -> pd.Series:
    """Values by trial; NaN where there is none."""
    held = rows.set_index(KEY)[column]
    if entry is not None:
        held = held.map(lambda cell: cell[entry] if _has(cell, entry) else None)
    return pd.to_numeric(held, errors="coerce").astype(float)


def _has(cell: object, entry: int) -> bool:
    return isinstance(cell, list | tuple | np.ndarray) and -len(cell) <= entry < len(cell)


def _other_side(spec: Mapping[str, Any]) -> str:
    if spec["value"] is not None:
        return f"{spec['value']:g}"
    if spec["against"] == spec["of"]:
        return str(spec["than"])
    whose = "that" if spec["than"] == spec["readout"] else spec["than"]
    return f"{whose} of {spec['against']}"


def _close(each: _Open, p_holm: float | None) -> Check:
    gap = each.first - each.second
    n = len(gap)
    expect, within = each.spec["expect"], each.spec["within"]
    differ = int((np.abs(gap) > within).sum())
    verdict = UNDECIDED
    if n:
        verdict = _verdict(expect, gap, differ, each.test, p_holm)
    return Check(
        name=each.name,
        expect=expect,
        sides=each.sides,
        verdict=verdict,
        n=n,
        first=float(each.first.mean()) if n else None,
        second=float(each.second.mean()) if n else None,
        share=differ / n if n and expect in ("same", "different") else None,
        test=each.test,
        p_holm=p_holm,
        sentence=_sentence(each, verdict, differ, p_holm),
    )


def _verdict(expect: str, gap: Floats, differ: int, test: ClusteredMean | None, p_holm: float | None) -> str:
    if expect == "same":
        return MET if differ == 0 else NOT_MET
    signal = (gap > 0) * 1.0 if expect == "higher" else (gap < 0) * 1.0
    if expect == "different":
        signal = np.full(len(gap), differ / len(gap) > MOST, dtype=float)
    varies = not all_equal(gap) if expect != "different" else 0 < differ < len(gap)
    if not varies:
        return MET if signal.all() else NOT_MET
    if test is None or test.mean is None or test.p is None or p_holm is None:
        return UNDECIDED
    right = test.mean < 0 if expect == "lower" else test.mean > 0
    return MET if right and p_holm < ALPHA else NOT_MET


def _sentence(each: _Open, verdict: str, differ: int, p_holm: float | None) -> str:
    one, other = each.sides
    n, expect, within = len(each.first), each.spec["expect"], each.spec["within"]
    if n == 0:
        why = each.note or "no trial that both share has a value"
        return f"{each.name}: {one} cannot be held against {other}: {why}."
    by = f" by more than {within:g}" if within else ""
    if expect == "same":
        most = float(np.abs(each.first - each.second).max())
        told = f"{one} differs from {other}{by} in {count(differ)} of {plural(n, 'trial')}"
        return f"{each.name}: {told} (the most: {small(most)}); expected in none."
    test = each.test
    figures = "nothing to test"
    if test is not None and test.p is not None:
        figures = f"{p_value(p_holm)} after Holm"
    elif test is not None and verdict == UNDECIDED:
        figures = test.note
    if expect == "different":
        told = f"{one} differs from {other}{by} in {count(differ)} of {plural(n, 'trial')} ({figures})"
        return f"{each.name}: {told}; expected in most."
    if test is not None and test.ci_low is not None:
        figures = f"95% CI {small(test.ci_low)} to {small(test.ci_high)}, {figures}"
    first, second = float(each.first.mean()), float(each.second.mean())
    held = other if each.spec["value"] is not None else f"{other} ({small(second)})"
    told = f"{one} ({small(first)}) less {held} is {small(first - second)} ({figures}; {plural(n, 'trial')})"
    return f"{each.name}: {told}; expected {expect}."
