"""Whether a mean is shown to be within a margin of 0."""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy import stats

from analyses.statistics.clusters import ClusteredMean


@dataclass(frozen=True)
class Equivalence:
    """Two one-sided tests of |mean| < margin; `p` is the larger of the two, `passes` compares p with alpha
    before any correction. The interval has confidence 1 - 2 alpha: it lies within a margin that is known
    exactly where p < alpha."""

    margin: float
    alpha: float
    p: float | None
    ci_low: float | None
    ci_high: float | None
    passes: bool | None
    note: str


def tost(mean: ClusteredMean, margin: float, alpha: float = 0.05) -> Equivalence:
    """Two one-sided tests that the mean lies within +-margin, with the clustered standard error and df.

    Raises ValueError for a margin that is not positive. Source: Schuirmann (1987).
    """
    if not margin > 0:
        raise ValueError(f"margin: expected a positive number, got {margin}")
    if mean.mean is None or mean.se is None or mean.df is None:
        return Equivalence(margin, alpha, None, None, None, None, mean.note)
    above = float(stats.t.sf((mean.mean + margin) / mean.se, mean.df))
    below = float(stats.t.cdf((mean.mean - margin) / mean.se, mean.df))
    p = max(above, below)
    half = float(stats.t.ppf(1 - alpha, mean.df)) * mean.se
    return Equivalence(margin, alpha, p, mean.mean - half, mean.mean + half, p < alpha, "")


def tost_of_share(
    difference: ClusteredMean, below: ClusteredMean, above: ClusteredMean, margin: float, alpha: float = 0.05
) -> Equivalence:
    """Two one-sided tests that a mean difference is smaller than a share of an effect that is estimated too.

    below, above: the means, over the same trials, of the difference less this share of the effect and plus
    it, the effect counted as positive. That the first is below 0 and the second above is what is to be shown;
    so the margin's own uncertainty, and how it goes with that of the difference, is in the standard errors.
    margin: the share as estimated. Raises ValueError for a margin that is not positive. Source: the synthesis
    method of non-inferiority trials, Snapinn and Jiang (2008), "Preservation of effect and the regulatory
    approval of new treatments on the basis of non-inferiority trials".
    """
    known = tost(difference, margin, alpha)
    if known.p is None:
        return known
    lower, upper = known.ci_low, known.ci_high
    ps = []
    for test, sign in ((below, 1.0), (above, -1.0)):
        if test.mean is None or test.se is None or test.df is None:
            return Equivalence(margin, alpha, None, lower, upper, None, test.note)
        ps.append(float(stats.t.cdf(sign * test.mean / test.se, test.df)))
    return Equivalence(margin, alpha, max(ps), lower, upper, max(ps) < alpha, known.note)


def suggested_margin(effect: float | None) -> float | None:
    """A third of an effect that is known to be one, such as a positive control's: what may pass for none
    beside it. None where there is no effect. A suggestion, for a margin is a choice of what matters, made
    before the run; two thirds of the effect are kept in any case, as in non-inferiority trials against an
    active control."""
    if effect is None or not math.isfinite(effect) or effect == 0:
        return None
    return abs(effect) / 3
