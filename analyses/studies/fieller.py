"""How large one effect is as a share of another: a ratio that is given only where there is something to
divide by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy import stats

from analyses.statistics.clusters import ClusteredMean, Floats
from analyses.statistics.samples import scaled
from analyses.wording import together


class Clustered(Protocol):
    """Values that come with the clusters that their mean is tested by."""

    def test(self, values: Floats, confidence: float = 0.95) -> ClusteredMean: ...


@dataclass(frozen=True)
class Ratio:
    """mean(numerator) / mean(denominator) with Fieller's interval; None where it is not given, and then
    `note` says why."""

    value: float | None
    low: float | None
    high: float | None
    note: str = ""


def ratio(of: Clustered, numerator: Floats, denominator: Floats, confidence: float = 0.95) -> Ratio:
    """The ratio of two means over the same trials, and Fieller's interval with clustered covariance.

    The interval holds every r at which mean(numerator - r denominator) is not told from 0: the roots of
    (a - r b)^2 = t^2 (V_aa - 2 r V_ab + r^2 V_bb), t with df = fewest clusters - 1. V_ab is had from the
    clustered variances of both means and of their difference, (V_aa + V_bb - V_(a-b)) / 2, and kept within
    +-sqrt(V_aa V_bb). A ratio is given only where the denominator's own interval leaves out 0, which is when
    the roots bound an interval.

    Source: Fieller (1954), "Some problems in interval estimation".
    """
    (above, below), unit = scaled(np.stack([numerator, denominator]))
    over, under, gap = (of.test(x, confidence) for x in (above, below, above - below))
    assert over.mean is not None and under.mean is not None
    if under.se is None or under.df is None or under.ci_low is None or under.ci_high is None:
        return Ratio(None, None, None, f"what it would be a share of has no interval: {under.note}")
    if under.ci_low <= 0 <= under.ci_high:
        told, low, high = together(*(value * unit for value in (under.mean, under.ci_low, under.ci_high)))
        return Ratio(None, None, None, f"what it would be a share of, {told}, may be 0 ({low} to {high})")
    value = over.mean / under.mean
    b, v_bb = under.mean, under.se**2
    v_aa = _variance(over)
    v_gap = _variance(gap)
    bound = (v_aa * v_bb) ** 0.5
    v_ab = min(max((v_aa + v_bb - v_gap) / 2, -bound), bound)
    t = float(stats.t.ppf(0.5 + confidence / 2, under.df))
    first = b**2 - t**2 * v_bb
    middle = over.mean * b - t**2 * v_ab
    last = over.mean**2 - t**2 * v_aa
    root = max(0.0, middle**2 - first * last) ** 0.5
    low_r, high_r = sorted(((middle - root) / first, (middle + root) / first))
    return Ratio(value, low_r, high_r, under.note)


def _variance(test: ClusteredMean) -> float:
    """0 where all values are the same."""
    return 0.0 if test.se is None else test.se**2
