"""What the figures of a test leave open for each other, and how that reads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from scipy import stats

from analyses.published.printed import Figure, Span, sizes, span

TINY = 1e-12
CLOSE = 1e-6  # relative: what two ways of computing one figure may differ by
_NORMAL = 1e9  # degrees of freedom at which t is the normal distribution
ANY: Span = (1.0, _NORMAL)  # degrees of freedom where none is known
_DFS = (1, 2, 3, 5, 10, 20, 50, 200, _NORMAL)  # that stand for all where none is known


def critical(df: Span | None, confidence: float) -> Span:
    """Half an interval in standard errors, by the normal distribution or by t; of unknown df, by any."""
    upper = 0.5 + confidence / 2
    fewest = ANY[0] if df is None else df[0]
    return float(stats.norm.ppf(upper)), float(stats.t.ppf(upper, fewest))


def p_of_interval(mean: Span, half: Span, df: Span | None, confidence: float, sides: int) -> Span:
    """p of a mean with an interval of this half width. half: above 0. Both are by the same distribution where
    the df is unknown, which could else be anything; each by t or by the normal one where it is known."""
    if df is None:
        used = [(critical((k, k), confidence)[1], k) for k in _DFS]
    else:
        used = [(wide, p) for k in df for wide in critical((k, k), confidence) for p in (k, _NORMAL)]
    found = []
    for wide, k in used:
        t = span(lambda m, h, wide=wide: m * wide / h, sizes(mean), half)
        found.append(p_of(t, (k, k), sides))
    return min(low for low, _ in found), max(high for _, high in found)


def positive(figure: Figure) -> Span:
    """What a figure leaves that is above 0."""
    return max(TINY, figure.low), max(TINY, figure.high)


def meet(one: Span, other: Span) -> bool:
    """Whether two intervals have a value in common, but for rounding."""
    slack = CLOSE * max(abs(one[1]), abs(other[1])) * 1e-2
    return one[0] <= other[1] + slack and other[0] <= one[1] + slack


def p_of(t: Span, df: Span, sides: int) -> Span:
    """p of |t|: it falls with t and with df."""
    found: Any = span(lambda x, k: sides * float(stats.t.sf(x, k)), t, df)
    return found[0] * (1 - CLOSE), min(1.0, found[1] * (1 + CLOSE))


def p_in_words(p: Span) -> str:
    """An interval of p, as one figure where its ends read alike."""
    low, high = (f"{value:.2g}" for value in p)
    return low if low == high else f"{low} to {high}"


def df_in_words(df: Span | None) -> str:
    """Degrees of freedom behind a t: "(44)"."""
    if df is None:
        return ""
    low, high = math.ceil(df[0] - 0.5), math.floor(df[1] + 0.5)
    return f"({df[0]:g})" if df[0] == df[1] else f"({low})" if low == high else f"({low} to {high})"


def listed_sizes(n: Sequence[int]) -> str:
    """n of one arm or of two."""
    return " and ".join(map(str, n))


def some_squares(total: int, n: int, sd: Figure, ddof: int = 1) -> bool:
    """Whether n whole numbers of this sum can have a sum of squares that gives the sd, of this ddof: no less
    than that of the most even numbers, and even or odd as their sum is."""
    quotient, rest = divmod(total, n)
    least = rest * (quotient + 1) ** 2 + (n - rest) * quotient**2
    low = max(least, math.ceil(max(0.0, sd.low) ** 2 * (n - ddof) + total**2 / n - CLOSE))
    high = math.floor(sd.high**2 * (n - ddof) + total**2 / n + CLOSE)
    if (low - total) % 2:
        low += 1
    return low <= high
