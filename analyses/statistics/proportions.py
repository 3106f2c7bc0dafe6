"""How sure a share is, and a difference between two shares of the same trials."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]


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
    value 0 or 1; n: effective number of pairs. It stands also where every pair differs alike.

    Source: Newcombe (1998), "Improved confidence intervals for the difference between binomial proportions
    based on paired data", method 10.
    """
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
    1 where none differs. Source: McNemar (1947); exact by the binomial distribution."""
    only_first, only_second = int((first > second).sum()), int((first < second).sum())
    if only_first + only_second == 0:
        return 1.0
    found: Any = stats.binomtest(only_first, only_first + only_second, 0.5)
    return float(found.pvalue)
