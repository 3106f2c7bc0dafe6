"""t tests that take every value for independent: the naive ones, as published."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from analyses.statistics.clusters import Floats, all_equal
from analyses.wording import count, plural


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


def cohens_d(differences: Sequence[float] | Floats, ddof: int) -> float | None:
    """Cohen's d of paired differences: d_z = mean / sd with the given ddof (1: sample, 0: population). None
    without spread. The two differ by sqrt(n / (n - 1)), which is why `ddof` has no default."""
    x = np.asarray(differences, dtype=np.float64)
    if len(x) < 2 or not np.isfinite(x).all() or all_equal(x):
        return None
    return float(x.mean() / x.std(ddof=ddof))


def paired_t(differences: Sequence[float] | Floats, confidence: float = 0.95) -> TTest:
    """One-sample t test of the differences that ignores who shares a donor or a target (the naive test)."""
    every = np.asarray(differences, dtype=np.float64)
    x = every[np.isfinite(every)]
    dropped = f"{count(len(every) - len(x))} of {plural(len(every), 'pair')} undefined and left out"
    notes = [dropped] if len(x) < len(every) else []
    mean = float(x.mean()) if len(x) else None
    method = "one-sample t test on paired differences, independence assumed"
    if len(x) < 3 or all_equal(x):
        why = "fewer than 3 pairs, no test" if len(x) < 3 else "all differences are equal, no test"
        note = "; ".join([*notes, why])
        return TTest((len(x),), mean, method, note)
    return from_moments(float(x.mean()), float(x.std(ddof=1)), len(x), confidence, "; ".join(notes))


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
    first: Sequence[float] | Floats,
    second: Sequence[float] | Floats,
    *,
    pooled: bool,
    confidence: float = 0.95,
) -> TTest:
    """t test between two independent samples: Student's with a pooled variance, or Welch's. For paired data
    this is the wrong test; it is here because published figures used it. d is by the pooled sd (ddof 1 and
    0)."""
    a, b = (np.asarray(v, dtype=np.float64) for v in (first, second))
    lost = int((~np.isfinite(a)).sum() + (~np.isfinite(b)).sum())
    a, b = a[np.isfinite(a)], b[np.isfinite(b)]
    notes = [f"{plural(lost, 'value')} undefined and left out"] if lost else []
    method = "unpaired t test, pooled variance" if pooled else "unpaired t test, Welch"
    sizes = (len(a), len(b))
    difference = float(a.mean() - b.mean()) if min(sizes) else None
    if min(sizes) < 2 or (all_equal(a) and all_equal(b)):
        why = (
            "fewer than 2 values in an arm, no test" if min(sizes) < 2 else "no spread in either arm, no test"
        )
        note = "; ".join([*notes, why])
        return TTest(sizes, difference, method, note)
    result = stats.ttest_ind(a, b, equal_var=pooled)
    interval = result.confidence_interval(confidence)
    squares = float(((a - a.mean()) ** 2).sum() + ((b - b.mean()) ** 2).sum())
    total = len(a) + len(b)
    pooled_sd = (squares / (total - 2)) ** 0.5
    assert difference is not None
    return TTest(
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
