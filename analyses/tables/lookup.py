"""Where things stand in a table of trials, each found once: a run of a million trials is no million
searches."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analyses.tables.by_condition import ByCondition, Positions, numbers
from analyses.tables.prompts import Codes, Roles, token_codes

KEY = ["stage", "item", "repeat"]
OWN = "donor"  # the role of the donor that an item is drawn with
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Units:
    """The trials that conditions share: each combination of stage, item and repeat. codes: of each row, in
    the order of stage, item and repeat; item: the same without the repeat; size: more than any code. A code
    need not occur."""

    codes: Codes
    item: Codes
    size: int
    _levels: tuple[pd.Index, ...]
    _names: NDArray[np.int64] | None

    @staticmethod
    def of(trials: pd.DataFrame) -> Units:
        """The units of a table."""
        found = [pd.factorize(trials[name], sort=True) for name in KEY]
        levels = tuple(pd.Index(uniques) for _, uniques in found)
        codes = item = np.zeros(len(trials), dtype=np.int64)
        for name, (each, _), level in zip(KEY, found, levels, strict=True):
            codes = codes * max(1, len(level)) + each
            item = codes if name == "item" else item
        size, names = int(np.prod([max(1, len(level)) for level in levels])), None
        if size > 4 * len(trials) + 1000:
            names, codes = np.unique(codes, return_inverse=True)
            size = len(names)
        return Units(codes, item, size, levels, names)

    def index(self, codes: Codes) -> pd.MultiIndex:
        """Stage, item and repeat of some codes."""
        rest = codes if self._names is None else self._names[codes]
        parts = []
        for level in self._levels[::-1]:
            rest, part = np.divmod(rest, max(1, len(level)))
            parts.append(part)
        levels: Any = self._levels
        places: Any = parts[::-1]
        return pd.MultiIndex(levels=levels, codes=places, names=KEY, verify_integrity=False)


@dataclass(frozen=True)
class Lookup:
    """A table of trials with what analyses look up in it again and again. What is found is kept for as long
    as the lookup is: of one table make one lookup and hand it on. The table must not change meanwhile."""

    trials: pd.DataFrame

    @staticmethod
    def of(trials: pd.DataFrame | Lookup) -> Lookup:
        """The lookup of a table; a lookup is its own."""
        return trials if isinstance(trials, Lookup) else Lookup(trials)

    @cached_property
    def by_condition(self) -> ByCondition:
        """The rows of each condition."""
        return ByCondition.of(self.trials)

    @cached_property
    def units(self) -> Units:
        """Which unit each row is of."""
        return Units.of(self.trials)

    @cached_property
    def _places(self) -> dict[str, Positions]:
        return {}

    @cached_property
    def _numbers(self) -> dict[str, Floats | None]:
        return {}

    def numbers(self, column: str) -> Floats | None:
        """A column as numbers, NaN where there is none; None where the table does not have it."""
        if column not in self._numbers:
            self._numbers[column] = numbers(self.trials, column)
        return self._numbers[column]

    def numbers_at(self, column: str, rows: Positions) -> Floats | None:
        """The same of some rows; a column that is asked for in this way alone is not kept."""
        if column not in self.trials.columns:
            return None
        if column not in self._held:
            held = self.trials[column]
            narrow = held.dtype == np.float32
            self._held[column] = held.to_numpy() if narrow else self.numbers(column)
        found = self._held[column]
        return None if found is None else found[rows].astype(np.float64)

    @cached_property
    def _held(self) -> dict[str, NDArray[np.floating[Any]] | None]:
        return {}

    def conditions(self, manifest: Mapping[str, Any]) -> tuple[str, ...]:
        """Names of the conditions, in the manifest's order; those that only the table knows come last."""
        declared = list(manifest.get("conditions", {}))
        return (*declared, *(name for name in self.by_condition.every if name not in declared))

    def place(self, condition: str) -> Positions:
        """The row of each unit's valid trial of a condition, -1 where it has none. Raises ValueError where
        there are two."""
        if condition not in self._places:
            rows = self.by_condition.ok(condition)
            codes = self.units.codes[rows]
            place = np.full(self.units.size, -1, dtype=np.intp)
            place[codes] = rows
            lost = np.flatnonzero(place[codes] != rows)
            if len(lost):
                twice = self.trials.iloc[int(rows[lost[0]])]
                raise ValueError(
                    f"{condition}: two valid trials of item {twice['item']}, repeat {twice['repeat']}"
                )
            self._places[condition] = place
        return self._places[condition]

    @cached_property
    def kept(self) -> dict[Hashable, Any]:
        """What was computed from this table and is asked for again, such as its pairs."""
        return {}

    @cached_property
    def outputs(self) -> tuple[Codes, Codes] | None:
        """(codes, lengths) of the new tokens of each row: equal codes for equal ones, -1 for none. None
        where the table has none."""
        if "output_ids" not in self.trials.columns:
            return None
        return token_codes(self.trials["output_ids"])

    @cached_property
    def items(self) -> Positions:
        """The first row of each item of each stage."""
        return self._first_of_item(np.arange(len(self.trials)))

    @cached_property
    def ended_items(self) -> Positions:
        """The first row of each item of each stage, trials that are pending left out."""
        apart = self.by_condition
        pending = [place for place, name in enumerate(apart.names) if name == "pending"]
        return self._first_of_item(np.flatnonzero(~np.isin(apart.status, pending)))

    def _first_of_item(self, rows: Positions) -> Positions:
        _, first = np.unique(self.units.item[rows], return_index=True)
        return rows[np.sort(first)]

    @cached_property
    def roles(self) -> Roles:
        """The prompts by role; none where the table does not record them."""
        if "donor_ids" not in self.trials.columns:
            return Roles({}, ())
        return Roles.of(self.trials["donor_ids"])

    def target(self, rows: Positions) -> Floats:
        """The target of some rows as a number, NaN where none is recorded."""
        return self._numbered("target")[0][rows]

    def donor(self, role: str, rows: Positions) -> Floats:
        """The prompt in a role of some rows as a number, the same in whatever role it stands; NaN where none
        is recorded. The item's own donor stands where the table does not tell who is in the role."""
        codes = self.roles.codes.get(role) if role != OWN else None
        own = self._numbered(OWN)[0]
        if codes is None:
            return own[rows]
        if role not in self._in_roles:
            self._in_roles[role] = np.where(codes >= 0, self._donor_of_prompt[codes], own)
        return self._in_roles[role][rows]

    def donor_label(self, role: str) -> NDArray[Any]:
        """The prompt in a role of every row: by its id where it is some row's own donor, else by its tokens;
        None where none is recorded."""
        numbers = self.donor(role, np.arange(len(self.trials)))
        names = self._numbered(OWN)[1]
        codes, distinct = pd.factorize(numbers)
        labels = np.empty(len(distinct) + 1, dtype=object)  # the last, of no donor, stays None
        for place, number in enumerate(map(int, distinct)):
            known = number < len(names)
            labels[place] = names[number] if known else self.roles.tokens(number - len(names))
        found: NDArray[Any] = labels[codes]
        return found

    def distinct(self, rows: Positions) -> tuple[int, int, int, int]:
        """How many items some rows are, one each, and of how many donors, targets and pairs of both."""
        held = pd.DataFrame({"donor": self.donor(OWN, rows), "target": self.target(rows)})
        return len(rows), held["donor"].nunique(), held["target"].nunique(), len(held.drop_duplicates())

    @cached_property
    def _in_roles(self) -> dict[str, Floats]:
        return {}

    @cached_property
    def _donor_of_prompt(self) -> Floats:
        """The donor that each prompt of `roles` is: the number of a name, or one of its own after those."""
        own, names = self._numbered(OWN)
        found = len(names) + np.arange(len(self.roles) + 1, dtype=np.float64)  # the last is of no prompt
        recorded = self.roles.codes.get(OWN)
        if recorded is not None:
            theirs = (recorded >= 0) & ~np.isnan(own)
            found[recorded[theirs]] = own[theirs]
        return found

    def _numbered(self, name: str) -> tuple[Floats, pd.Index]:
        """A column of names as numbers, and the names; NaN everywhere where the table does not have it."""
        if name not in self._named:
            held = self.trials.get(name)
            if held is None:
                self._named[name] = (np.full(len(self.trials), np.nan), pd.Index([], dtype=object))
            else:
                codes, names = pd.factorize(held)
                self._named[name] = (np.where(codes < 0, np.nan, codes), pd.Index(names))
        return self._named[name]

    @cached_property
    def _named(self) -> dict[str, tuple[Floats, pd.Index]]:
        return {}
