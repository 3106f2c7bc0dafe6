"""How sure a mean is when its values share donors and targets: cluster-robust interval and test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from analyses.statistics.labels import (
    TARGET,
    Codes,
    coded,
    columns,
    in_dimensions,
    intersection,
    more_than_one,
    noun,
    sizes,
)
from analyses.statistics.labels import Labels as Labels
from analyses.statistics.samples import Floats as Floats
from analyses.statistics.samples import Values, scaled, usable
from analyses.statistics.samples import all_equal as all_equal
from analyses.wording import count, plural

_FEW = 10
_MANY_PAIRS = 20_000_000  # of values that share a donor in different dimensions: more are not listed


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
    values: Values,
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
    x, kept, notes = usable(values)
    labels = columns(in_dimensions(donor, target), len(x), kept)
    codes, remarks = coded(labels)
    donors = {name: each for name, each in labels.items() if name != TARGET}
    return _test(x[kept], codes, donors, confidence, [*notes, *remarks])


def cluster_variance(scores: Floats, *, donor: Labels, target: Labels) -> tuple[float, dict[str, int], str]:
    """Variance of the mean of scores that sum to 0, two-way clustered as in `clustered_mean`, with the number
    of clusters of each dimension and a note; for estimates that are means of scores, such as slopes. 0 where
    nothing is left after the clusters."""
    codes, notes = coded(columns(in_dimensions(donor, target), len(scores)))
    clusters = more_than_one(codes)
    variance, _, remark = mean_variance(scores, clusters)
    notes += [remark] if remark else []
    return max(0.0, variance), sizes(clusters), "; ".join(notes)


def in_words(clusters: Mapping[str, int]) -> str:
    """Clusters in words: {"donor": 86, "donor:l1": 48, "target": 150} -> "86 donors x 48 donors of l1 x 150
    targets"."""
    return " x ".join(f"{count(n)} {noun(name, n)}" for name, n in clusters.items())


def _test(
    x: Floats,
    codes: dict[str, Codes],
    donors: Mapping[str, NDArray[Any]],
    confidence: float,
    notes: list[str],
) -> ClusteredMean:
    n = len(x)
    numbers = sizes(codes)
    usable_codes = more_than_one(codes)
    x, unit = scaled(x)
    mean = float(x.mean()) if n else None
    sd = float(x.std(ddof=1)) if n > 1 else None

    def untested(why: str) -> ClusteredMean:
        note = "; ".join([*notes, why])
        return ClusteredMean(n, _times(mean, unit), _times(sd, unit), confidence, numbers, "none", note)

    if n < 3:
        return untested(f"{plural(n, 'value')}: fewer than 3, so no interval and no test")
    assert mean is not None and sd is not None
    if all_equal(x):
        return untested(f"all {count(n)} values are equal, so there is no spread to test against")
    if codes and not usable_codes:
        return untested("every value belongs to the same clusters, so there is no interval and no test")
    prompts = {name: given for name, given in donors.items() if name in usable_codes}
    variance, method, remark = mean_variance(x - mean, usable_codes, prompts)
    notes = [*notes, remark] if remark else notes
    if variance <= 0:
        return untested("the values cancel out within every cluster, so no standard error can be estimated")
    fewest = min((numbers[name] for name in usable_codes), default=n)
    if usable_codes and fewest < _FEW:
        notes = [*notes, f"only {count(fewest)} clusters in one dimension: the interval is rough"]
    df = fewest - 1
    se = float(np.sqrt(variance))
    t = mean / se
    half = float(stats.t.ppf(0.5 + confidence / 2, df)) * se
    return ClusteredMean(
        n=n,
        mean=mean * unit,
        sd=sd * unit,
        se=se * unit,
        df=df,
        t=t,
        p=float(2 * stats.t.sf(abs(t), df)),
        ci_low=(mean - half) * unit,
        ci_high=(mean + half) * unit,
        confidence=confidence,
        clusters=numbers,
        effective_n=min(float(n), sd**2 / variance),
        method=method,
        note="; ".join(notes),
    )


def _times(value: float | None, unit: float) -> float | None:
    return None if value is None else value * unit


def mean_variance(
    residual: Floats, codes: Mapping[str, Codes], donors: Mapping[str, NDArray[Any]] | None = None
) -> tuple[float, str, str]:
    """Variance of the mean, the method's name, and a remark where a fallback was needed. codes: of dimensions
    with two clusters or more; donors: labels of those that may name one donor twice."""
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
            total += sign * _one_way(residual, intersection(dimensions))
    across, remark = _across(residual, codes, donors or {})
    if across:
        # The sum over few pairs of values is rough: what it takes away stops at independent values.
        independent = _one_way(residual, np.arange(len(residual)))
        total = max(total + across, min(total, independent))
    largest = max(ways.values())
    ordinal = {2: "two", 3: "three"}.get(len(codes), count(len(codes)))
    if total > 1e-12 * largest:
        return total, f"{ordinal}-way clustered ({' x '.join(codes)})", remark
    larger = "larger" if len(codes) == 2 else "largest"
    remark = f"the {ordinal}-way variance is not positive: the {larger} one-way variance is used"
    return largest, f"{larger} of the one-way clustered variances", remark


def _across(
    residual: Floats, codes: Mapping[str, Codes], donors: Mapping[str, NDArray[Any]]
) -> tuple[float, str]:
    """What values add to the variance that share a donor in different dimensions, and no cluster: the sum of
    u_i u_j / n^2 over them; and a remark where there are too many to be added."""
    if len(donors) < 2:
        return 0.0, ""
    # One code for a donor wherever it stands, -1 for none.
    given = list(donors.values())
    if not all(np.issubdtype(each.dtype, np.number) for each in given):
        given = [each.astype(object) for each in given]
    places = np.split(pd.factorize(np.concatenate(given))[0], len(given))
    number = max(int(each.max()) for each in places) + 1
    stands = [np.bincount(each[each >= 0], minlength=number) > 0 for each in places]
    if not (np.sum(stands, axis=0) > 1).any():
        return 0.0, ""  # no donor stands in two dimensions
    if len(donors) == 2:
        return _across_two(residual, codes, places[0], places[1]) / len(residual) ** 2, ""
    return _across_listed(residual, codes, places)


def _across_two(residual: Floats, codes: Mapping[str, Codes], first: Codes, second: Codes) -> float:
    """The sum of u_i u_j over ordered pairs with the first donor of one as the second of the other and no
    cluster in common, by sums over cells: no pair is listed. Pairs that share clusters drop out by inclusion
    and exclusion over the dimensions."""
    # Values alike in every dimension go together.
    alike = intersection(list(codes.values()))
    at = np.empty(int(alike.max()) + 1, dtype=np.intp)
    at[alike] = np.arange(len(alike))
    sums = np.bincount(alike, weights=residual).astype(np.float64)
    first, second, codes = first[at], second[at], {name: each[at] for name, each in codes.items()}
    known = (first >= 0) & (second >= 0)
    one_way, both_ways = 0.0, 0.0
    for size in range(len(codes) + 1):
        for chosen in combinations(codes.values(), size):
            sign = (-1) ** size
            left, right = sums * (first >= 0), sums * (second >= 0)
            one_way += sign * _matched([first, *chosen], left, [second, *chosen], right)
            turned = sums * known
            both_ways += sign * _matched([first, second, *chosen], turned, [second, first, *chosen], turned)
    return 2 * one_way - both_ways


def _matched(left: Sequence[Codes], ours: Floats, right: Sequence[Codes], theirs: Floats) -> float:
    """The sum over combinations of codes of the sum of ours on the left times that of theirs on the right."""
    joint = intersection([np.concatenate(pair) + 1 for pair in zip(left, right, strict=True)])
    ours_at, theirs_at = np.split(joint, 2)
    number = int(joint.max()) + 1
    by_left = np.bincount(ours_at, weights=ours, minlength=number)
    return float(by_left @ np.bincount(theirs_at, weights=theirs, minlength=number))


def _across_listed(
    residual: Floats, codes: Mapping[str, Codes], places: Sequence[Codes]
) -> tuple[float, str]:
    """The same for three dimensions of donors or more, pair by pair."""
    # Values alike in every dimension go together, so that repeats of an item do not multiply the pairs.
    _, first, alike = np.unique(intersection(list(codes.values())), return_index=True, return_inverse=True)
    sums = np.bincount(alike, weights=residual)
    held = [np.bincount(each[first] + 1, minlength=int(max(map(np.max, places))) + 2)[1:] for each in places]
    if sum(int((a * b).sum()) for a, b in combinations(held, 2)) > _MANY_PAIRS:
        return 0.0, "too many pairs share a donor in different dimensions: their covariance is left out"
    sides = [
        pd.DataFrame({"donor": each[first], "at": np.arange(len(first))}).query("donor >= 0")
        for each in places
    ]
    found = pd.concat([a.merge(b, on="donor")[["at_x", "at_y"]] for a, b in combinations(sides, 2)])
    pairs = np.unique(np.sort(found.to_numpy(dtype=np.intp), axis=1), axis=0)
    for each in codes.values():
        of_pair = each[first][pairs]
        pairs = pairs[of_pair[:, 0] != of_pair[:, 1]]
    return float(2 * (sums[pairs[:, 0]] * sums[pairs[:, 1]]).sum() / len(residual) ** 2), ""


def _one_way(residual: Floats, coded: Codes) -> float:
    """G/(G-1) * sum over clusters of (sum of residuals)^2 / n^2; singletons give s^2/n."""
    sums = np.bincount(coded, weights=residual)
    clusters = len(sums)
    return float(clusters / (clusters - 1) * (sums**2).sum() / len(residual) ** 2)
