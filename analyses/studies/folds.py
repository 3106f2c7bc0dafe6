"""Which items predict which: folds that share neither donor nor target, and a null distribution that keeps
both."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from analyses.statistics.clusters import Floats

Codes = NDArray[np.intp]
Bools = NDArray[np.bool_]
_ROUNDS = 50


def blocks(
    donor: Codes, target: Codes, folds: int, random: np.random.Generator
) -> Iterator[tuple[Bools, Bools]]:
    """(train, test) over items. Donors and targets are dealt into `folds` parts each, by size; a test block
    is one part of both, its training items are those that share neither part. So every item is tested once,
    by a fit that has seen neither its donor nor its target. A dimension of one cluster is not split."""
    parts = [_dealt(codes, folds, random) for codes in (donor, target)]
    for i in np.unique(parts[0]):
        for j in np.unique(parts[1]):
            test = (parts[0] == i) & (parts[1] == j)
            train = np.ones(len(donor), dtype=bool)
            for part, at in zip(parts, (i, j), strict=True):
                if part.max() > 0:
                    train &= part != at
            if test.any() and train.any():
                yield train, test


def _dealt(codes: Codes, folds: int, random: np.random.Generator) -> Codes:
    """The part of each item: clusters in random order, each put where there are fewest items so far."""
    sizes = np.bincount(codes)
    if len(sizes) < 2:
        return np.zeros(len(codes), dtype=np.intp)
    held = np.zeros(min(folds, len(sizes)))
    part = np.empty(len(sizes), dtype=np.intp)
    for cluster in random.permutation(len(sizes)):
        part[cluster] = int(held.argmin())
        held[part[cluster]] += sizes[cluster]
    found: Codes = part[codes]
    return found


def shuffled(x: Floats, donor: Codes, target: Codes, draws: int, random: np.random.Generator) -> Floats:
    """Features without their tie to the labels, (draws, n, features). donor, target: 0..G-1, each there.

    Each feature is a level of the donor, a level of the target and a rest, by least squares; the levels of
    donors are permuted among donors, those of targets among targets, the rests among items, all features of
    a draw alike. Labels stay where they are. So features and labels keep what they share with the items of
    the same donor or target, and with 21 high items of 15 donors the null does not take them for 21
    independent ones.
    """
    parts = [_levels(x[:, place], donor, target) for place in range(x.shape[1])]
    of_donor = np.stack([part[0] for part in parts], axis=1)
    of_target = np.stack([part[1] for part in parts], axis=1)
    rest = np.stack([part[2] for part in parts], axis=1)
    found = np.empty((draws, *x.shape))
    for draw in range(draws):
        found[draw] = (
            of_donor[random.permutation(len(of_donor))][donor]
            + of_target[random.permutation(len(of_target))][target]
            + rest[random.permutation(len(rest))]
        )
    return found


def _levels(values: Floats, donor: Codes, target: Codes) -> tuple[Floats, Floats, Floats]:
    """Levels of donors and of targets, and what is left in each item. What a donor or a target says alone is
    its level; else the dimension with fewer clusters comes first."""
    sizes = [np.bincount(codes) for codes in (donor, target)]
    codes = (donor, target)
    levels: list[Floats] = [np.zeros(len(size)) for size in sizes]
    order = sorted((0, 1), key=lambda side: len(sizes[side]))
    for side in order:
        means = np.bincount(codes[side], weights=values) / sizes[side]
        if np.allclose(means[codes[side]], values, rtol=1e-9, atol=1e-12):
            levels[side] = means
            return levels[0], levels[1], np.zeros(len(values))
    for _ in range(_ROUNDS):
        before = [level.copy() for level in levels]
        for side in order:
            left = values - levels[1 - side][codes[1 - side]]
            levels[side] = np.bincount(codes[side], weights=left) / sizes[side]
        if max(np.abs(now - then).max() for now, then in zip(levels, before, strict=True)) < 1e-9:
            break
    return levels[0], levels[1], values - levels[0][donor] - levels[1][target]
