"""Whether two conditions gave the same outcomes: a control that equals its treatment cannot fail."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analyses.gates.gate import Gate
from analyses.gates.receipts import Receipt, full_precision, inert_limit, receipts
from analyses.summary.folding import large_grids
from analyses.tables.by_condition import Positions
from analyses.tables.cells import grid_name
from analyses.tables.lookup import Lookup
from analyses.tables.measured import kind_of_column, probe_columns
from analyses.wording import count, listed, plural, share, small

SHARE = 0.99
FEWEST = 3
ENOUGH = 1000  # tokens of a condition that a write would hardly all leave as they were
# Numbers that differ by less than this share of their size are equal but for rounding.
SAME_FULL, SAME_LOW = 1e-5, 1e-2


def identical_gates(trials: pd.DataFrame | Lookup, manifest: Mapping[str, Any]) -> list[Gate]:
    """One gate for every group of conditions whose outcomes agree in at least 99% of the valid trials that
    they share, under the first of them that nothing explains.

    Expected where each differs from the group's first by nothing but writes that are declared no-ops or
    inert, or is `same_as` one that is so explained. A warning where the texts are too few or too short to
    tell: fewer than 1000 tokens, although the receipts say of each member that its own writes changed
    something that only the texts can show. Two conditions that agree through a third are in one group.
    """
    lookup = Lookup.of(trials)
    outcomes = Outcomes.of(lookup, manifest)
    names = outcomes.conditions
    # Without texts every grid is told as a whole: a curve of a probe may be flat in parts as a result.
    large = large_grids(names) if outcomes.tokens is not None else large_grids(names, 1)
    place = {name: number for cells in large.values() for number, name in enumerate(cells)}
    agreement = {
        (names[i], names[j]): outcomes.agreement(names[i], names[j])
        for j in range(len(names))
        for i in range(j)
        if _compared(names[i], names[j], place)
    }
    groups = _groups(names, agreement)
    found = receipts(lookup, manifest) if groups else []
    single = [[name for name in group if name not in place] for group in groups]
    return [
        *(_gate(group, agreement, outcomes, found, manifest) for group in single if len(group) > 1),
        *_of_grids([group for group in groups if set(group) & place.keys()], large, outcomes, manifest),
    ]


def _compared(first: str, second: str, place: Mapping[str, int]) -> bool:
    """Whether two conditions are held against each other. place: of the cells of grids that are told as a
    whole, which are compared with conditions that are none, with their neighbours and with the same cell of
    other grids."""
    if first not in place or second not in place:
        return True
    if grid_name(first) == grid_name(second):
        return abs(place[first] - place[second]) == 1
    return first.partition("[")[2] == second.partition("[")[2]


def _of_grids(
    groups: Sequence[Sequence[str]],
    large: Mapping[str, Sequence[str]],
    outcomes: Outcomes,
    manifest: Mapping[str, Any],
) -> list[Gate]:
    """Gates on cells of large grids, of which many may change no outcome: a warning that counts them, and a
    failure only where a grid gives the same in all of its cells, in numbers that move with any change."""
    cells = {name for members in large.values() for name in members}
    apart: dict[tuple[tuple[str, ...], tuple[str, ...]], list[list[str]]] = {}
    for group in groups:
        mine = [name for name in group if name in cells]
        others = tuple(name for name in group if name not in cells)
        apart.setdefault((tuple(dict.fromkeys(map(grid_name, mine))), others), []).append(mine)
    gates = []
    for (grids, others), members in apart.items():
        alike = [name for group in members for name in group]
        numbers = {grid: sum(grid_name(name) == grid for name in alike) for grid in grids}
        told = listed(
            [f"{count(numbers[grid])} of {count(len(large[grid]))} cells of {grid}" for grid in grids]
        )
        fact = f"{told} gave the same {outcomes.what}"
        if not others and len(grids) == 1:
            if max(map(len, members)) == len(large[grids[0]]):
                so = "its axes change nothing that is measured"
                flat = "fail" if outcomes.fine or outcomes.tokens is not None else "warn"
                gates.append(Gate(alike[0], "identical", flat, f"{fact} as each other: {so}."))
            continue
        whole = any(numbers[grid] == len(large[grid]) for grid in grids)
        expected = all(not _acting(manifest.get("conditions", {}).get(name, {})) for name in alike)
        verdict = "expected" if expected else "fail" if whole and others else "warn"
        other = listed(others) if others else "the same cells of the other grid"
        sentence = f"{fact} as {other}, in at least {share(99, 100)} of the trials that they share."
        gates.append(Gate(alike[0], "identical", verdict, sentence))
    return gates


@dataclass(frozen=True)
class Outcomes:
    """What came of each trial, comparable across conditions: the new tokens, where the run generates a text,
    and every column of its probes. Where there is neither, the primary readout stands in.

    tokens: [trials, conditions], equal numbers for equal texts and -1 for none; None without texts. lengths:
    of these texts, in tokens. values: [conditions, trials, numbers], lists flattened, NaN where nothing is;
    tolerance: [numbers]. fine: whether a probe gives numbers that move with any change that it sees, as
    ranks do not.
    """

    conditions: tuple[str, ...]
    what: str
    tokens: NDArray[np.int64] | None
    lengths: NDArray[np.int64]
    values: NDArray[np.float64]
    tolerance: NDArray[np.float64]
    relative: float
    fine: bool

    @staticmethod
    def of(trials: pd.DataFrame | Lookup, manifest: Mapping[str, Any]) -> Outcomes:
        """The outcomes of a run's valid trials; of several of one condition, item and repeat, the first."""
        lookup = Lookup.of(trials)
        table = lookup.trials
        names = [name for name in lookup.conditions(manifest) if len(lookup.by_condition.ok(name))]
        at = _Places.of(lookup, names)
        tokens, lengths = _tokens(lookup, at)
        probes = {name: found for name, found in probe_columns(table, manifest).items() if found}
        what = [] if tokens is None else ["output tokens"]
        if probes:
            what.append(f"values of {listed(list(probes))}")
        columns = [each for mine in probes.values() for each in mine]
        primary = manifest.get("contrasts", {}).get("primary", "score")
        if not what and primary in table.columns:
            what, columns = [f"values of {primary}"], [primary]
        flat = [_numbers(table[each].iloc[at.rows]) for each in columns]
        found = np.concatenate(flat, axis=1) if flat else np.empty((len(at.rows), 0))
        values = np.full((len(names), at.units, found.shape[1]), np.nan)
        values[at.condition, at.unit] = found
        relative = SAME_FULL if full_precision(manifest) else SAME_LOW
        coarse = ("rank", "accuracy")
        fine = any(kind_of_column(each, manifest) not in coarse for mine in probes.values() for each in mine)
        tolerance = _scale(found) * relative
        return Outcomes(tuple(names), listed(what), tokens, lengths, values, tolerance, relative, fine)

    def agreement(self, first: str, second: str) -> tuple[int, int]:
        """Trials that both conditions have, and those of them in which everything is equal: tokens exactly,
        numbers up to what rounding makes of them."""
        i, j = self.conditions.index(first), self.conditions.index(second)
        a, b = self.values[i], self.values[j]
        none_a, none_b = np.isnan(a), np.isnan(b)
        with np.errstate(invalid="ignore"):
            allowed = self.tolerance + self.relative * np.maximum(np.abs(a), np.abs(b))
            close = (a == b) | (np.abs(a - b) <= allowed)
        equal = (close | (none_a & none_b)).all(axis=1)
        if self.tokens is not None:
            both = (self.tokens[:, i] >= 0) & (self.tokens[:, j] >= 0)
            equal &= self.tokens[:, i] == self.tokens[:, j]
        else:
            both = ~none_a.all(axis=1) & ~none_b.all(axis=1)
        return int(both.sum()), int(equal[both].sum())


@dataclass(frozen=True)
class _Places:
    """The valid rows of a table, and for each its unit (of `units`) and its condition, as numbers."""

    rows: Positions
    unit: Positions
    condition: Positions
    units: int

    @staticmethod
    def of(lookup: Lookup, names: Sequence[str]) -> _Places:
        kept = []
        first = np.empty(lookup.units.size, dtype=np.intp)
        for name in names:
            rows = lookup.by_condition.ok(name)
            codes = lookup.units.codes[rows]
            first[codes[::-1]] = rows[::-1]
            kept.append(rows[first[codes] == rows])
        rows = np.concatenate(kept) if kept else np.empty(0, dtype=np.intp)
        unit, units = pd.factorize(lookup.units.codes[rows])
        condition = np.repeat(np.arange(len(names)), [len(each) for each in kept])
        return _Places(rows, unit, condition, len(units))


def _tokens(lookup: Lookup, at: _Places) -> tuple[NDArray[np.int64] | None, NDArray[np.int64]]:
    shape = (at.units, int(at.condition.max(initial=-1)) + 1)
    found, lengths = np.full(shape, -1, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    if lookup.outputs is None or not (lookup.outputs[0][at.rows] >= 0).any():
        return None, lengths
    codes, sizes = lookup.outputs
    found[at.unit, at.condition] = codes[at.rows]
    lengths[at.unit, at.condition] = sizes[at.rows]
    return found, lengths


def _numbers(column: pd.Series) -> NDArray[np.float64]:
    """A column of numbers or of lists of numbers as [rows, longest list], NaN where nothing is."""
    if pd.api.types.is_numeric_dtype(column.dtype):
        return column.to_numpy(dtype=np.float64, na_value=np.nan)[:, None]
    cells = [np.atleast_1d(np.asarray([] if _missing(v) else v, dtype=np.float64)) for v in column]
    found = np.full((len(cells), max((len(cell) for cell in cells), default=0)), np.nan)
    for row, cell in enumerate(cells):
        found[row, : len(cell)] = cell
    return found


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _scale(table: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean size of each number, by which a difference near 0 is judged."""
    sizes = np.where(np.isfinite(table), np.abs(table), 0.0)
    return np.asarray(sizes.sum(axis=0) / np.maximum(1, np.isfinite(table).sum(axis=0)))


def _groups(names: Sequence[str], agreement: Mapping[tuple[str, str], tuple[int, int]]) -> list[list[str]]:
    """Conditions that agree, directly or through others, in groups of two or more; all in the given order."""
    head = {name: name for name in names}
    for (first, second), (shared, equal) in agreement.items():
        if shared >= FEWEST and equal >= SHARE * shared and head[first] != head[second]:
            old, new = head[second], head[first]
            head = {name: new if at == old else at for name, at in head.items()}
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(head[name], []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def _gate(
    group: Sequence[str],
    agreement: Mapping[tuple[str, str], tuple[int, int]],
    outcomes: Outcomes,
    found: Sequence[Receipt],
    manifest: Mapping[str, Any],
) -> Gate:
    """The gate of one group, with the figures of the two of its members that agree least."""
    figures = [agreement[pair] for pair in combinations(group, 2) if agreement[pair][0] >= FEWEST]
    shared, equal = min(figures, key=lambda pair: (pair[1] / pair[0], pair[0]))
    most = max(pair[0] for pair in figures)
    if equal == shared < most:
        often = f"every shared trial ({count(shared)} to {count(most)} of any two)"
    else:
        least = "at least " if len(set(figures)) > 1 else ""
        often = f"{least}{count(equal)} of {plural(shared, 'shared trial')} ({share(equal, shared)})"
    fact = f"{listed(group)} gave the same {outcomes.what} in {often}"
    explained = _explained(group, manifest.get("conditions", {}))
    left = [name for name in group[1:] if name not in explained]
    if not left:
        reasons = " and ".join(dict.fromkeys(explained[name] for name in group[1:]))
        return Gate(group[1], "identical", "expected", f"{fact}, as expected: {reasons}.")
    acting = _acting_unseen(group[0], left, outcomes, found, manifest)
    if acting:
        longest = int(outcomes.lengths[:, [outcomes.conditions.index(name) for name in group]].max())
        others = "" if len(left) == 1 else ", and so did the writes of the others"
        return Gate(
            left[0],
            "identical",
            "warn",
            f"{fact}, of {plural(longest, 'token')} at most, although {_changed(acting)}{others}: too few or "
            "too short to tell them apart.",
        )
    if len(group) == 2:
        so = "a comparison of the two cannot show anything, whatever is true"
    else:
        so = "comparisons among them cannot show anything, whatever is true"
    but = f" (expected of {listed(list(explained))})" if explained else ""
    return Gate(left[0], "identical", "fail", f"{fact}: {so}{but}.")


def _acting_unseen(
    first: str,
    left: Sequence[str],
    outcomes: Outcomes,
    found: Sequence[Receipt],
    manifest: Mapping[str, Any],
) -> Receipt | None:
    """The write of the first of `left` that changed something which few or short texts may not show; None
    where the texts are enough, or where not each of `left` differs from `first` by such a write."""
    if outcomes.tokens is None or outcomes.lengths[:, outcomes.conditions.index(first)].sum() >= ENOUGH:
        return None
    limit = inert_limit(manifest)

    def acts(receipt: Receipt) -> bool:
        # What acts in prefill is seen by every probe of the prompt's forwards.
        unseen = receipt.live("decode") > 0 or (receipt.live("prefill") > 0 and not outcomes.fine)
        return unseen and receipt.change is not None and receipt.change > limit

    told = []
    for name in left:
        own = [
            receipt
            for one, other in ((name, first), (first, name))
            for receipt in found
            if receipt.condition == one and acts(receipt) and not _has(other, receipt.spec, manifest)
        ]
        if not own:
            return None
        told.append(own[0])
    return told[0]


def _has(condition: str, spec: Mapping[str, Any], manifest: Mapping[str, Any]) -> bool:
    """Whether a condition has the same write, whatever it is called."""
    return set(_acting({"writes": {"w": spec}})) <= set(
        _acting(manifest.get("conditions", {}).get(condition, {}))
    )


def _changed(receipt: Receipt) -> str:
    of = "" if receipt.spec.get("has_old", True) else " of the first logits"
    return f"{receipt.name} changed what it acts on (relative change{of} {small(receipt.change)})"


def _explained(group: Sequence[str], declared: Mapping[str, Any]) -> dict[str, str]:
    """The members that are declared to give what the group's first gives, directly or through one another,
    with the reason."""
    found: dict[str, str] = {}
    known = [group[0]]
    for twin in known:  # grows as it goes
        for name in group[1:]:
            reason = None if name in found else _declared_alike(name, twin, declared)
            if reason is not None:
                found[name] = reason
                known.append(name)
    return {name: found[name] for name in group if name in found}


def _declared_alike(a: str, b: str, declared: Mapping[str, Any]) -> str | None:
    here, there = declared.get(a, {}), declared.get(b, {})
    if here.get("same_as") == b or there.get("same_as") == a:
        return "same_as declares it"
    if _acting(here) == _acting(there) and all(here.get(k) == there.get(k) for k in ("prompt", "weights")):
        return "they differ only by writes that are expected to do nothing"
    return None


def _acting(condition: Mapping[str, Any]) -> list[str]:
    """The writes that are meant to act, without their names: what two conditions truly differ by."""
    ignored = ("expect", "has_old")
    return sorted(
        json.dumps({k: v for k, v in write.items() if k not in ignored}, sort_keys=True, default=str)
        for write in (condition.get("writes") or {}).values()
        if write.get("expect") not in ("noop", "inert")
    )
