"""How sure a mean is when its values share donors and targets: cluster-robust interval and test."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
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
    donor: Labels | Mapping[str, Labels] | None = None,
    target: Labels | None = None,
    confidence: float = 0.95,
) -> ClusteredMean:
    """Test of mean 0 under multiway clustering by target and by one or more donors of each value.

    donor: a label per value; or, where several donors went into a value, such labels by the name of their
    dimension. A label that stands in two of these dimensions is the same donor in both. Dimensions with the
    same labels are one.

    With donor and target, V = V_donor + V_target - V_pair, each with the factor G/(G-1) of its own number of
    clusters; with more dimensions, inclusion and exclusion over all their intersections. Values that share a
    donor in different dimensions only add their covariance, which does not take V below that of independent
    values. A variance that is not positive falls back on the largest one-way variance, and the note says so.
    df = min G - 1. One dimension alone gives the one-way estimate, none the ordinary t test. Values that are
    not finite are left out and counted in the note. Raises ValueError where labels and values differ in
    length.

    Source: Cameron, Gelbach and Miller (2011), "Robust inference with multiway clustering", eq. 2.11,
    section 2.3 and the section on more than two ways; for a label in two dimensions, Aronow, Samii and
    Assenova (2015), "Cluster-robust variance estimation for dyadic data".
    """
    x = np.asarray(values, dtype=np.float64)
    donors, labels = _by_dimension(donor, target)
    for name, given in labels.items():
        if len(given) != len(x):
            raise ValueError(f"{name}: expected {len(x)} labels, one per value, got {len(given)}")
    finite = np.isfinite(x)
    notes: list[str] = []
    if not finite.all():
        notes.append(f"{count(int((~finite).sum()))} of {plural(len(x), 'value')} undefined and left out")
    kept = {name: pd.Series(list(given), dtype=object)[finite] for name, given in labels.items()}
    codes, remarks = _all_codes(kept)
    return _test(x[finite], codes, {name: kept[name] for name in donors}, confidence, [*notes, *remarks])


def cluster_variance(scores: Floats, *, donor: Labels, target: Labels) -> tuple[float, dict[str, int], str]:
    """Variance of the mean of scores that sum to 0, two-way clustered as in `clustered_mean`, with the number
    of clusters of each dimension and a note; for estimates that are means of scores, such as slopes. 0 where
    nothing is left after the clusters."""
    labels = {
        name: pd.Series(list(given), dtype=object) for name, given in (("donor", donor), ("target", target))
    }
    codes, notes = _all_codes(labels)
    sizes = {name: int(coded.max()) + 1 for name, coded in codes.items()}
    usable = {name: coded for name, coded in codes.items() if sizes[name] > 1}
    variance, _, remark = _variance(scores, usable, {})
    notes += [remark] if remark else []
    return max(0.0, variance), {name: sizes[name] for name in usable}, "; ".join(notes)


def in_words(clusters: Mapping[str, int]) -> str:
    """Clusters in words: {"donor": 86, "donor:l1": 48, "target": 150} -> "86 donors x 48 donors of l1 x 150
    targets"."""
    return " x ".join(f"{count(n)} {_noun(name, n)}" for name, n in clusters.items())


def _noun(name: str, number: int = 1) -> str:
    """What one cluster of a dimension is called, or several: `donor:l1` -> "donor of l1"."""
    kind, _, role = name.partition(":")
    return kind + ("" if number == 1 else "s") + (f" of {role}" if role else "")


def _by_dimension(
    donor: Labels | Mapping[str, Labels] | None, target: Labels | None
) -> tuple[list[str], dict[str, Labels]]:
    """The names of the donors' dimensions, those with the same labels once, and all labels by dimension."""
    given: Mapping[str, Labels] = {}
    if donor is not None:
        given = donor if isinstance(donor, Mapping) else {"donor": donor}
    labels: dict[str, Labels] = {}
    for name, found in given.items():
        if not any(list(found) == list(other) for other in labels.values()):
            labels[name] = found
    donors = list(labels)
    if target is not None:
        labels["target"] = target
    return donors, labels


def _all_codes(labels: Mapping[str, pd.Series]) -> tuple[dict[str, Codes], list[str]]:
    """The codes of each dimension that has labels, and what is to be noted."""
    codes: dict[str, Codes] = {}
    notes: list[str] = []
    for name, given in labels.items():
        coded, remark = _codes(name, given)
        notes += [remark] if remark else []
        if coded is not None:
            codes[name] = coded
    return codes, notes


def _codes(name: str, labels: pd.Series) -> tuple[Codes | None, str]:
    """Labels as 0..G-1; a value without a label is a cluster of its own."""
    known = labels.notna().to_numpy()
    noun = _noun(name)
    if not known.any():
        return None, f"no {noun} is recorded: not clustered by {noun}" if len(labels) else ""
    coded, uniques = pd.factorize(labels)
    if known.all():
        return coded, "" if len(
            uniques
        ) > 1 else f"one {noun} only: says nothing about other {_noun(name, 2)}"
    lone = np.flatnonzero(~known)
    coded[lone] = len(uniques) + np.arange(len(lone))
    return coded, f"{plural(len(lone), 'value')} without a {noun}, each taken as its own cluster"


def _test(
    x: Floats, codes: dict[str, Codes], donors: Mapping[str, pd.Series], confidence: float, notes: list[str]
) -> ClusteredMean:
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
    prompts = {name: given for name, given in donors.items() if name in usable}
    variance, method, remark = _variance(x - mean, usable, prompts)
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


def _variance(
    residual: Floats, codes: dict[str, Codes], donors: Mapping[str, pd.Series]
) -> tuple[float, str, str]:
    """Variance of the mean, the method's name, and a remark where a fallback was needed. donors: labels of
    the dimensions of `codes` that may name one donor twice."""
    if not codes:
        return _one_way(residual, np.arange(len(residual))), "ordinary t test, not clustered", ""
    ways = {name: _one_way(residual, coded) for name, coded in codes.items()}
    if len(ways) == 1:
        (name,) = ways
        return ways[name], f"clustered by {name}", ""
    total = sum(ways.values())
    for size in range(2, len(codes) + 1):
        sign = -1 if size % 2 == 0 else 1
        for dimensions in combinations(codes.values(), size):
            total += sign * _one_way(residual, _intersection(dimensions))
    across = _across(residual, codes, donors)
    if across:
        # The sum over few pairs of values is rough: what it takes away stops at independent values.
        independent = _one_way(residual, np.arange(len(residual)))
        total = max(total + across, min(total, independent))
    largest = max(ways.values())
    ordinal = {2: "two", 3: "three"}.get(len(codes), count(len(codes)))
    if total > 1e-12 * largest:
        return total, f"{ordinal}-way clustered ({' x '.join(codes)})", ""
    larger = "larger" if len(codes) == 2 else "largest"
    remark = f"the {ordinal}-way variance is not positive: the {larger} one-way variance is used"
    return largest, f"{larger} of the one-way clustered variances", remark


def _intersection(dimensions: Sequence[Codes]) -> Codes:
    """Codes of the distinct combinations."""
    coded = dimensions[0]
    for other in dimensions[1:]:
        coded = np.unique(coded * (int(other.max()) + 1) + other, return_inverse=True)[1]
    return coded


def _across(residual: Floats, codes: Mapping[str, Codes], donors: Mapping[str, pd.Series]) -> float:
    """What values add to the variance that share a donor in different dimensions, and no cluster: the sum of
    u_i u_j / n^2 over them."""
    if len(donors) < 2:
        return 0.0
    # Values alike in every dimension go together, so that repeats of an item do not multiply the pairs.
    _, first, alike = np.unique(_intersection(list(codes.values())), return_index=True, return_inverse=True)
    sums = np.bincount(alike, weights=residual)
    sides = [
        pd.DataFrame({"donor": given.to_numpy()[first], "at": np.arange(len(first))}).dropna()
        for given in donors.values()
    ]
    found = pd.concat([a.merge(b, on="donor")[["at_x", "at_y"]] for a, b in combinations(sides, 2)])
    pairs = np.unique(np.sort(found.to_numpy(dtype=np.intp), axis=1), axis=0)
    for coded in codes.values():
        of_pair = coded[first][pairs]
        pairs = pairs[of_pair[:, 0] != of_pair[:, 1]]
    return float(2 * (sums[pairs[:, 0]] * sums[pairs[:, 1]]).sum() / len(residual) ** 2)


def _one_way(residual: Floats, coded: Codes) -> float:
    """G/(G-1) * sum over clusters of (sum of residuals)^2 / n^2; singletons give s^2/n."""
    sums = np.bincount(coded, weights=residual)
    clusters = len(sums)
    return float(clusters / (clusters - 1) * (sums**2).sum() / len(residual) ** 2)


def all_equal(x: Floats) -> bool:
    """Whether the values differ by no more than rounding."""
    return bool(np.ptp(x) <= 1e-12 * max(1.0, float(np.abs(x).max())))
