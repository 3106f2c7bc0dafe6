"""The signed-rank test: whether differences lean to one side, by their ranks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from analyses.statistics.samples import Floats, Values, all_equal, scaled, usable
from analyses.wording import count, plural

_LISTED = 2_000  # differences whose means of pairs are all listed
_EXACT = 50  # differences up to which test and interval are exact


@dataclass(frozen=True)
class SignedRank:
    """Wilcoxon's signed-rank test of n differences, `nonzero` of which are not 0.

    `statistic` is the sum of the ranks of the positive ones. `estimate` is the median of the means of all
    pairs (Hodges and Lehmann), with its interval. `rank_biserial` is (positive - negative ranks) / all ranks,
    in -1..1. What could not be computed is None, and then `note` says why.
    """

    n: int
    nonzero: int
    confidence: float
    method: str
    note: str
    statistic: float | None = None
    p: float | None = None
    estimate: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    rank_biserial: float | None = None


def wilcoxon(differences: Values, confidence: float = 0.95) -> SignedRank:
    """Two-sided signed-rank test that differences are symmetric about 0, every pair taken for independent.

    Differences of 0 are left out of the ranks, ties share their mean rank. Up to 50 pairs the p is exact,
    over all sign changes of the ranks as they are, ties included; above, that of the normal limit. The
    interval holds the means of pairs (i <= j) between the order statistics that the same distribution gives
    without ties. Above 2,000 pairs there is no interval, and the estimate comes from 2,000 evenly spaced
    order statistics; below 6 there is none of 95%, since even the outermost means are not as sure.

    Source: Wilcoxon (1945); Hodges and Lehmann (1963); the interval, Hollander and Wolfe (1999), section 3.2.
    """
    every, kept, notes = usable(differences, "pair")
    x, unit = scaled(every[kept])
    # Differences that are equal but for rounding have equal ranks.
    greatest = float(np.abs(x).max()) if len(x) else 0.0
    ranked = np.round(x / greatest, 12) if greatest > 0 else x
    ranked = ranked[ranked != 0]
    method = "Wilcoxon signed-rank test, independence assumed"

    def untested(why: str) -> SignedRank:
        note = "; ".join([*notes, why])
        return SignedRank(len(x), len(ranked), confidence, method, note)

    if len(x) < 3:
        return untested(f"{plural(len(x), 'pair')}: fewer than 3, no test")
    if len(ranked) == 0:
        return untested("all differences are 0, no test")
    if all_equal(x):
        return untested("all differences are equal, no test")
    ranks = stats.rankdata(np.abs(ranked))
    positive = float(ranks[ranked > 0].sum())
    total = len(ranked) * (len(ranked) + 1) / 2
    low, high = _interval(x, confidence)
    if low is None:
        many = f"above {count(_LISTED)} pairs the estimate has no interval"
        notes.append(many if len(x) > _LISTED else f"too few pairs for an interval of {confidence:.0%}")
    return SignedRank(
        n=len(x),
        nonzero=len(ranked),
        statistic=positive,
        p=_p(ranked, ranks, positive),
        estimate=float(np.median(_means_of_pairs(_thinned(x)))) * unit,
        ci_low=None if low is None else low * unit,
        ci_high=None if high is None else high * unit,
        rank_biserial=2 * positive / total - 1,
        confidence=confidence,
        method=method,
        note="; ".join(notes),
    )


def _p(ranked: Floats, ranks: Floats, positive: float) -> float:
    if len(ranked) > _EXACT:
        limit: Any = stats.wilcoxon(ranked, method="approx")
        return float(limit.pvalue)
    # Mean ranks are whole or half numbers.
    chances = _null(np.round(2 * ranks).astype(np.intp))
    at = round(2 * positive)
    return min(1.0, 2 * float(min(chances[: at + 1].sum(), chances[at:].sum())))


def _thinned(x: Floats) -> Floats:
    if len(x) <= _LISTED:
        return x
    places = (np.arange(_LISTED) + 0.5) / _LISTED * len(x)
    return np.asarray(np.sort(x)[places.astype(np.intp)])


def _means_of_pairs(x: Floats) -> Floats:
    found, end = np.empty(len(x) * (len(x) + 1) // 2), 0
    for place in range(len(x)):  # row by row: the indices of all pairs at once are four times as large
        start, end = end, end + len(x) - place
        found[start:end] = (x[place] + x[place:]) / 2
    return found


def _interval(x: Floats, confidence: float) -> tuple[float | None, float | None]:
    n = len(x)
    if n > _LISTED:
        return None, None
    means = np.sort(_means_of_pairs(x))
    tail = (1 - confidence) / 2
    if n <= _EXACT:
        chances = np.cumsum(_null(np.arange(1, n + 1)))
        below = int(np.searchsorted(chances, tail, side="right"))
    else:
        spread = (n * (n + 1) * (2 * n + 1) / 24) ** 0.5
        below = int(np.floor(n * (n + 1) / 4 + float(stats.norm.ppf(tail)) * spread))
    if below < 1:
        return None, None
    return float(means[below - 1]), float(means[-below])


def _null(ranks: NDArray[np.intp]) -> Floats:
    """The chance of each sum of those ranks that have a positive sign, every sign as likely as the other."""
    chances = np.zeros(int(ranks.sum()) + 1)
    chances[0] = 1.0
    for rank in ranks:
        chances[rank:] += chances[:-rank].copy()
        chances /= 2
    return chances
