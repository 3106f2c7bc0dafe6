"""An interval from resampled donors and targets: a cross-check of the two-way clustered one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy import sparse

from analyses.statistics.clusters import mean_variance
from analyses.statistics.labels import (
    Codes,
    Labels,
    coded,
    columns,
    in_dimensions,
    intersection,
    more_than_one,
    sizes,
)
from analyses.statistics.samples import Floats, Mask, Values, all_equal, scaled, usable
from analyses.wording import count, plural

_WORK = 20_000_000  # draws times cells: above it fewer draws are made
_CHUNK = 1_000_000  # numbers held at once
_FEWEST_DRAWS = 199


@dataclass(frozen=True)
class Bootstrap:
    """The mean of n values with its studentised bootstrap interval and two-sided p. `se` is the sd of the
    resampled means, which is too large by design: the noise of single values enters it up to three times.
    What could not be computed is None, and then `note` says why."""

    n: int
    estimate: float | None
    clusters: dict[str, int]
    draws: int
    confidence: float
    method: str
    note: str
    se: float | None = None
    p: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None


def two_way(
    values: Values,
    donors: Mapping[str, Labels] | None,
    target: Labels | None,
    draws: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Bootstrap:
    """Donors and targets are drawn with replacement, each dimension for itself, and a value counts as often
    as the product of how often each of its clusters was drawn (the pigeonhole bootstrap).

    donors: a label per value, by dimension; a donor that stands in two dimensions is drawn apart in each.
    Without any label the values themselves are drawn. The percentiles of the means would be conservative:
    with few values in each cell their variance is too large by up to twice that of the noise. So t = (mean of
    the draw - mean) / clustered se of the draw is taken, and the interval is mean - t se, by the quantiles of
    t; p is twice the smaller share of t beyond that of the mean, with (b + 1) / (draws + 1). Work is bounded:
    with many clusters there are fewer draws, with more than 100,000 none, as the note says: a bootstrap is a
    check of what few clusters do. Undefined values are left out and counted. Raises ValueError where labels
    and values differ in length, or draws < 199.

    Source: McCullagh (2000), "Resampling and exchangeable arrays"; Owen (2007), "The pigeonhole bootstrap";
    studentised, Davison and Hinkley (1997), section 5.2.
    """
    if draws < _FEWEST_DRAWS:
        raise ValueError(f"draws: expected {_FEWEST_DRAWS} or more, got {draws}")
    every, kept, notes = usable(values)
    codes, remarks = coded(columns(in_dimensions(donors, target), len(every), kept))
    x, unit = scaled(every[kept])
    notes += remarks
    several = more_than_one(codes)
    numbers = sizes(codes)
    n = len(x)
    mean = float(x.mean()) if n else None

    def without(why: str) -> Bootstrap:
        told = None if mean is None else mean * unit
        return Bootstrap(n, told, numbers, 0, confidence, "none", "; ".join([*notes, why]))

    if n < 3:
        return without(f"{plural(n, 'value')}: fewer than 3, no interval")
    assert mean is not None
    if all_equal(x):
        return without("all values are equal, no interval")
    if codes and not several:
        return without("every value belongs to the same clusters, no interval")
    if min(sizes(several).values(), default=n) < 3:
        return without("two clusters in one dimension: fewer than 3 to draw from, no interval")
    variance = mean_variance(x - mean, several)[0]
    if variance <= 0:
        return without("the values cancel out within every cluster, no interval")
    drawn = several or {"value": np.arange(n)}
    work = max(sizes(drawn).values())
    if len(drawn) == 2:
        one, other = drawn.values()
        cells: _Crossed | _Cells = _Crossed.of(x - mean, one, other)
    else:
        cells = _Cells.of(x - mean, drawn)
        work = max(work, cells.number)
    if work > _WORK // _FEWEST_DRAWS:
        return without(f"{count(work)} clusters, more than a bootstrap is made for: no interval")
    made = min(draws, _WORK // work)
    if made < draws:
        notes.append(f"{count(made)} draws, for so many clusters")
    rng = np.random.default_rng(seed)
    step = max(1, _CHUNK // work)
    parts = [cells.draw(min(step, made - start), rng) for start in range(0, made, step)]
    means, ts = (np.concatenate(each) for each in zip(*parts, strict=True))
    ts = ts[np.isfinite(ts)]
    if len(ts) < made:
        notes.append(f"{plural(made - len(ts), 'draw')} without spread left out")
    if len(ts) < _FEWEST_DRAWS // 2:
        return without("most draws have no spread, no interval")
    se = float(np.sqrt(variance))
    tail = (1 - confidence) / 2
    lower, upper = (float(np.quantile(ts, at)) for at in (tail, 1 - tail))
    t = mean / se
    beyond = min(int((ts >= t).sum()), int((ts <= t).sum()))
    return Bootstrap(
        n=n,
        estimate=mean * unit,
        clusters=numbers,
        draws=len(ts),
        se=float(means.std(ddof=1)) * unit,
        p=min(1.0, 2 * (beyond + 1) / (len(ts) + 1)),
        ci_low=(mean - upper * se) * unit,
        ci_high=(mean - lower * se) * unit,
        confidence=confidence,
        method=f"studentised bootstrap of {' x '.join(drawn)}",
        note="; ".join(notes),
    )


@dataclass(frozen=True)
class _Crossed:
    """Values that sum to 0 by two dimensions: sums and counts of the cells as matrices, so that what a draw
    comes to is a product of matrices and no cell is weighted by itself."""

    sums: sparse.csr_array | Floats
    counts: sparse.csr_array | Floats

    @staticmethod
    def of(x: Floats, first: Codes, second: Codes) -> _Crossed:
        shape = (int(first.max()) + 1, int(second.max()) + 1)
        sums, counts = (
            sparse.coo_array((values, (first, second)), shape=shape).tocsr()
            for values in (x, np.ones(len(x)))
        )
        if shape[0] * shape[1] <= 4 * counts.nnz:
            return _Crossed(sums.toarray(), counts.toarray())
        return _Crossed(sums, counts)

    def draw(self, draws: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
        """The means of the draws, and the t of each; NaN where a draw has no spread."""
        rows, others = (_times_drawn(number, draws, rng) for number in self.sums.shape)

        def weighted(cells: sparse.csr_array | Floats) -> Floats:
            return np.asarray(np.einsum("ij,ij->i", rows, _times(cells, others)))

        sums_by_row, counts_by_row = _times(self.sums, others), _times(self.counts, others)
        sums_by_other, counts_by_other = _times(self.sums.T, rows), _times(self.counts.T, rows)
        size = np.einsum("ij,ij->i", rows, counts_by_row)
        drawn = size > 0
        size = np.where(drawn, size, 1.0)
        means = np.einsum("ij,ij->i", rows, sums_by_row) / size
        by_row = (rows * (sums_by_row - means[:, None] * counts_by_row) ** 2).sum(axis=1)
        by_other = (others * (sums_by_other - means[:, None] * counts_by_other) ** 2).sum(axis=1)
        by_cell = (
            weighted(self.sums * self.sums)
            - 2 * means * weighted(self.sums * self.counts)
            + means**2 * weighted(self.counts * self.counts)
        )
        held = weighted(self.counts > 0)
        ways = [_factor(each.sum(axis=1)) * part for each, part in ((rows, by_row), (others, by_other))]
        total = (ways[0] + ways[1] - _factor(held) * by_cell) / size**2
        return _studentised(means, total, np.maximum(*ways) / size**2, drawn)


@dataclass(frozen=True)
class _Cells:
    """Values by cell, the distinct combination of clusters, for any number of dimensions. codes: of the
    cells, by dimension; terms: for each set of dimensions its sign, the dimensions, the codes of its clusters
    in them, and which cells each of its clusters has."""

    codes: tuple[Codes, ...]
    numbers: tuple[int, ...]
    sums: Floats
    counts: Floats
    terms: tuple[tuple[int, tuple[int, ...], tuple[Codes, ...], sparse.csr_array], ...]

    @property
    def number(self) -> int:
        return len(self.sums)

    @staticmethod
    def of(x: Floats, codes: Mapping[str, Codes]) -> _Cells:
        """x: values that sum to 0."""
        cell = intersection(list(codes.values()))
        number = int(cell.max()) + 1
        first = np.empty(number, dtype=np.intp)
        first[cell[::-1]] = np.arange(len(x))[::-1]
        of_cell = tuple(each[first] for each in codes.values())
        terms = []
        for size in range(1, len(of_cell) + 1):
            for chosen in combinations(range(len(of_cell)), size):
                joint = intersection([of_cell[i] for i in chosen])
                clusters = int(joint.max()) + 1
                at = np.empty(clusters, dtype=np.intp)
                at[joint] = np.arange(number)
                places = tuple(of_cell[i][at] for i in chosen)
                belongs = sparse.csr_array(
                    (np.ones(number), (joint, np.arange(number))), shape=(clusters, number)
                )
                terms.append((1 if size % 2 else -1, chosen, places, belongs))
        return _Cells(
            codes=of_cell,
            numbers=tuple(int(each.max()) + 1 for each in codes.values()),
            sums=np.bincount(cell, weights=x).astype(np.float64),
            counts=np.bincount(cell).astype(np.float64),
            terms=tuple(terms),
        )

    def draw(self, draws: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
        """The means of the draws, and the t of each; NaN where a draw has no spread."""
        weights = [_times_drawn(number, draws, rng) for number in self.numbers]
        at_cells = [weight[:, code] for weight, code in zip(weights, self.codes, strict=True)]
        product = np.prod(at_cells, axis=0)
        size = product @ self.counts
        drawn = size > 0
        size = np.where(drawn, size, 1.0)
        means = product @ self.sums / size
        residual = self.sums - means[:, None] * self.counts
        total, largest = np.zeros(draws), np.zeros(draws)
        for sign, chosen, places, belongs in self.terms:
            others = [at_cells[i] for i in range(len(at_cells)) if i not in chosen]
            inside = residual * np.prod(others, axis=0) if others else residual
            sums = inside if belongs.shape[0] == self.number else (belongs @ inside.T).T
            if belongs.shape[0] == self.number:
                copies = np.prod([at_cells[i] for i in chosen], axis=0)
            else:
                copies = np.prod([weights[i][:, at] for i, at in zip(chosen, places, strict=True)], axis=0)
            part = _factor(copies.sum(axis=1)) * (copies * sums**2).sum(axis=1) / size**2
            total += sign * part
            if len(chosen) == 1:
                largest = np.maximum(largest, part)
        return _studentised(means, total, largest, drawn)


def _studentised(means: Floats, total: Floats, largest: Floats, drawn: Mask) -> tuple[Floats, Floats]:
    """The means that there are, and each over its clustered standard error, as `clustered_mean` has it."""
    variance = np.where(total > 1e-12 * largest, total, largest)
    spread = np.sqrt(np.maximum(variance, 0))
    ts = np.divide(means, spread, out=np.full(len(means), np.nan), where=drawn & (spread > 0))
    return means[drawn], ts


def _factor(clusters: Floats) -> Floats:
    return np.asarray(clusters / np.maximum(clusters - 1, 1))


def _times(cells: sparse.csr_array | Floats, weights: Floats) -> Floats:
    """(draws, rows) of cells (rows, columns) times weights (draws, columns)."""
    return np.asarray((cells @ weights.T).T)


def _times_drawn(number: int, draws: int, rng: np.random.Generator) -> Floats:
    """How often each of `number` clusters comes up in as many draws with replacement, for each draw."""
    chosen = rng.integers(number, size=(draws, number)) + np.arange(draws)[:, None] * number
    return np.bincount(chosen.ravel(), minlength=draws * number).reshape(draws, number).astype(np.float64)
