"""A test by what the differences would be with other signs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy import sparse, stats

from analyses.statistics.labels import (
    Codes,
    Labels,
    coded,
    columns,
    intersection,
    more_than_one,
    noun,
    sizes,
)
from analyses.statistics.samples import Floats, Values, scaled, usable
from analyses.wording import count, plural

_MANY = 5_000  # independent units above which the normal limit stands for the draws
_WORK = 500_000_000  # draws times cells: above it fewer draws are made
_FEWEST_DRAWS = 199
_CHUNK = 2_000_000  # numbers held at once
_TIE = 1e-9


@dataclass(frozen=True)
class SignFlip:
    """The sign-flip test of a mean of n values over `units` whose signs flip together. `p` is two-sided;
    `draws` is the number of sign patterns, all of them where `exact`, 0 for the normal limit. `least_p` is
    the smallest p that so many patterns can give. What could not be computed is None, and then `note` says
    why."""

    n: int
    estimate: float | None
    units: int
    draws: int
    exact: bool
    method: str
    note: str
    p: float | None = None
    least_p: float | None = None


def sign_flip(
    differences: Values,
    clusters: Labels | Mapping[str, Labels] | None = None,
    draws: int = 10_000,
    seed: int = 0,
) -> SignFlip:
    """Whether the mean differs from 0, by the share of sign patterns with a mean as far from it.

    clusters: labels whose values flip together; or labels by dimension (donor, target). It tests that the
    joint distribution of each unit's values is symmetric about 0. All 2^units patterns are taken where they
    are no more than `draws`; else p = (b + 1) / (draws + 1). Above 5,000 units that flip alone, the normal
    limit of the same distribution stands in.

    With more than one dimension no pattern of signs keeps the dependence of all. The values then flip by the
    dimension with the fewest clusters, and what is compared is the mean over its multiway clustered standard
    error: the restricted wild cluster bootstrap. Undefined values are left out and counted. Raises ValueError
    where labels and values differ in length, or draws < 199.

    Source: Fisher (1935); draws, Phipson and Smyth (2010); several dimensions, MacKinnon, Nielsen and Webb
    (2021), "Wild bootstrap and asymptotic inference with multiway clustering".
    """
    if draws < _FEWEST_DRAWS:
        raise ValueError(f"draws: expected {_FEWEST_DRAWS} or more, got {draws}")
    every, kept, notes = usable(differences)
    named = clusters if isinstance(clusters, Mapping) else {} if clusters is None else {"cluster": clusters}
    codes, remarks = coded(columns(named, len(every), kept))
    x, unit = scaled(every[kept])
    notes += remarks
    several = more_than_one(codes)
    units = min(sizes(several).values(), default=len(x) if not codes else 1)
    estimate = float(x.mean()) * unit if len(x) else None

    def untested(why: str) -> SignFlip:
        return SignFlip(len(x), estimate, units, 0, False, "none", "; ".join([*notes, why]))

    if len(x) < 3:
        return untested(f"{plural(len(x), 'value')}: fewer than 3, no test")
    if not x.any():
        return untested("all values are 0, no test")
    if units < 3:
        return untested(f"{plural(units, 'cluster')}: fewer than 3, no test")
    exact = units <= int(np.log2(draws))
    if len(several) > 1:
        found = _studentised(x, several, draws, seed, exact=exact)
        fewest = min(several, key=lambda name: sizes(several)[name])
        over = " x ".join(noun(name) for name in several)
        method = f"signs flip by {noun(fewest)}, studentised by {over}"
    else:
        sums = np.bincount(next(iter(several.values())), weights=x).astype(np.float64) if several else x
        found = _of_sums(sums, draws, seed, exact=exact)
        method = "signs flip by " + (noun(next(iter(several))) if several else "value, independence assumed")
    p, made = found
    if made == 0:
        method += ", normal limit"
    elif not exact and made < draws:
        notes.append(f"{count(made)} draws, for so many clusters")
    least = 2.0 ** (1 - units) if exact else 1 / (made + 1) if made else None
    return SignFlip(
        n=len(x),
        estimate=estimate,
        units=units,
        draws=made,
        exact=exact,
        p=p,
        least_p=least,
        method=method,
        note="; ".join(notes),
    )


def _signs(units: int, draws: int, rng: np.random.Generator | None, start: int) -> Floats:
    """(draws, units) of -1 and 1: at random, or without a generator the patterns from the start-th on."""
    if rng is None:
        numbered = np.arange(start, start + draws)[:, None] >> np.arange(units)[None, :]
        patterns = (numbered & 1).astype(np.uint8)
    else:
        bits = np.frombuffer(rng.bytes((draws * units + 7) // 8), dtype=np.uint8)
        patterns = np.unpackbits(bits)[: draws * units].reshape(draws, units)
    return np.asarray(1.0 - 2.0 * patterns, dtype=np.float64)


def _of_sums(sums: Floats, draws: int, seed: int, *, exact: bool) -> tuple[float, int]:
    """p of the sum of independent units, and how many patterns it took (0: the normal limit)."""
    observed = abs(float(sums.sum()))
    if len(sums) > _MANY:
        return float(2 * stats.norm.sf(observed / float(np.sqrt((sums**2).sum())))), 0
    bar = observed - _TIE * float(np.abs(sums).sum())
    total = 2 ** len(sums) if exact else draws
    rng = None if exact else np.random.default_rng(seed)
    step = max(1, _CHUNK // len(sums))
    as_far = 0
    for start in range(0, total, step):
        signs = _signs(len(sums), min(step, total - start), rng, start)
        as_far += int((np.abs(signs @ sums) >= bar).sum())
    return (as_far / total if exact else (as_far + 1) / (total + 1)), total


def _studentised(
    x: Floats, codes: Mapping[str, Codes], draws: int, seed: int, *, exact: bool
) -> tuple[float, int]:
    """p of the mean over its multiway clustered standard error, flipped by the fewest clusters."""
    numbers = sizes(codes)
    fewest = min(codes, key=lambda name: numbers[name])
    groups = [_Group.of(x, codes, chosen, fewest) for chosen in _subsets(list(codes))]
    by_unit = np.bincount(codes[fewest], weights=x)
    singles = [i for i, chosen in enumerate(_subsets(list(codes))) if len(chosen) == 1]
    width = max(group.width for group in groups)
    total = (
        2 ** len(by_unit)
        if exact
        else int(max(_FEWEST_DRAWS, min(draws, _WORK // max(group.work for group in groups))))
    )
    rng = None if exact else np.random.default_rng(seed)
    step = max(1, _CHUNK // width)
    n = len(x)

    def t_of(signs: Floats) -> Floats:
        means = signs @ by_unit / n
        ways = np.stack([group.variance(signs, means) for group in groups])
        variance = np.maximum(ways.sum(axis=0), 0)
        largest = ways[singles].max(axis=0)
        variance = np.where(variance > 1e-12 * largest, variance, largest)
        # A pattern without any spread is as far from 0 as can be, unless its mean is 0.
        far = np.where(np.abs(means) > 0, np.inf, 0.0)
        return np.asarray(np.divide(np.abs(means), np.sqrt(variance), out=far, where=variance > 0))

    bar = float(t_of(np.ones((1, len(by_unit))))[0]) * (1 - _TIE)
    as_far = 0
    for start in range(0, total, step):
        signs = _signs(len(by_unit), min(step, total - start), rng, start)
        as_far += int((t_of(signs) >= bar).sum())
    return (as_far / total if exact else (as_far + 1) / (total + 1)), total


def _subsets(names: list[str]) -> list[tuple[str, ...]]:
    return [chosen for size in range(1, len(names) + 1) for chosen in combinations(names, size)]


@dataclass(frozen=True)
class _Group:
    """One term of the multiway variance, as a function of the signs of the units. Where its clusters lie
    within the units the signs drop out of the squares, and only what depends on the mean is a sum by unit.
    Else the sums of its clusters follow from `sums` (units, clusters) or, with few units, their squares from
    `products` (units, units)."""

    factor: float
    n: int
    counts: Floats
    squares: float
    cross: Floats  # by unit: the sum over its clusters of count times sum
    sums: sparse.csr_array | None
    products: Floats | None

    @property
    def width(self) -> int:
        """Numbers held for each pattern of signs."""
        return len(self.cross) if self.sums is None else len(self.counts)

    @property
    def work(self) -> int:
        """Steps for each pattern of signs."""
        return len(self.cross) if self.sums is None else int(self.sums.nnz)

    @staticmethod
    def of(x: Floats, codes: Mapping[str, Codes], chosen: tuple[str, ...], fewest: str) -> _Group:
        mine, unit = intersection([codes[name] for name in chosen]), codes[fewest]
        clusters, units = int(mine.max()) + 1, int(unit.max()) + 1
        counts = np.bincount(mine).astype(np.float64)
        factor = (1 if len(chosen) % 2 else -1) * clusters / (clusters - 1)
        sums = sparse.coo_array((x, (unit, mine)), shape=(units, clusters)).tocsr()
        cross = np.asarray(sums @ counts)
        if fewest in chosen:
            return _Group(factor, len(x), counts, float((sums.data**2).sum()), cross, None, None)
        if units**2 <= sums.nnz:
            return _Group(factor, len(x), counts, 0.0, cross, None, (sums @ sums.T).toarray())
        return _Group(factor, len(x), counts, 0.0, cross, sums, None)

    def variance(self, signs: Floats, means: Floats) -> Floats:
        """Its part of the variance of the mean, for each pattern of signs."""
        if self.sums is not None:
            residual = np.asarray((self.sums.T @ signs.T).T) - means[:, None] * self.counts
            squares = np.einsum("ij,ij->i", residual, residual)
        else:
            own = self.squares
            if self.products is not None:
                own = np.einsum("ij,ij->i", signs @ self.products, signs)
            squares = own - 2 * means * (signs @ self.cross) + means**2 * float(self.counts @ self.counts)
        return np.asarray(self.factor * np.maximum(squares, 0) / self.n**2)
