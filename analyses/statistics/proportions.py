"""How sure a share is, and a difference between two shares of the same trials."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from analyses.statistics.samples import Floats


def binary(values: Floats) -> bool:
    """Whether there are values and each is 0 or 1, so that their mean is a share."""
    return bool(len(values)) and bool(np.isin(values, (0.0, 1.0)).all())


def wilson(share: float, n: float, confidence: float = 0.95) -> tuple[float, float]:
    """The score interval of a share of n trials; n may be an effective number. Raises ValueError for n <= 0
    or a share outside 0..1.

    Source: Wilson (1927); with the effective n of clustered trials, Korn and Graubard (1998), "Confidence
    intervals for proportions with small expected number of positive counts estimated from survey data".
    """
    if not n > 0 or not 0 <= share <= 1:
        raise ValueError(f"expected n > 0 and a share in 0..1, got {n} and {share}")
    z = float(stats.norm.ppf(0.5 + confidence / 2))
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5
    return max(0.0, middle - half), min(1.0, middle + half)


def newcombe(first: Floats, second: Floats, n: float, confidence: float = 0.95) -> tuple[float, float]:
    """The interval of the difference between two shares of the same trials, mean(first) - mean(second), each
    value 0 or 1; n: effective number of pairs. It stands also where every pair differs alike. Raises
    ValueError for other values, or columns that differ in length.

    Source: Newcombe (1998), "Improved confidence intervals for the difference between binomial proportions
    based on paired data", method 10.
    """
    _both_binary(first, second)
    a, b = float(first.mean()), float(second.mean())
    low_a, high_a = wilson(a, n, confidence)
    low_b, high_b = wilson(b, n, confidence)
    both = float((first * second).mean()) * n
    neither = float(((1 - first) * (1 - second)).mean()) * n
    one, other = float((first * (1 - second)).mean()) * n, float(((1 - first) * second).mean()) * n
    product = both * neither - one * other
    # The correction for continuity applies to a positive association only.
    corrected = product if product <= 0 else max(0.0, product - n / 2)
    margins = ((both + one) * (neither + other) * (both + other) * (neither + one)) ** 0.5
    phi = corrected / margins if margins > 0 else 0.0
    below = (a - low_a) ** 2 - 2 * phi * (a - low_a) * (high_b - b) + (high_b - b) ** 2
    above = (high_a - a) ** 2 - 2 * phi * (high_a - a) * (b - low_b) + (b - low_b) ** 2
    return a - b - max(0.0, below) ** 0.5, a - b + max(0.0, above) ** 0.5


def sign_test(n: int) -> float:
    """The exact two-sided p where all of n independent differences have one sign: 2 / 2^n."""
    return min(1.0, 2.0 * 0.5**n)


def mcnemar(first: Floats, second: Floats) -> float:
    """The exact two-sided p of McNemar's test: whether pairs that differ do so as often in either direction.
    1 where none differs. Raises ValueError for values other than 0 and 1, or columns that differ in length.
    Source: McNemar (1947); exact by the binomial distribution."""
    _both_binary(first, second)
    only_first, only_second = int((first > second).sum()), int((first < second).sum())
    if only_first + only_second == 0:
        return 1.0
    found: Any = stats.binomtest(only_first, only_first + only_second, 0.5)
    return float(found.pvalue)


@dataclass(frozen=True)
class TwoByTwo:
    """Fisher's exact test of two independent shares; `odds_ratio` is that of the counts, None where it is a
    division by 0. What could not be computed is None, and then `note` says why."""

    ones: tuple[int, int]
    n: tuple[int, int]
    difference: float | None
    odds_ratio: float | None
    p: float | None
    method: str
    note: str


def fisher(ones_first: int, n_first: int, ones_second: int, n_second: int) -> TwoByTwo:
    """The exact two-sided test whether two shares of different, independent trials are the same. For trials
    of the same items `mcnemar` is the test. Raises ValueError for counts that are not 0 <= ones <= n. Source:
    Fisher (1935), conditional on the margins."""
    for ones, n in ((ones_first, n_first), (ones_second, n_second)):
        if not 0 <= ones <= n:
            raise ValueError(f"expected 0 <= ones <= n, got {ones} of {n}")
    counts, sizes = (ones_first, ones_second), (n_first, n_second)
    method = "Fisher's exact test, independence assumed"
    if min(sizes) == 0:
        return TwoByTwo(counts, sizes, None, None, None, method, "an arm without a trial, no test")
    table = [[ones_first, n_first - ones_first], [ones_second, n_second - ones_second]]
    found: Any = stats.fisher_exact(table)
    below = table[0][1] * table[1][0]
    ratio = table[0][0] * table[1][1] / below if below else None
    note = "" if ratio is not None else "the odds ratio is a division by 0"
    difference = ones_first / n_first - ones_second / n_second
    return TwoByTwo(counts, sizes, difference, ratio, float(found.pvalue), method, note)


def _both_binary(first: Floats, second: Floats) -> None:
    if len(first) != len(second):
        raise ValueError(f"expected pairs, got {len(first)} and {len(second)} values")
    for values in (first, second):
        if len(values) and not binary(values):
            raise ValueError("expected values that are 0 or 1")
