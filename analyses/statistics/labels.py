"""Labels of donors and targets as codes: what every clustered method starts from."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analyses.statistics.samples import Mask
from analyses.wording import plural

Codes = NDArray[np.intp]
Labels = Sequence[Hashable] | NDArray[Any] | pd.Series
TARGET = "target"


def in_dimensions(donor: Labels | Mapping[str, Labels] | None, target: Labels | None) -> dict[str, Labels]:
    """All labels by the name of their dimension: that of a single column of donors is `donor`."""
    labels: dict[str, Labels] = {}
    if donor is not None:
        labels |= donor if isinstance(donor, Mapping) else {"donor": donor}
    if target is not None:
        labels[TARGET] = target
    return labels


def column(given: Labels) -> NDArray[Any]:
    """One label per value, as an array that pandas can code; tuples stay whole."""
    if isinstance(given, pd.Series):
        if isinstance(given.dtype, np.dtype):
            return given.to_numpy()
        # pandas' own missing value has no truth value, not even whether it equals another.
        return given.astype(object).where(given.notna(), None).to_numpy()
    if isinstance(given, np.ndarray):
        return given
    found = np.empty(len(given), dtype=object)
    found[:] = list(given)
    return found


def columns(labels: Mapping[str, Labels], n: int, kept: Mask | None = None) -> dict[str, NDArray[Any]]:
    """The labels of the values that are kept, by dimension, donors with the same labels once. Raises
    ValueError where a dimension has not one label for each of n values."""
    found: dict[str, NDArray[Any]] = {}
    for name, given in labels.items():
        whole = column(given)
        if len(whole) != n:
            raise ValueError(f"{name}: expected {n} labels, one per value, got {len(whole)}")
        mine = whole if kept is None or kept.all() else whole[kept]
        if name == TARGET or not any(_same(mine, other) for other in found.values()):
            found[name] = mine
    return found


def coded(labels: Mapping[str, NDArray[Any]]) -> tuple[dict[str, Codes], list[str]]:
    """The codes 0..G-1 of each dimension that has labels, and what is to be noted: a value without a label is
    a cluster of its own, and one cluster says nothing about others."""
    codes: dict[str, Codes] = {}
    notes: list[str] = []
    for name, given in labels.items():
        found, remark = _codes(name, given)
        notes += [remark] if remark else []
        if found is not None:
            codes[name] = found
    return codes, notes


def sizes(codes: Mapping[str, Codes]) -> dict[str, int]:
    """The number of clusters of each dimension."""
    return {name: int(each.max()) + 1 if len(each) else 0 for name, each in codes.items()}


def more_than_one(codes: Mapping[str, Codes]) -> dict[str, Codes]:
    """The dimensions that have two clusters or more."""
    return {name: codes[name] for name, number in sizes(codes).items() if number > 1}


def intersection(dimensions: Sequence[Codes]) -> Codes:
    """Codes of the distinct combinations."""
    first, *others = dimensions
    for other in others:
        first = pd.factorize(first * (int(other.max()) + 1) + other)[0]
    return first


def noun(name: str, number: int = 1) -> str:
    """What one cluster of a dimension is called, or several: `donor:l1` -> "donor of l1"."""
    kind, _, role = name.partition(":")
    return kind + ("" if number == 1 else "s") + (f" of {role}" if role else "")


def _same(one: NDArray[Any], other: NDArray[Any]) -> bool:
    """Whether two columns hold the same labels; most columns that differ do so near their start."""
    if any(a is not b and a != b for a, b in zip(one[:50], other[:50], strict=True)):
        return False
    return list(one) == list(other)


def _codes(name: str, labels: NDArray[Any]) -> tuple[Codes | None, str]:
    called = noun(name)
    found, uniques = pd.factorize(labels)
    lone = np.flatnonzero(found < 0)
    if len(lone) == len(labels):
        return None, f"no {called} is recorded: not clustered by {called}" if len(labels) else ""
    if not len(lone):
        one = f"one {called} only: says nothing about other {noun(name, 2)}"
        return found, "" if len(uniques) > 1 else one
    found[lone] = len(uniques) + np.arange(len(lone))
    return found, f"{plural(len(lone), 'value')} without a {called}, each taken as its own cluster"
