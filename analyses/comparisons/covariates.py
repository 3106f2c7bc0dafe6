"""The difference between two conditions that is left when what else differs between them is taken out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analyses.statistics.clusters import ClusteredMean, Floats, clustered_mean
from analyses.tables.pairs import KEY, Paired
from analyses.tables.run import ok_rows
from analyses.wording import count, figure, p_value, plural, together

ALPHA = 0.05


@dataclass(frozen=True)
class Adjusted:
    """A contrast adjusted for covariates. test: of the adjusted difference, None where it cannot be had;
    slopes: change of the readout for one unit of each covariate; gaps: mean difference in each covariate;
    note: why there is none, or what limits it."""

    covariates: tuple[str, ...]
    test: ClusteredMean | None
    slopes: Mapping[str, float]
    gaps: Mapping[str, float]
    note: str


def adjust(paired: Paired, gaps: Mapping[str, Floats], confidence: float = 0.95) -> Adjusted:
    """The paired difference at equal covariates.

    gaps: for each covariate its paired differences c_i, in the order of the pairs. With d_i the differences
    in the readout, d_i = a + sum over covariates of b c_i + e_i by least squares; a is the adjusted
    difference.
    With w_i the weights of a (a = sum of w_i d_i), n pairs and k = 1 + covariates, the scores

        s_i = n w_i e_i sqrt((n - 1) / (n - k))

    sum to 0 and stand in for the residuals of a mean, so that a is tested as `clustered_mean` tests a mean:
    multiway clustered by donors and target, df = fewest clusters - 1. Pairs without a value of a covariate
    are left out and counted. A covariate in which no pair differs takes nothing out. One that differs by the
    same amount in all pairs cannot be told apart from the conditions: then there is no adjusted difference.

    Source: Cameron, Gelbach and Miller (2011), section 2.3, with the usual factor (n - 1) / (n - k) of
    regressions in finite samples.
    """
    names = tuple(gaps)
    known = np.isfinite(np.column_stack([np.asarray(gaps[name], dtype=float) for name in names])).all(axis=1)
    known &= np.isfinite(paired.difference)
    d = paired.difference[known]
    c = {name: np.asarray(gaps[name], dtype=float)[known] for name in names}
    means = {name: float(each.mean()) for name, each in c.items()} if len(d) else {}
    notes = []
    if not known.all():
        notes.append(
            f"{count(int((~known).sum()))} of {plural(len(known), 'pair')} without a covariate left out"
        )
    varying = [name for name in names if len(d) and np.ptp(c[name]) > 0]
    fixed = [name for name in names if name in means and name not in varying and c[name][0] != 0]

    def none(why: str) -> Adjusted:
        return Adjusted(names, None, {}, means, "; ".join([*notes, why]))

    if fixed:
        return none(
            f"every pair differs by {figure(means[fixed[0]])} in {fixed[0]}, so that its share cannot be "
            "told apart from that of the conditions"
        )
    design = np.column_stack([np.ones(len(d)), *(c[name] for name in varying)])
    k = design.shape[1]
    if len(d) <= k + 1:
        return none(f"{plural(len(d), 'pair')} are too few to adjust for {plural(len(names), 'covariate')}")
    if np.linalg.matrix_rank(design) < k:
        return none(f"{' and '.join(varying)} go up and down together in these pairs")
    weights = np.linalg.pinv(design)
    beta = weights @ d
    residual = d - design @ beta
    scores = len(d) * weights[0] * residual * np.sqrt((len(d) - 1) / (len(d) - k))
    if np.abs(residual).max() <= 1e-12 * max(1.0, float(np.abs(d).max())):
        scores = np.zeros(len(d))  # rounding alone is left of what the covariates account for in full
    test = clustered_mean(
        beta[0] + scores,
        donor={name: labels[known] for name, labels in paired.donors.items()},
        target=paired.target[known],
        confidence=confidence,
    )
    outside = [name for name in varying if c[name].min() > 0 or c[name].max() < 0]
    notes += [
        f"no pair is equal in {name}, or differs both ways: the line is followed outside" for name in outside
    ]
    if not varying:
        notes.append(f"no pair differs in {' or '.join(names)}")
    slopes = dict(zip(varying, map(float, beta[1:]), strict=True))
    return Adjusted(names, test, slopes, means, "; ".join([*notes, *([test.note] if test.note else [])]))


def covariate_gaps(
    trials: pd.DataFrame, first: str, second: str, names: tuple[str, ...], paired: Paired
) -> dict[str, Floats]:
    """The differences of covariates between two conditions, in the order of their pairs; NaN where one has no
    value. Raises KeyError for a column that the table lacks."""
    found = {}
    for name in names:
        sides = []
        for condition in (first, second):
            rows = ok_rows(trials, condition).set_index(KEY)[name]
            sides.append(
                pd.to_numeric(rows.reindex(paired.target.index), errors="coerce").to_numpy(dtype=float)
            )
        found[name] = sides[0] - sides[1]
    return found


def adjusted_sentence(
    each: Adjusted, condition: str, against: str, readout: str, p_holm: float | None
) -> str:
    """What the adjustment says, in one sentence."""
    names = " and ".join(each.covariates)
    if each.test is None or each.test.mean is None:
        return f"{condition} and {against} have no difference in {readout} adjusted for {names}: {each.note}."
    gap = ", ".join(f"{figure(value)} in {name}" for name, value in each.gaps.items())
    told = f"Exploratory, adjusted for {names} ({condition} minus {against}: {gap} on average)"
    if each.test.p is None:
        return f"{told}, the difference in {readout} is {figure(each.test.mean)}, untested: {each.note}."
    mean, low, high = together(each.test.mean, each.test.ci_low, each.test.ci_high)
    interval = f"95% CI {low} to {high}, {p_value(p_holm)} after Holm"
    shown = p_holm is not None and p_holm < ALPHA
    tail = "" if shown else "; no difference shown"
    note = f" (Note: {each.note}.)" if each.note else ""
    return f"{told}, the difference in {readout} is {mean} ({interval}){tail}.{note}"
