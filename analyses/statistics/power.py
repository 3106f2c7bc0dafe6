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
    effect = design_effect(n, icc, cluster_sizes)
    df = min((len(sizes) for sizes in cluster_sizes), default=n) - 1
    return detectable(sd * (effect / n) ** 0.5, df, alpha=alpha, power=power)


def design_effect(n: int, icc: Sequence[float], cluster_sizes: Sequence[Sequence[int]]) -> float:
    """How many times the variance of a mean of n values is that of independent ones: 1 + sum over dimensions
    of icc * (sum of m^2 / n - 1), m the values of each cluster. n divided by it is the effective n. Raises
    ValueError for an icc outside 0..1 or sizes that do not add up to n. Source: Kish (1965), section 5.4,
    with a term for each dimension."""
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
    return effect


def required_n(
    effect: float,
    sd: float,
    *,
    alpha: float = 0.05,
    power: float = 0.8,
    icc: Sequence[float] = (),
    per_cluster: Sequence[float] = (),
) -> int:
    """The fewest pairs with which a two-sided test finds a mean paired difference with the given power.

    sd: of the paired differences. For each dimension `icc` is as above and `per_cluster` the mean number of
    pairs that share a cluster: clusters grow in number with n, so that n pairs have n / per_cluster of them,
    fewest less 1 the df. Where the number of clusters is fixed, more pairs do not help beyond icc * sd^2 / G:
    then ask `minimal_detectable_effect`. Raises ValueError for an effect of 0, sd <= 0, icc outside 0..1 or
    per_cluster < 1.
    """
    if not (effect != 0 and math.isfinite(effect) and sd > 0 and math.isfinite(sd)):
        raise ValueError(f"expected an effect other than 0 and sd > 0, got {effect} and {sd}")
    if len(icc) != len(per_cluster):
        raise ValueError(f"expected one icc per clustered dimension, got {len(icc)} for {len(per_cluster)}")
    for share, many in zip(icc, per_cluster, strict=True):
        if not 0 <= share <= 1 or not many >= 1:
            raise ValueError(f"expected icc in 0..1 and per_cluster >= 1, got {share} and {many}")
    design = 1 + sum(share * (many - 1) for share, many in zip(icc, per_cluster, strict=True))
    largest = max(per_cluster, default=1.0)
    shift = abs(effect) / sd

    def enough(n: int) -> bool:
        df = math.floor(n / largest + 1e-9) - 1
        return df >= 1 and detectable((design / n) ** 0.5, df, alpha=alpha, power=power) <= shift

    upper = 3
    while not enough(upper):
        upper *= 2
    lower = max(2, upper // 2)
    while upper - lower > 1:
        middle = (lower + upper) // 2
        lower, upper = (lower, middle) if enough(middle) else (middle, upper)
    return upper


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
