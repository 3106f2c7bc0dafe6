"""What a difference could be if the trials without a valid value had one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from analyses.statistics.clusters import ClusteredMean, clustered_mean
from analyses.statistics.labels import Labels
from analyses.statistics.samples import Floats, Values, usable


@dataclass(frozen=True)
class InvalidBounds:
    """The difference of n pairs, `invalid_first` and `invalid_second` of whose values are missing.

    `estimate` is over the pairs that are complete. `low` has every missing value of the first side at `least`
    and of the second at `greatest`, `high` the other way round: no values between the two give a difference
    outside low.mean..high.mean. `sign_survives`: both have the sign of the estimate; `verdict_survives`: both
    fall on the estimate's side of alpha as well, with its sign where it is significant. None where there is
    nothing to survive, and then `note` says why.
    """

    n: int
    invalid_first: int
    invalid_second: int
    least: float | None
    greatest: float | None
    estimate: ClusteredMean
    low: ClusteredMean | None
    high: ClusteredMean | None
    sign_survives: bool | None
    verdict_survives: bool | None
    note: str

    @property
    def invalid(self) -> int:
        """The missing values of both sides."""
        return self.invalid_first + self.invalid_second


def invalid_bounds(
    first: Values,
    second: Values,
    donors: Mapping[str, Labels] | None = None,
    target: Labels | None = None,
    *,
    limits: tuple[float, float] | None = None,
    alpha: float = 0.05,
    confidence: float = 0.95,
) -> InvalidBounds:
    """Sensitivity of mean(first - second) to invalid trials, worst case against and for the effect.

    first, second: the values of both sides for every pair that was planned, NaN where a trial is invalid;
    donors, target: labels of the same pairs, as in `clustered_mean`. limits: the least and the greatest value
    that there can be, such as (0, 1) for a share; else those seen in either side. The extremes of the
    difference are sharp; that of the test is not, since values between the limits may have a larger spread.
    Raises ValueError where the sides differ in length, or a value lies outside the limits.

    Source: Manski (1990), "Nonparametric bounds on treatment effects"; Horowitz and Manski (2000).
    """
    a, a_kept, _ = usable(first)
    b, b_kept, _ = usable(second)
    if len(a) != len(b):
        raise ValueError(f"expected pairs, got {len(a)} and {len(b)} values")
    estimate = clustered_mean(
        np.where(a_kept & b_kept, a, np.nan) - np.where(a_kept & b_kept, b, np.nan),
        donor=donors,
        target=target,
        confidence=confidence,
    )
    seen = np.concatenate([a[a_kept], b[b_kept]])
    missing = (int((~a_kept).sum()), int((~b_kept).sum()))

    def without(why: str) -> InvalidBounds:
        least, greatest = limits or (None, None)
        return InvalidBounds(len(a), *missing, least, greatest, estimate, None, None, None, None, why)

    if not len(seen):
        return without("no valid value on either side")
    least, greatest = (float(seen.min()), float(seen.max())) if limits is None else limits
    if seen.min() < least or seen.max() > greatest:
        raise ValueError(
            f"limits: expected values in {least:g}..{greatest:g}, got {seen.min():g}..{seen.max():g}"
        )
    if not sum(missing):
        return without("every pair is complete: nothing to bound")

    def filled(of_first: float, of_second: float) -> ClusteredMean:
        gap: Floats = np.where(a_kept, a, of_first) - np.where(b_kept, b, of_second)
        return clustered_mean(gap, donor=donors, target=target, confidence=confidence)

    low, high = filled(least, greatest), filled(greatest, least)
    sign, verdict, note = _survives(estimate, low, high, alpha)
    return InvalidBounds(len(a), *missing, least, greatest, estimate, low, high, sign, verdict, note)


def _survives(
    estimate: ClusteredMean, low: ClusteredMean, high: ClusteredMean, alpha: float
) -> tuple[bool | None, bool | None, str]:
    assert low.mean is not None and high.mean is not None
    if estimate.mean is None:
        return None, None, "no pair is complete: there is no estimate to survive"
    direction = np.sign(estimate.mean)
    sign = bool(np.sign(low.mean) == direction == np.sign(high.mean))
    untested = [each.note for each in (estimate, low, high) if each.p is None]
    if untested:
        return sign, None, f"not tested: {untested[0]}"
    verdicts = [_verdict(each, alpha) for each in (estimate, low, high)]
    return sign, len(set(verdicts)) == 1, ""


def _verdict(test: ClusteredMean, alpha: float) -> int:
    """1 or -1 where the mean is shown to lie above or below 0, else 0."""
    assert test.p is not None and test.mean is not None
    return int(np.sign(test.mean)) if test.p < alpha else 0
