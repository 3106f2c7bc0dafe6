"""How p values are corrected over a declared family.

A test that could not be made (None) stays None but still counts: what was declared does not shrink because of
how the data fell. Every function keeps the given order and raises ValueError for a p outside 0..1.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence

import numpy as np

from analyses.statistics.samples import Floats

PValues = Sequence[float | None]
Correction = Callable[[PValues], list[float | None]]


def holm(p_values: PValues) -> list[float | None]:
    """Holm's step-down correction: the k-th smallest p times m - k + 1, made monotone. Keeps the family-wise
    error whatever the dependence between tests. Source: Holm (1979)."""
    known, places = _known(p_values)
    m = len(p_values)
    return _spread(np.maximum.accumulate((m - np.arange(len(known))) * known), places, m)


def bonferroni(p_values: PValues) -> list[float | None]:
    """Every p times the size of the family. Keeps the family-wise error whatever the dependence, and is never
    below Holm's. Source: Dunn (1961)."""
    known, places = _known(p_values)
    return _spread(len(p_values) * known, places, len(p_values))


def benjamini_hochberg(p_values: PValues) -> list[float | None]:
    """The k-th smallest p times m / k, made monotone from above. Keeps the expected share of false findings
    among all findings (not the chance of any) for independent or positively dependent tests. Source:
    Benjamini and Hochberg (1995); the dependence, Benjamini and Yekutieli (2001), theorem 1.2."""
    known, places = _known(p_values)
    m = len(p_values)
    steps = m / np.arange(1, len(known) + 1) * known
    return _spread(np.minimum.accumulate(steps[::-1])[::-1], places, m)


def level(correct: Correction, p_values: PValues, place: int, alpha: float = 0.05) -> float:
    """The p that the test at `place` must be below for its corrected p to be below alpha, the others being as
    they are. correct: one of the corrections above."""
    m = len(p_values)
    # Each of them multiplies a p by a whole number up to m, or by m over one.
    steps = sorted({alpha / k for k in range(1, m + 1)} | {alpha * k / m for k in range(1, m + 1)})

    def fails(step: float) -> bool:
        given = [*p_values]
        given[place] = step * (1 - 1e-9)
        found = correct(given)[place]
        return found is None or found >= alpha

    return steps[max(0, bisect_left(steps, True, key=fails) - 1)]


def _known(p_values: PValues) -> tuple[Floats, list[int]]:
    """The p values that there are, from the smallest, and their places."""
    for p in p_values:
        if p is not None and not 0 <= p <= 1:
            raise ValueError(f"expected p values in 0..1, got {p}")
    found = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    return np.array([p for p, _ in found], dtype=np.float64), [place for _, place in found]


def _spread(sorted_p: Floats, places: Sequence[int], m: int) -> list[float | None]:
    corrected: list[float | None] = [None] * m
    for place, p in zip(places, sorted_p, strict=True):
        corrected[place] = min(1.0, float(p))
    return corrected
