"""A mixed model with crossed random intercepts: a cross-check of the two-way clustered mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, optimize, sparse, stats

from analyses.statistics.labels import (
    Codes,
    Labels,
    coded,
    columns,
    in_dimensions,
    more_than_one,
    noun,
    sizes,
)
from analyses.statistics.samples import Floats, Values, all_equal, scaled, usable
from analyses.wording import count, listed, plural

_MOST_CLUSTERS = 1_000  # in all dimensions but the largest: a dense matrix of that order is factored
_LARGEST_SD = 1e150
_STARTS = (0.4, 1.5)  # square roots of ratios to the residual variance
_LARGEST_ROOT = 1e4
_SMALL = 1e-4  # a ratio below it is 0 where the likelihood does not mind
_NOTHING = 1e-5  # a residual variance below it, in units of that of the values, is none
_STEP = 0.01  # of the logarithm of a variance


@dataclass(frozen=True)
class CrossedMean:
    """The mean of n values by a model with a random intercept for each cluster of each dimension.

    `components` are the variances between the clusters of each dimension, `residual` that within;
    `shares` those of each in the whole variance (the intra-cluster correlation of each dimension). What could
    not be computed is None, and then `note` says why.
    """

    n: int
    clusters: dict[str, int]
    confidence: float
    method: str
    note: str
    estimate: float | None = None
    se: float | None = None
    df: float | None = None
    t: float | None = None
    p: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    components: dict[str, float] | None = None
    shares: dict[str, float] | None = None
    residual: float | None = None


def crossed(
    values: Values,
    donors: Mapping[str, Labels] | None,
    target: Labels | None,
    max_rows: int = 10_000,
    confidence: float = 0.95,
) -> CrossedMean:
    """Mean of y = mu + sum of a normal intercept for each cluster of each dimension + e, by REML.

    donors: a label per value, by dimension. The t test and interval are by Satterthwaite's df, from the
    curvature of the likelihood in the variances, as in lmerTest; where that is not to be had, by the fewest
    clusters less 1, which the note says. A dimension in which every value is its own cluster is part of the
    residual. Skipped with a note: above `max_rows`, above 1,000 clusters beside the largest dimension, with
    fewer than 3 clusters, and where the likelihood has no maximum. Undefined values are left out and counted.
    Raises ValueError where labels and values differ in length.

    Source: Patterson and Thompson (1971); the profiled likelihood, Bates, Maechler, Bolker and Walker (2015),
    section 3.4; Satterthwaite (1946); Kuznetsova, Brockhoff and Christensen (2017).
    """
    every, kept, notes = usable(values)
    codes, remarks = coded(columns(in_dimensions(donors, target), len(every), kept))
    x, unit = scaled(every[kept])
    notes += remarks
    numbers = sizes(codes)
    n = len(x)

    def without(why: str) -> CrossedMean:
        return CrossedMean(n, numbers, confidence, "none", "; ".join([*notes, why]))

    usable_codes = {name: each for name, each in more_than_one(codes).items() if numbers[name] < n}
    own = [noun(name) for name, number in numbers.items() if number == n > 1]
    if own:
        notes.append(f"every value has its own {listed(own)}: part of the residual")
    if n < 3:
        return without(f"{plural(n, 'value')}: fewer than 3, no model")
    if all_equal(x):
        return without("all values are equal, no model")
    if n > max_rows:
        return without(f"{count(n)} values: a mixed model is made for {count(max_rows)} at most")
    few = [name for name, number in sizes(usable_codes).items() if number < 3]
    if few:
        return without(f"fewer than 3 clusters ({listed([noun(name) for name in few])}): no model")
    if not usable_codes:
        return without("no dimension has clusters of several values: no model")
    largest = max(usable_codes, key=lambda name: numbers[name])
    beside = sum(numbers[name] for name in usable_codes if name != largest)
    if beside > _MOST_CLUSTERS:
        return without(f"{count(beside)} clusters beside the {noun(largest, 2)}: too many for a mixed model")
    spread = float(x.std())
    model = _Model.of((x - x.mean()) / spread, usable_codes, largest)
    ratios = _fit(model, len(usable_codes))
    if ratios is None:
        return without("the likelihood has no maximum: no model")
    mean, se, variance = model.solve(ratios)
    if variance < _NOTHING:
        return without("the clusters explain every value: no variance is left within them, no model")
    df = _satterthwaite(model, ratios, variance)
    if df is None:
        df = float(min(sizes(usable_codes).values()) - 1)
        notes.append("no Satterthwaite df: the fewest clusters less 1")
    none = [noun(name, 2) for name, ratio in zip(usable_codes, ratios, strict=True) if ratio == 0]
    if none:
        notes.append(f"no variance is left between the {listed(none)}")
    estimate = (mean * spread + float(x.mean())) * unit
    se *= spread * unit
    t = estimate / se
    half = float(stats.t.ppf(0.5 + confidence / 2, df)) * se
    whole = 1 + float(ratios.sum())
    root = spread * unit
    components: dict[str, float] | None = None
    if root < _LARGEST_SD:
        components = {
            name: float(ratio) * variance * root**2 for name, ratio in zip(usable_codes, ratios, strict=True)
        }
    else:
        notes.append("the variances are beyond what a number holds")
    return CrossedMean(
        n=n,
        clusters=numbers,
        confidence=confidence,
        method=f"mixed model, random intercepts of {' x '.join(usable_codes)}, REML, Satterthwaite df",
        note="; ".join(notes),
        estimate=estimate,
        se=se,
        df=df,
        t=t,
        p=float(2 * stats.t.sf(abs(t), df)),
        ci_low=estimate - half,
        ci_high=estimate + half,
        components=components,
        shares={name: float(ratio) / whole for name, ratio in zip(usable_codes, ratios, strict=True)},
        residual=None if components is None else variance * root**2,
    )


@dataclass(frozen=True)
class _Model:
    """What the likelihood needs of the values: counts and sums of clusters, and how often those of the other
    dimensions meet those of the largest. Its own block is diagonal and is eliminated, so that what is
    factored has the order of the others. `ratios` are always variances in units of the residual's, in the
    order of the dimensions; the values have mean 0."""

    n: int
    squares: float
    largest: int
    dimension: NDArray[np.intp]  # of each cluster beside the largest dimension
    counts: Floats
    sums: Floats
    counts_beside: Floats
    sums_beside: Floats
    meet: Floats | sparse.csr_array  # (others, largest)
    meet_beside: Floats  # (others, others)

    @staticmethod
    def of(x: Floats, codes: Mapping[str, Codes], largest: str) -> _Model:
        place = list(codes).index(largest)
        main = codes[largest]
        others = {i: each for i, each in enumerate(codes.values()) if i != place}
        offsets = np.cumsum([0, *(int(each.max()) + 1 for each in others.values())])
        shifted = [each + offset for each, offset in zip(others.values(), offsets, strict=False)]
        rows = np.concatenate(shifted) if shifted else np.empty(0, dtype=np.intp)
        many, beside = int(main.max()) + 1, int(offsets[-1])
        n = len(x)
        incidence = sparse.coo_array(
            (np.ones(len(rows)), (np.tile(np.arange(n), len(others)), rows)), shape=(n, beside)
        ).tocsr()
        to_main = sparse.coo_array((np.ones(n), (np.arange(n), main)), shape=(n, many)).tocsr()
        meet = (incidence.T @ to_main).tocsr()
        numbers = np.diff(offsets)
        return _Model(
            n=n,
            squares=float(x @ x),
            largest=place,
            dimension=np.repeat(np.array(list(others), dtype=np.intp), numbers),
            counts=np.bincount(main).astype(np.float64),
            sums=np.bincount(main, weights=x).astype(np.float64),
            counts_beside=np.asarray(incidence.sum(axis=0)),
            sums_beside=np.asarray(incidence.T @ x),
            meet=meet.toarray() if beside * many <= 4 * max(meet.nnz, 10_000) else meet,
            meet_beside=(incidence.T @ incidence).toarray(),
        )

    def parts(self, ratios: Floats) -> tuple[float, float, float, float]:
        """log |V|, 1'V^-1 1, 1'V^-1 y and y'V^-1 y, V in units of the residual variance."""
        own = float(ratios[self.largest])
        shrunk = own / (1 + own * self.counts)
        log_v = float(np.log1p(own * self.counts).sum())
        ones = self.n - float(shrunk @ self.counts**2)
        across = -float(shrunk @ (self.counts * self.sums))
        squares = self.squares - float(shrunk @ self.sums**2)
        if not len(self.dimension):
            return log_v, ones, across, squares
        root = np.sqrt(ratios[self.dimension])
        dense = isinstance(self.meet, np.ndarray)
        weighted = self.meet * shrunk if dense else self.meet @ sparse.diags_array(shrunk)
        product = weighted @ self.meet.T
        twice = product if isinstance(product, np.ndarray) else product.toarray()
        inner = (self.meet_beside - twice) * root[:, None] * root
        inner[np.diag_indices_from(inner)] += 1
        lower = linalg.cholesky(inner, lower=True, overwrite_a=True, check_finite=False)
        sides = np.column_stack(
            [
                root * (self.counts_beside - weighted @ self.counts),
                root * (self.sums_beside - weighted @ self.sums),
            ]
        )
        half = linalg.solve_triangular(lower, sides, lower=True, check_finite=False)
        log_v += 2 * float(np.log(np.diag(lower)).sum())
        taken = half.T @ half
        return log_v, ones - float(taken[0, 0]), across - float(taken[0, 1]), squares - float(taken[1, 1])

    def profiled(self, ratios: Floats) -> float:
        """-2 log restricted likelihood at its best residual variance, but for a constant."""
        log_v, ones, across, squares = self.parts(ratios)
        rest = squares - across**2 / ones
        if not rest > 0:
            return np.inf
        return (self.n - 1) * float(np.log(rest / (self.n - 1))) + log_v + float(np.log(ones))

    def deviance(self, residual: float, ratios: Floats) -> tuple[float, float]:
        """-2 log restricted likelihood, but for a constant, and the log of the variance of the mean."""
        log_v, ones, across, squares = self.parts(ratios)
        rest = squares - across**2 / ones
        log_residual = float(np.log(residual))
        value = (self.n - 1) * log_residual + log_v + float(np.log(ones)) + rest / residual
        return value, log_residual - float(np.log(ones))

    def solve(self, ratios: Floats) -> tuple[float, float, float]:
        """The mean, its standard error and the residual variance."""
        _, ones, across, squares = self.parts(ratios)
        residual = (squares - across**2 / ones) / (self.n - 1)
        return across / ones, float(np.sqrt(residual / ones)), residual


def _fit(model: _Model, dimensions: int) -> Floats | None:
    """The ratios at the maximum of the restricted likelihood; None where there is none."""
    best: tuple[float, Floats] | None = None
    # In the square roots the likelihood is smooth at 0, but flat there too, so that the search starts above.
    for start in _STARTS:
        found = optimize.minimize(
            lambda roots: model.profiled(roots**2),
            np.full(dimensions, start),
            method="L-BFGS-B",
            bounds=[(0.0, _LARGEST_ROOT)] * dimensions,
        )
        if np.isfinite(found.fun) and (best is None or found.fun < best[0] - 1e-9):
            best = float(found.fun), np.asarray(found.x) ** 2
    if best is None or (best[1] >= 0.99 * _LARGEST_ROOT**2).any():
        return None
    value, ratios = best
    for place in range(dimensions):
        without = np.where(np.arange(dimensions) == place, 0.0, ratios)
        if ratios[place] < _SMALL and model.profiled(without) <= value + 1e-6:
            ratios = without
    return ratios


def _satterthwaite(model: _Model, ratios: Floats, residual: float) -> float | None:
    """df = 2 / Var(log of the mean's variance), from the curvature of the deviance in the logarithms of the
    variances that are not 0; None where it is not positive definite."""
    alive = np.flatnonzero(ratios > 0)
    middle = np.log(np.concatenate([[residual], ratios[alive] * residual]))

    def at(logs: Floats) -> tuple[float, float]:
        sizes_of = np.exp(logs)
        now = np.zeros(len(ratios))
        now[alive] = sizes_of[1:] / sizes_of[0]
        return model.deviance(float(sizes_of[0]), now)

    count_of = len(middle)
    steps = np.eye(count_of) * _STEP
    gradient = np.array([(at(middle + s)[1] - at(middle - s)[1]) / (2 * _STEP) for s in steps])
    curvature = np.empty((count_of, count_of))
    for i in range(count_of):
        for j in range(i, count_of):
            a, b = steps[i], steps[j]
            four = (
                at(middle + a + b)[0] - at(middle + a - b)[0] - at(middle - a + b)[0] + at(middle - a - b)[0]
            )
            curvature[i, j] = curvature[j, i] = four / (4 * _STEP**2)
    try:
        lower = linalg.cholesky(curvature, lower=True)
    except linalg.LinAlgError:
        return None
    half = linalg.solve_triangular(lower, gradient, lower=True)
    df = 1 / float(half @ half)
    return df if np.isfinite(df) and df > 0 else None
