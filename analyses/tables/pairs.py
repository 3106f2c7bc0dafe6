"""Which trials of two conditions are compared: those of the same item and repeat that both have a value, and
which donors were read for them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analyses.statistics.clusters import ClusteredMean, Floats, clustered_mean
from analyses.tables.by_condition import Positions
from analyses.tables.lookup import KEY as KEY
from analyses.tables.lookup import OWN, Lookup
from analyses.wording import count, plural

OTHER = "other_donor"
DIFFERENCE, EQUIVALENCE = "difference", "equivalence"
_CONFIDENCE = 0.95
_NO_DONOR = (None, "", "self")


@dataclass(frozen=True)
class Prompts:
    """The prompts of some pairs as numbers: equal ones for the same prompt, in whatever dimension a donor
    stands; NaN for none. A dimension without any donor is left out."""

    donors: Mapping[str, Floats]
    target: Floats

    @staticmethod
    def of(donors: Mapping[str, NDArray[Any]], target: NDArray[Any] | pd.Series) -> Prompts:
        """Those of labels, by dimension; numbers of one table, such as those of a lookup, stay as they
        are."""
        given = (*donors.values(), np.asarray(target))
        found: dict[str, Floats] = {}
        if all(each.dtype == np.float64 for each in given):
            held = {name: numbers for name, numbers in donors.items() if not np.isnan(numbers).all()}
            return Prompts(held, given[-1])
        if donors:
            together = pd.factorize(np.concatenate([each.astype(object) for each in donors.values()]))[0]
            apart = np.split(together, len(donors))
            found = {name: _numbers(codes) for name, codes in zip(donors, apart, strict=True)}
        held = {name: numbers for name, numbers in found.items() if not np.isnan(numbers).all()}
        return Prompts(held, _numbers(pd.factorize(target)[0]))


def _numbers(codes: NDArray[np.intp]) -> Floats:
    return np.where(codes < 0, np.nan, codes.astype(np.float64))


@dataclass(frozen=True)
class Paired:
    """Values of `first` and `second` on the trials that they share, row by row, with the target of each and
    the donors that were read for it, by dimension: `donor`, `other_donor`, `donor:ROLE`.

    Donors and targets are numbers, the same for the same donor in whatever dimension, NaN where none is
    recorded. `n_first` and `n_second` count the valid trials of each side that have a value; `dropped` is a
    sentence on those that found no partner, empty where every trial did. `rows` are the places of both sides
    in the table, where it is known.
    """

    first: Floats
    second: Floats
    donors: Mapping[str, pd.Series]
    target: pd.Series
    n_first: int
    n_second: int
    dropped: str
    rows: tuple[Positions, Positions] | None = None

    @property
    def difference(self) -> Floats:
        """first - second."""
        return self.first - self.second

    @cached_property
    def prompts(self) -> Prompts:
        """The donors and targets as numbers, as tests take them."""
        return Prompts.of({name: labels.to_numpy() for name, labels in self.donors.items()}, self.target)

    def test(self, confidence: float = _CONFIDENCE) -> ClusteredMean:
        """The cluster-robust test of the differences. Prompts without donors have no clusters of them."""
        if confidence == _CONFIDENCE:
            return self._usual_test  # that of contrasts and gates alike
        return self.test_of(self.difference, confidence)

    @cached_property
    def _usual_test(self) -> ClusteredMean:
        return self.test_of(self.difference, _CONFIDENCE)

    def test_of(self, values: Floats, confidence: float = 0.95) -> ClusteredMean:
        """The same test of other values of the same pairs, such as differences in another readout; NaN is
        left out."""
        prompts = self.prompts
        return clustered_mean(
            values, donor=prompts.donors or None, target=prompts.target, confidence=confidence
        )


def pair(
    trials: pd.DataFrame | Lookup,
    first: str,
    second: str,
    column: str | None,
    conditions: Mapping[str, Any] | None = None,
) -> Paired:
    """Pair two conditions on stage, item and repeat.

    trials: a table, or its lookup where several pairs of one table are asked for. column: what is compared,
    of the trials that have a value; None: all valid trials, with values of 0. conditions: those of the
    manifest, which say what donors each reads; where neither reads one, the item's own stands. Without them
    every donor that the table names counts as read, the item's own too, since `donor_ids` holds that in any
    case. Raises KeyError for a column that the table lacks, and ValueError where a condition has two valid
    trials of one item and repeat.
    """
    lookup = Lookup.of(trials)
    read = None
    if conditions is not None:
        read = {name: roles_read(conditions.get(name, {})) for name in (first, second)}
    key = (first, second, column, None if read is None else tuple(read.items()))
    if key not in lookup.kept:
        lookup.kept[key] = _pair(lookup, first, second, column, read)
    found: Paired = lookup.kept[key]
    return found


def _pair(
    lookup: Lookup, first: str, second: str, column: str | None, read: Mapping[str, tuple[str, ...]] | None
) -> Paired:
    """read: the roles that each side reads; None: all that are recorded."""
    values = np.zeros(len(lookup.trials)) if column is None else lookup.numbers(column)
    if values is None:
        known = ", ".join(map(str, lookup.trials.columns))
        raise KeyError(f"{column}: expected a column of the table; it has {known}")
    sides = {}
    for name in (first, second):
        rows = lookup.by_condition.ok(name)
        sides[name] = rows[~np.isnan(values[rows])]
    codes = np.sort(lookup.units.codes[sides[first]])
    mine, other = lookup.place(first)[codes], lookup.place(second)[codes]
    shared = (other >= 0) & ~np.isnan(values[other])
    codes, mine, other = codes[shared], mine[shared], other[shared]
    sizes = {name: len(side) for name, side in sides.items()}
    lost = {name: size - len(codes) for name, size in sizes.items() if size > len(codes)}
    sentence = ""
    if lost:
        parts = " and ".join(
            f"{count(k)} of {plural(sizes[name], 'trial')} of {name}" for name, k in lost.items()
        )
        sentence = f"{parts} had no valid partner and were left out; {plural(len(codes), 'pair')} remain."
    index = lookup.units.index(codes)
    return Paired(
        first=values[mine],
        second=values[other],
        donors={
            role if role in (OWN, OTHER) else f"{OWN}:{role}": pd.Series(
                lookup.donor(role, mine if name == first else other), index=index
            )
            for role, name in _read(lookup, sides, read).items()
        },
        target=pd.Series(lookup.target(mine), index=index),
        n_first=sizes[first],
        n_second=sizes[second],
        dropped=sentence,
        rows=(mine, other),
    )


def roles_read(condition: Mapping[str, Any]) -> tuple[str, ...]:
    """The roles of the donors that a condition of a manifest reads, in its prompt or its writes: `donor`
    (the item's own) first, then `other_donor` and those of `value: donor:ROLE`. None for a baseline."""
    parts = str(condition.get("prompt", "target")).split("+")
    found = [part.removeprefix(f"{OWN}:") for part in parts if part.partition(":")[0] == OWN]
    for write in (condition.get("writes") or {}).values():
        value = write.get("value")
        role = value.get("role") if isinstance(value, Mapping) else None
        found += [] if role in _NO_DONOR else [str(role)]
    return tuple(sorted(dict.fromkeys(found), key=lambda role: role != OWN))


def donor_labels(rows: pd.DataFrame, role: str) -> pd.Series:
    """The prompt in a role, row by row: by its id where it is some row's own donor, else by its tokens. The
    item's own donor stands where the table does not tell who is in the role."""
    if role == OWN or "donor_ids" not in rows.columns:
        return rows["donor"]
    return pd.Series(Lookup(rows).donor_label(role), index=rows.index, dtype=object)


def _read(
    lookup: Lookup, sides: Mapping[str, Positions], read: Mapping[str, tuple[str, ...]] | None
) -> dict[str, str]:
    """Every role that a side reads, with the name of the first side that reads it. sides: their rows."""
    found: dict[str, str] = {}
    for name, rows in sides.items():
        wanted = None if read is None else read[name]
        if wanted is not None and not set(wanted) - {OWN}:
            recorded: tuple[str, ...] = (OWN,)  # most baselines: the prompts need not be looked at
        else:
            there = (role for role, codes in lookup.roles.codes.items() if (codes[rows] >= 0).any())
            recorded = tuple(dict.fromkeys((OWN, *there)))
        for role in recorded if wanted is None else wanted:
            found.setdefault(role if role in recorded else OWN, name)
    return found or {OWN: next(iter(sides))}


class Declared(NamedTuple):
    """A comparison that an experiment declares. margin: None for a difference; of an equivalence the stated
    one, NaN where none is stated."""

    condition: str
    against: str
    margin: float | None = None

    @property
    def kind(self) -> str:
        """Whether a difference or an equivalence is asked about."""
        return DIFFERENCE if self.margin is None else EQUIVALENCE

    @property
    def stated(self) -> float | None:
        """The margin that the experiment states."""
        return None if self.margin is None or math.isnan(self.margin) else self.margin


def declared_pairs(manifest: Mapping[str, Any]) -> list[Declared]:
    """Every comparison that the experiment declares.

    The family `each_against_baseline` comes first, in the order of the conditions, then `extra`, then `same`.
    """
    contrasts = manifest.get("contrasts", {})
    baseline = contrasts.get("baseline", "baseline")
    found: list[Declared] = []
    if contrasts.get("family", "none") == "each_against_baseline":
        others = (name for name in manifest.get("conditions", {}) if name != baseline)
        found += [Declared(name, baseline) for name in others]
    extra = [Declared(a, b) for a, b in contrasts.get("extra") or ()]
    found += [declared for declared in extra if declared not in found]
    for a, b, options in contrasts.get("same") or ():
        margin = options.get("margin")
        found.append(Declared(a, b, math.nan if margin is None else float(margin)))
    return found
