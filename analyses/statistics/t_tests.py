"""t tests that take every value for independent: the naive ones, as published."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from analyses.statistics.samples import Values, all_equal, scaled, usable
from analyses.wording import plural


@dataclass(frozen=True)
class TTest:
    """A t test that takes every value for independent. `sd` has ddof 1 (pooled, for two samples); the `d`
    values are Cohen's d, named by their convention. What could not be computed is None, and then `note`
    says why."""

    n: tuple[int, ...]
    difference: float | None
    method: str
    note: str
    sd: float | None = None
    t: float | None = None
    df: float | None = None
    p: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    d_ddof1: float | None = None
    d_ddof0: float | None = None


def cohens_d(differences: Values, ddof: int) -> float | None:
    """Cohen's d of paired differences: d_z = mean / sd with the given ddof (1: sample, 0: population). None
    without spread. The two differ by sqrt(n / (n - 1)), which is why `ddof` has no default."""
    x, kept, _ = usable(differences)
    if len(x) < 2 or not kept.all() or all_equal(x):
        return None
    x, _ = scaled(x)
    return float(x.mean() / x.std(ddof=ddof))


def cohens_d_pooled(first: Values, second: Values, ddof: int) -> float | None:
    """Cohen's d by the pooled sd of both arms, with the given ddof in each (1: sample, 0: population):
    (mean(first) - mean(second)) / sqrt((SS_first + SS_second) / (n_first + n_second - 2 ddof)). Of paired
    arms this is d_av: the difference in units of the spread between trials, whereas d_z is in units of the
    spread of differences, so that the two are not to be compared. None without spread, or with fewer than 2
    values in an arm."""
    (a, a_kept, _), (b, b_kept, _) = usable(first), usable(second)
    if min(len(a), len(b)) < 2 or not (a_kept.all() and b_kept.all()):
        return None
    if all_equal(a) and all_equal(b):
        return None
    _, unit = scaled(np.concatenate([a, b]))
    a, b = a / unit, b / unit
    squares = float(((a - a.mean()) ** 2).sum() + ((b - b.mean()) ** 2).sum())
    return float(a.mean() - b.mean()) / math.sqrt(squares / (len(a) + len(b) - 2 * ddof))


def paired_t(differences: Values, confidence: float = 0.95) -> TTest:
    """One-sample t test of the differences that ignores who shares a donor or a target (the naive test)."""
    every, kept, notes = usable(differences, "pair")
    x, unit = scaled(every[kept])
    mean = float(x.mean()) * unit if len(x) else None
    method = "one-sample t test on paired differences, independence assumed"
    if len(x) < 3 or all_equal(x):
        why = "fewer than 3 pairs, no test" if len(x) < 3 else "all differences are equal, no test"
        note = "; ".join([*notes, why])
        return TTest((len(x),), mean, method, note)
    test = from_moments(float(x.mean()), float(x.std(ddof=1)), len(x), confidence, "; ".join(notes))
    return test if unit == 1 else _in_units(test, unit)


def from_moments(mean: float, sd: float, n: int, confidence: float = 0.95, note: str = "") -> TTest:
    """The same test from mean, sd (ddof 1) and n alone: what a published table allows. Raises ValueError for
    n < 2 or sd <= 0."""
    if n < 2 or sd <= 0:
        raise ValueError(f"expected n >= 2 and sd > 0, got n = {n} and sd = {sd}")
    se = sd / n**0.5
    t = mean / se
    half = float(stats.t.ppf(0.5 + confidence / 2, n - 1)) * se
    return TTest(
        n=(n,),
        difference=mean,
        sd=sd,
        t=t,
        df=n - 1,
        p=float(2 * stats.t.sf(abs(t), n - 1)),
        ci_low=mean - half,
        ci_high=mean + half,
        d_ddof1=mean / sd,
        d_ddof0=mean / sd * (n / (n - 1)) ** 0.5,
        method="one-sample t test on paired differences, independence assumed",
        note=note,
    )


def unpaired_t(
    first: Values,
    second: Values,
    *,
    pooled: bool,
    confidence: float = 0.95,
) -> TTest:
    """t test between two independent samples: Student's with a pooled variance, or Welch's. For paired data
    this is the wrong test; it is here because published figures used it. d is by the pooled sd (ddof 1 and
    0)."""
    (a, a_kept, _), (b, b_kept, _) = usable(first), usable(second)
    lost = int((~a_kept).sum() + (~b_kept).sum())
    a, b = a[a_kept], b[b_kept]
    notes = [f"{plural(lost, 'value')} undefined and left out"] if lost else []
    _, unit = scaled(np.concatenate([a, b]))
    a, b = a / unit, b / unit
    method = "unpaired t test, pooled variance" if pooled else "unpaired t test, Welch"
    sizes = (len(a), len(b))
    difference = float(a.mean() - b.mean()) if min(sizes) else None
    if min(sizes) < 2 or (all_equal(a) and all_equal(b)):
        why = (
            "fewer than 2 values in an arm, no test" if min(sizes) < 2 else "no spread in either arm, no test"
        )
        note = "; ".join([*notes, why])
        return TTest(sizes, None if difference is None else difference * unit, method, note)
    result = stats.ttest_ind(a, b, equal_var=pooled)
    interval = result.confidence_interval(confidence)
    squares = float(((a - a.mean()) ** 2).sum() + ((b - b.mean()) ** 2).sum())
    total = len(a) + len(b)
    pooled_sd = (squares / (total - 2)) ** 0.5
    assert difference is not None
    test = TTest(
        n=sizes,
        difference=difference,
        sd=pooled_sd,
        t=float(result.statistic),
        df=float(result.df),
        p=float(result.pvalue),
        ci_low=float(interval.low),
        ci_high=float(interval.high),
        d_ddof1=difference / pooled_sd,
        d_ddof0=difference / (squares / total) ** 0.5,
        method=method,
        note="; ".join(notes),
    )
    return test if unit == 1 else _in_units(test, unit)


def _in_units(test: TTest, unit: float) -> TTest:
    """The test of values that were computed with in another unit."""
    difference, sd, low, high = (
        None if value is None else value * unit
        for value in (test.difference, test.sd, test.ci_low, test.ci_high)
    )
    return replace(test, difference=difference, sd=sd, ci_low=low, ci_high=high)
