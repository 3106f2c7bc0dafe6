"""How sure a mean is when its values share donors and targets: cluster-robust interval and test."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from analyses.wording import count, plural

Floats = NDArray[np.float64]
Codes = NDArray[np.intp]
Labels = Sequence[Hashable] | NDArray[Any] | pd.Series
_FEW = 10


@dataclass(frozen=True)
class ClusteredMean:
    """Mean of n values with its cluster-robust standard error.

    `sd` has ddof 1. `clusters` maps each dimension in use to its number of clusters; `effective_n` is the
    number of independent values that would give the same standard error, sd^2 / se^2, and never more than
    n. What could not be computed is None, and then `note` says why.
    """

    n: int
    mean: float | None
    sd: float | None
    confidence: float
    clusters: dict[str, int]
    method: str
    note: str
    se: float | None = None
    df: int | None = None
    t: float | None = None
    p: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    effective_n: float | None = None


def clustered_mean(
    values: Sequence[float] | Floats | pd.Series,
    *,
    donor: Labels | None = None,
    target: Labels | None = None,
    confidence: float = 0.95,
) -> ClusteredMean:
    """Test of mean 0 under two-way clustering by donor and target.

    V = V_donor + V_target - V_pair, each with the factor G/(G-1) of its own number of clusters; a variance
    that is not positive falls back on the larger one-way variance, and the note says so. df = min(G_donor,
    G_target) - 1. One dimension alone gives the one-way estimate, none the ordinary t test. Values that are
    not finite are left out and counted in the note. Raises ValueError where labels and values differ in
    length.

    Source: Cameron, Gelbach and Miller (2011), "Robust inference with multiway clustering", eq. 2.11 and
    section 2.3.
    """
    x = np.asarray(values, dtype=np.float64)
    labels = {name: given for name, given in (("donor", donor), ("target", target)) if given is not None}
    for name, given in labels.items():
        if len(given) != len(x):
            raise ValueError(f"{name}: expected {len(x)} labels, one per value, got {len(given)}")
    finite = np.isfinite(x)
    notes: list[str] = []
    if not finite.all():
        notes.append(f"{count(int((~finite).sum()))} of {plural(len(x), 'value')} undefined and left out")
    x = x[finite]
    codes: dict[str, Codes] = {}
    for name, given in labels.items():
        coded, remark = _codes(name, pd.Series(list(given), dtype=object)[finite])
        notes += [remark] if remark else []
        if coded is not None:
            codes[name] = coded
    return _test(x, codes, confidence, notes)


def cluster_variance(scores: Floats, *, donor: Labels, target: Labels) -> tuple[float, dict[str, int], str]:
    """Variance of the mean of scores that sum to 0, two-way clustered as in `clustered_mean`, with the number
    of clusters of each dimension and a note; for estimates that are means of scores, such as slopes. 0 where
    nothing is left after the clusters."""
    codes: dict[str, Codes] = {}
    notes = []
    for name, given in (("donor", donor), ("target", target)):
        coded, remark = _codes(name, pd.Series(list(given), dtype=object))
        notes += [remark] if remark else []
        if coded is not None:
            codes[name] = coded
    sizes = {name: int(coded.max()) + 1 for name, coded in codes.items()}
    usable = {name: coded for name, coded in codes.items() if sizes[name] > 1}
    variance, _, remark = _variance(scores, usable)
    notes += [remark] if remark else []
    return max(0.0, variance), {name: sizes[name] for name in usable}, "; ".join(notes)


def _codes(name: str, labels: pd.Series) -> tuple[Codes | None, str]:
    """Labels as 0..G-1; a value without a label is a cluster of its own."""
    known = labels.notna().to_numpy()
    if not known.any():
        return None, f"no {name} is recorded: not clustered by {name}" if len(labels) else ""
    coded, uniques = pd.factorize(labels)
    if known.all():
        return coded, "" if len(uniques) > 1 else f"one {name} only: says nothing about other {name}s"
    lone = np.flatnonzero(~known)
    coded[lone] = len(uniques) + np.arange(len(lone))
    return coded, f"{plural(len(lone), 'value')} without a {name}, each taken as its own cluster"


def _test(x: Floats, codes: dict[str, Codes], confidence: float, notes: list[str]) -> ClusteredMean:
    n = len(x)
    sizes = {name: int(coded.max()) + 1 for name, coded in codes.items() if n}
    usable = {name: coded for name, coded in codes.items() if sizes.get(name, 0) > 1}
    mean = float(x.mean()) if n else None
    sd = float(x.std(ddof=1)) if n > 1 else None

    def untested(why: str) -> ClusteredMean:
        note = "; ".join([*notes, why])
        return ClusteredMean(n, mean, sd, confidence, sizes, "none", note)

    if n < 3:
        return untested(f"{plural(n, 'value')}: fewer than 3, so no interval and no test")
    assert mean is not None and sd is not None
    if all_equal(x):
        return untested(f"all {count(n)} values are equal, so there is no spread to test against")
    if codes and not usable:
        return untested("every value belongs to the same clusters, so there is no interval and no test")
    variance, method, remark = _variance(x - mean, usable)
    notes = [*notes, remark] if remark else notes
    if variance <= 0:
        return untested("the values cancel out within every cluster, so no standard error can be estimated")
    fewest = min((sizes[name] for name in usable), default=n)
    if usable and fewest < _FEW:
        notes = [*notes, f"only {count(fewest)} clusters in one dimension: the interval is rough"]
    df = fewest - 1
    se = float(np.sqrt(variance))
    t = mean / se
    half = float(stats.t.ppf(0.5 + confidence / 2, df)) * se
    return ClusteredMean(
        n=n,
        mean=mean,
        sd=sd,
        se=se,
        df=df,
        t=t,
        p=float(2 * stats.t.sf(abs(t), df)),
        ci_low=mean - half,
        ci_high=mean + half,
        confidence=confidence,
        clusters=sizes,
        effective_n=min(float(n), sd**2 / variance),
        method=method,
        note="; ".join(notes),
    )


def _variance(residual: Floats, codes: dict[str, Codes]) -> tuple[float, str, str]:
    """Variance of the mean, the method's name, and a remark where a fallback was needed."""
    if not codes:
        return _one_way(residual, np.arange(len(residual))), "ordinary t test, not clustered", ""
    ways = {name: _one_way(residual, coded) for name, coded in codes.items()}
    if len(ways) == 1:
        (name,) = ways
        return ways[name], f"clustered by {name}", ""
    first, second = codes.values()
    pair = np.unique(first * (int(second.max()) + 1) + second, return_inverse=True)[1]
    largest = max(ways.values())
    both = sum(ways.values()) - _one_way(residual, pair)
    if both > 1e-12 * largest:
        return both, "two-way clustered (donor x target)", ""
    remark = "the two-way variance is not positive: the larger one-way variance is used"
    return largest, "larger of the one-way clustered variances", remark


def _one_way(residual: Floats, coded: Codes) -> float:
    """G/(G-1) * sum over clusters of (sum of residuals)^2 / n^2; singletons give s^2/n."""
    sums = np.bincount(coded, weights=residual)
    clusters = len(sums)
    return float(clusters / (clusters - 1) * (sums**2).sum() / len(residual) ** 2)


def all_equal(x: Floats) -> bool:
    """Whether the values differ by no more than rounding."""
    return bool(np.ptp(x) <= 1e-12 * max(1.0, float(np.abs(x).max())))
