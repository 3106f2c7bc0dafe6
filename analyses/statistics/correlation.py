"""How closely two columns go together, with an interval."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from analyses.statistics.samples import Floats, Values, all_equal, scaled, usable
from analyses.wording import count, figure, plural


@dataclass(frozen=True)
class Correlation:
    """A correlation of n pairs with its interval, in -1..1. `effective_n` is the number of independent pairs
    that p and interval stand for; n unless another was given. What could not be computed is None, and then
    `note` says why."""

    n: int
    effective_n: float
    confidence: float
    method: str
    note: str
    r: float | None = None
    p: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None


def pearson(
    x: Values, y: Values, confidence: float = 0.95, *, effective_n: float | None = None
) -> Correlation:
    """Pearson's r, the p of t = r sqrt((n - 2) / (1 - r^2)) with n - 2 df, and Fisher's interval,
    tanh(atanh r +- z / sqrt(n - 3)).

    Both take pairs for independent. Where pairs share donors or targets, an effective n, such as that of
    `clustered_mean` for the product of both columns' deviations, takes the place of n. Pairs with an
    undefined value are left out. An interval needs 4 pairs. Raises ValueError where the columns differ in
    length or the effective n is not in 3..n. Source: Fisher (1921).
    """
    return _correlation(x, y, confidence, effective_n, ranks=False)


def spearman(
    x: Values, y: Values, confidence: float = 0.95, *, effective_n: float | None = None
) -> Correlation:
    """Spearman's rank correlation, ties with their mean rank, p by the same t, and Fisher's interval with the
    variance (1 + r^2 / 2) / (n - 3). Else as `pearson`. Source: Spearman (1904); the variance, Bonett and
    Wright (2000), "Sample size requirements for estimating Pearson, Kendall and Spearman correlations"."""
    return _correlation(x, y, confidence, effective_n, ranks=True)


def least_significant(n: int, alpha: float = 0.05) -> float | None:
    """The smallest |r| of n pairs that has p < alpha: what a criterion on r must be able to pass. None for n
    < 3, where no r has. Raises ValueError for an alpha outside 0..1."""
    if not 0 < alpha < 1:
        raise ValueError(f"alpha: expected a number between 0 and 1, got {alpha}")
    if n < 3:
        return None
    t = float(stats.t.ppf(1 - alpha / 2, n - 2))
    return t / math.sqrt(n - 2 + t * t)


def _correlation(
    x: Values, y: Values, confidence: float, effective_n: float | None, *, ranks: bool
) -> Correlation:
    first, first_kept, _ = usable(x)
    second, second_kept, _ = usable(y)
    if len(first) != len(second):
        raise ValueError(f"expected two columns of one length, got {len(first)} and {len(second)}")
    kept = first_kept & second_kept
    a, b = scaled(first[kept])[0], scaled(second[kept])[0]
    n = len(a)
    many = float(n) if effective_n is None else float(effective_n)
    if effective_n is not None and not (3 <= many <= n):
        raise ValueError(f"effective_n: expected 3 to {n}, got {effective_n}")
    lost = len(first) - n
    notes = [f"{count(lost)} of {plural(len(first), 'pair')} undefined and left out"] if lost else []
    name = "Spearman's rank correlation" if ranks else "Pearson's correlation"
    given = "independence assumed" if effective_n is None else f"by an effective n of {figure(many, 1)}"
    method = f"{name}, Fisher's interval, {given}"

    def without(why: str) -> Correlation:
        return Correlation(n, many, confidence, method, "; ".join([*notes, why]))

    if n < 3:
        return without(f"{plural(n, 'pair')}: fewer than 3, no correlation")
    for column in (a, b):
        if all_equal(column):
            return without("all values of one column are equal, no correlation")
    found: Any = stats.spearmanr(a, b) if ranks else stats.pearsonr(a, b)
    r = float(np.clip(found.statistic, -1.0, 1.0))
    low, high = _interval(r, many, confidence, ranks=ranks)
    if low is None:
        few = "an interval needs 4 pairs" if many <= 3 else "every pair lies on one line, so no interval"
        notes.append(few)
    return Correlation(
        n=n,
        effective_n=many,
        r=r,
        p=_p(r, many),
        ci_low=low,
        ci_high=high,
        confidence=confidence,
        method=method,
        note="; ".join(notes),
    )


def _p(r: float, n: float) -> float:
    if abs(r) >= 1:
        return 0.0
    return float(2 * stats.t.sf(abs(r) * ((n - 2) / (1 - r * r)) ** 0.5, n - 2))


def _interval(r: float, n: float, confidence: float, *, ranks: bool) -> tuple[float | None, float | None]:
    if n <= 3 or abs(r) >= 1 - 1e-12:
        return None, None
    spread = ((1 + r * r / 2 if ranks else 1.0) / (n - 3)) ** 0.5
    half = float(stats.norm.ppf(0.5 + confidence / 2)) * spread
    middle = float(np.arctanh(r))
    return float(np.tanh(middle - half)), float(np.tanh(middle + half))


def clustered_products(x: Floats, y: Floats) -> Floats:
    """The products of both columns' deviations in units of their sd: their mean is r (but for n - 1), so that
    their clustered mean tells the effective n of a correlation."""
    a, b = (scaled(each)[0] for each in (x, y))
    return np.asarray((a - a.mean()) / a.std() * (b - b.mean()) / b.std())
