"""Which conditions are compared, how, and what may be said of it: the declared family of an experiment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from analyses.comparisons.covariates import Adjusted, adjust, adjusted_sentence, covariate_gaps
from analyses.statistics.clusters import ClusteredMean, Floats, in_words
from analyses.statistics.corrections import holm
from analyses.statistics.equivalence import Equivalence, tost
from analyses.statistics.power import detectable
from analyses.statistics.proportions import binary, newcombe, sign_test
from analyses.statistics.t_tests import TTest, cohens_d, paired_t, unpaired_t
from analyses.tables.pairs import Paired, declared_pairs, pair
from analyses.tables.run import ok_rows, value_columns
from analyses.wording import count, figure, p_value, plural, together

ALPHA = 0.05
POWER = 0.8


@dataclass(frozen=True)
class Contrast:
    """One declared comparison, `condition` minus `against`, on the primary readout.

    `kind` is "difference" (its p is in the family) or "equivalence" (its TOST p is). `test` holds the
    difference, clustered by target and by the donors that either condition reads; `p_holm` is corrected over
    all `family` declared comparisons. Cohen's d is d_z of the paired differences, under both conventions.
    `detectable` is the difference that this standard error would have found with 80% power at alpha / family,
    the first step of Holm. `exploratory` has means only. `naive` is there only for "as_published". `adjusted`
    is the difference at equal covariates, where any are declared; `adjusted_p_holm` is corrected over those
    of all comparisons.
    """

    condition: str
    against: str
    kind: str
    readout: str
    test: ClusteredMean | None
    p_holm: float | None
    family: int
    d_z_ddof1: float | None
    d_z_ddof0: float | None
    detectable: float | None
    equivalence: Equivalence | None
    exploratory: Mapping[str, Mapping[str, float | None]]
    naive: TTest | None
    dropped: str
    note: str
    sentence: str
    adjusted: Adjusted | None = None
    adjusted_p_holm: float | None = None
    adjusted_sentence: str = ""


@dataclass(frozen=True)
class _Open:
    """A comparison before its p is corrected over the family."""

    condition: str
    against: str
    margin: float | None
    paired: Paired | None
    test: ClusteredMean | None
    equivalence: Equivalence | None
    note: str
    adjusted: Adjusted | None = None

    @property
    def p(self) -> float | None:
        if self.margin is not None:
            return None if self.equivalence is None else self.equivalence.p
        return None if self.test is None else self.test.p


def contrasts(trials: pd.DataFrame, manifest: Mapping[str, Any]) -> list[Contrast]:
    """Every declared comparison: each condition against the baseline, `extra`, and `same` with its margin.

    Holm runs over all of them together; a comparison that could not be tested still counts in the family.
    """
    primary = manifest.get("contrasts", {}).get("primary", "score")
    conditions = manifest.get("conditions", {})
    covariates = tuple(manifest.get("contrasts", {}).get("covariates") or ())
    opened = [
        _open(trials, a, b, margin, primary, conditions, covariates)
        for a, b, margin in declared_pairs(manifest)
    ]
    corrected = holm([each.p for each in opened])
    closed = [
        _close(each, p_holm, len(opened), primary, trials, manifest)
        for each, p_holm in zip(opened, corrected, strict=True)
    ]
    return _with_adjusted(closed, opened)


def naive_against_baseline(trials: pd.DataFrame, manifest: Mapping[str, Any]) -> dict[str, TTest]:
    """The published way of comparing a treated arm with the baseline: one-sample t on the paired differences,
    every pair taken as independent."""
    return {name: paired_t(delta) for name, delta in _deltas(trials, manifest).items()}


def naive_between_arms(trials: pd.DataFrame, manifest: Mapping[str, Any]) -> dict[tuple[str, str], TTest]:
    """The published way of comparing two treated arms: pooled t test on their differences from the
    baseline, the pairing ignored. For every two conditions that are not the baseline and share a readout
    with it."""
    deltas = _deltas(trials, manifest)
    return {(a, b): unpaired_t(deltas[a], deltas[b], pooled=True) for a, b in combinations(deltas, 2)}


def _deltas(trials: pd.DataFrame, manifest: Mapping[str, Any]) -> dict[str, Floats]:
    """The differences from the baseline of every other condition that shares a trial with it."""
    options = manifest.get("contrasts", {})
    baseline, primary = options.get("baseline", "baseline"), options.get("primary", "score")
    if primary not in trials.columns:
        return {}
    found = {
        name: pair(trials, name, baseline, primary).difference
        for name in manifest.get("conditions", {})
        if name != baseline
    }
    return {name: delta for name, delta in found.items() if len(delta)}


def _with_adjusted(closed: list[Contrast], opened: list[_Open]) -> list[Contrast]:
    """The contrasts with what their adjusted differences come to, a family of their own."""
    tests = [None if each.adjusted is None else each.adjusted.test for each in opened]
    corrected = holm([None if test is None else test.p for test in tests])
    return [
        contrast
        if each.adjusted is None
        else replace(
            contrast,
            adjusted=each.adjusted,
            adjusted_p_holm=p,
            adjusted_sentence=adjusted_sentence(
                each.adjusted, each.condition, each.against, contrast.readout, p
            ),
        )
        for contrast, each, p in zip(closed, opened, corrected, strict=True)
    ]


def _open(
    trials: pd.DataFrame,
    first: str,
    second: str,
    margin: float | None,
    primary: str,
    conditions: Mapping[str, Any],
    covariates: tuple[str, ...],
) -> _Open:
    if primary not in trials.columns:
        note = f"the table has no column {primary}"
        return _Open(first, second, margin, None, None, None, note)
    paired = pair(trials, first, second, primary, conditions)
    test = _of_equal_shares(paired, paired.test())
    equivalence = None if margin is None else tost(test, margin, ALPHA)
    adjusted = None
    if covariates:
        adjusted = adjust(paired, covariate_gaps(trials, first, second, covariates, paired))
    return _Open(first, second, margin, paired, test, equivalence, test.note, adjusted)


def _of_equal_shares(paired: Paired, test: ClusteredMean) -> ClusteredMean:
    """Where every pair goes from 0 to 1, or every one from 1 to 0, there is no spread to test by, but there
    is the exact sign test of as many pairs as the fewest clusters, and Newcombe's interval."""
    values = np.concatenate([paired.first, paired.second])
    if test.p is not None or test.mean not in (-1.0, 1.0) or not binary(values):
        return test
    fewest = min(test.clusters.values(), default=test.n)
    low, high = newcombe(paired.first, paired.second, fewest)
    method = "exact sign test, Newcombe's interval, by the fewest clusters"
    return replace(test, p=sign_test(fewest), ci_low=low, ci_high=high, method=method, note="")


def _close(
    each: _Open,
    p_holm: float | None,
    family: int,
    primary: str,
    trials: pd.DataFrame,
    manifest: Mapping[str, Any],
) -> Contrast:
    difference = each.paired.difference if each.paired is not None else np.empty(0)
    test = each.test
    found = None
    if test is not None and test.se is not None and test.df is not None:
        found = detectable(test.se, test.df, alpha=ALPHA / family, power=POWER)
    naive = None
    options = manifest.get("contrasts", {})
    if options.get("statistics") == "as_published" and each.paired is not None:
        arms = {each.condition, each.against}
        if options.get("baseline", "baseline") in arms:
            naive = paired_t(difference)
        else:
            naive = _between(trials, each.condition, each.against, options, primary)
    return Contrast(
        condition=each.condition,
        against=each.against,
        kind="difference" if each.margin is None else "equivalence",
        readout=primary,
        test=test,
        p_holm=p_holm,
        family=family,
        d_z_ddof1=cohens_d(difference, ddof=1),
        d_z_ddof0=cohens_d(difference, ddof=0),
        detectable=found,
        equivalence=each.equivalence,
        exploratory=_exploratory(trials, each.condition, each.against, primary),
        naive=naive,
        dropped=each.paired.dropped if each.paired is not None else "",
        note=each.note,
        sentence=_sentence(each, p_holm, primary, found, manifest),
    )


def _between(
    trials: pd.DataFrame, first: str, second: str, options: Mapping[str, Any], primary: str
) -> TTest:
    baseline = options.get("baseline", "baseline")
    a, b = (pair(trials, name, baseline, primary).difference for name in (first, second))
    return unpaired_t(a, b, pooled=True)


def _exploratory(
    trials: pd.DataFrame, first: str, second: str, primary: str
) -> dict[str, dict[str, float | None]]:
    """Means of every other readout: no test, hence no claim."""
    found: dict[str, dict[str, float | None]] = {}
    for column in value_columns(trials):
        if column == primary:
            continue
        a, b = (_mean(ok_rows(trials, name)[column]) for name in (first, second))
        gap = None if a is None or b is None else a - b
        found[column] = {"condition": a, "against": b, "difference": gap}
    return found


def _mean(values: pd.Series) -> float | None:
    defined = pd.to_numeric(values, errors="coerce").dropna()
    return float(defined.mean()) if len(defined) else None


def _sentence(
    each: _Open, p_holm: float | None, primary: str, found: float | None, manifest: Mapping[str, Any]
) -> str:
    test, names = each.test, f"{each.condition} and {each.against}"
    if test is None or test.n == 0:
        why = each.note if test is None else "no trial that both share has a value"
        return f"{names} cannot be compared in {primary}: {why}."
    assert test.mean is not None
    if test.p is None or test.ci_low is None:
        if test.n > 2 and test.sd is not None and test.sd <= 1e-12 * max(1.0, abs(test.mean)):
            gap = figure(test.mean)
            return f"{names}: all {count(test.n)} paired differences in {primary} are {gap}; nothing to test."
        return f"{names} differ by {figure(test.mean)} in {primary}, untested: {each.note}."
    if each.equivalence is not None:
        return _equivalence_sentence(each.equivalence, test, names, primary, p_holm)
    mean, low, high = together(test.mean, test.ci_low, test.ci_high)
    interval = f"95% CI {low} to {high}"
    figures = f"{interval}, {p_value(p_holm)} after Holm; {_counts(test)}"
    baseline = manifest.get("contrasts", {}).get("baseline", "baseline")
    against = "" if each.against == baseline else f" against {each.against}"
    if p_holm is not None and p_holm < ALPHA:
        verb = "raises" if test.mean > 0 else "lowers"
        return f"{each.condition} {verb} {primary} by {mean.removeprefix('-')}{against} ({figures})."
    power = (
        f" A true difference of {together(found)[0]} would have been found with 80% power." if found else ""
    )
    excludes = test.p < ALPHA
    apart = (
        " The interval leaves 0 out, but it is not corrected for the other comparisons." if excludes else ""
    )
    return (
        f"No difference in {primary} shown between {names}: {mean} ({figures}).{apart}{power} "
        "This does not show that they are equal."
    )


def _equivalence_sentence(
    equivalence: Equivalence, test: ClusteredMean, names: str, primary: str, p_holm: float | None
) -> str:
    mean, low, high = together(test.mean, equivalence.ci_low, equivalence.ci_high)
    interval = f"90% CI {low} to {high}"
    corrected = f"TOST {p_value(p_holm)} after Holm"
    figures = f"difference {mean}, {interval}, {corrected}; {_counts(test)}"
    margin = f"a margin of {equivalence.margin:g}"
    if p_holm is not None and p_holm < ALPHA:
        return f"{names} are equal in {primary} within {margin} ({figures})."
    return f"{names} are not shown to be equal in {primary} within {margin} ({figures})."


def _counts(test: ClusteredMean) -> str:
    parts = [plural(test.n, "pair")]
    if test.clusters:
        parts.append(in_words(test.clusters))
    if test.effective_n is not None:
        parts.append(f"effective n {count(test.effective_n)}")
    return ", ".join(parts)
