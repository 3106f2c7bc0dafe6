"""Which difference a design could find: before a run, and from the standard error of one."""

from __future__ import annotations

import math
from collections.abc import Sequence

from scipy import optimize, stats


def minimal_detectable_effect(
    sd: float,
    n: int,
    *,
    alpha: float = 0.05,
    power: float = 0.8,
    icc: Sequence[float] = (),
    cluster_sizes: Sequence[Sequence[int]] = (),
) -> float:
    """The smallest mean paired difference that a two-sided test finds with the given power, in units of
    `sd`'s score.

    `sd` is that of the paired differences. For each dimension (donor, target) `icc` is the share of
    variance that lies between its clusters and `cluster_sizes` the number of pairs in each: V = sd^2/n * (1
    + sum of icc * (sum of m^2 / n - 1)), df = fewest clusters - 1, as in the test itself. Exact, by the
    noncentral t. Raises ValueError for n < 3, sd <= 0, icc outside 0..1 or sizes that do not add up to n.
    """
    if n < 3 or not sd > 0:
        raise ValueError(f"expected n >= 3 and sd > 0, got n = {n} and sd = {sd}")
    if len(icc) != len(cluster_sizes):
        raise ValueError(f"expected one icc per clustered dimension, got {len(icc)} for {len(cluster_sizes)}")
    effect = 1.0
    for share, sizes in zip(icc, cluster_sizes, strict=True):
        if not 0 <= share <= 1:
            raise ValueError(f"icc: expected 0..1, got {share}")
        if sum(sizes) != n or len(sizes) < 2:
            raise ValueError(
                f"cluster sizes: expected two or more that sum to {n}, got a sum of {sum(sizes)}"
            )
        effect += share * (sum(m * m for m in sizes) / n - 1)
    df = min((len(sizes) for sizes in cluster_sizes), default=n) - 1
    return detectable(sd * (effect / n) ** 0.5, df, alpha=alpha, power=power)


def detectable(se: float, df: int, *, alpha: float = 0.05, power: float = 0.8) -> float:
    """The difference that a two-sided t test with this standard error and df finds with the given power."""
    if not se > 0 or df < 1 or not 0 < alpha < power < 1:
        raise ValueError(
            f"expected se > 0, df >= 1 and 0 < alpha < power < 1, got {se}, {df}, {alpha} and {power}"
        )
    critical = float(stats.t.ppf(1 - alpha / 2, df))

    def shortfall(shift: float) -> float:
        # The far tail is at most alpha / 2 and vanishes as the shift grows, where scipy returns NaN for it.
        far = float(stats.nct.cdf(-critical, df, shift))
        return float(stats.nct.sf(critical, df, shift)) + (0.0 if math.isnan(far) else far) - power

    upper = 1.0
    while shortfall(upper) < 0:
        upper *= 2
    return float(optimize.brentq(shortfall, 0.0, upper)) * se
