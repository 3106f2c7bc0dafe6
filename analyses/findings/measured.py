"""A finding that is measured: a mean or a paired difference, of conditions or of whole grids, with its
interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from analyses.choices.criteria import read_criterion
from analyses.choices.selection import item_figures
from analyses.statistics.clusters import ClusteredMean, Floats, clustered_mean
from analyses.statistics.proportions import binary, mcnemar, newcombe, sign_test, wilson
from analyses.tables.cells import UNIT, Axes, axis_key, axis_named, cell_words, cells_of, grids_of, values_of
from analyses.tables.measured import COUNTED, kind_of_column
from analyses.tables.pairs import pair
from analyses.tables.run import Run
from analyses.wording import count, listed, plural

VALUE = "value of the finding"  # no readout can be called so
_KEY = ["stage", *UNIT]
_SHARED = (
    "; pairs share donors or targets: interval by effective n, p the larger of it and the clustered test"
)


class NoFinding(Exception):
    """Why there is no figure; the message is a sentence. by: what there is for each group or axis value."""

    def __init__(self, message: str, by: Sequence[tuple[str, Estimate | None]] = ()) -> None:
        super().__init__(message)
        self.by = tuple(by)


@dataclass(frozen=True)
class Side:
    """One side of a comparison: the mean over its n trials, and how many of them are 1 where all are 0 or
    1."""

    name: str
    mean: float
    n: int
    ones: int | None


@dataclass(frozen=True)
class Estimate:
    """A mean (one side) or a difference of two, with the interval. share: every value is 0 or 1. p is that of
    McNemar's exact test for shares, else of the clustered t test; None for a mean."""

    value: float
    low: float | None
    high: float | None
    n: int
    items: int
    share: bool
    p: float | None
    mcnemar: float | None
    method: str
    sides: tuple[Side, ...]
    note: str


@dataclass(frozen=True)
class Fixed:
    """One cell taken alone, beside the best of all cells of each item. chosen_on: where that cell was chosen:
    the choice and its stage, or the same items."""

    cell: Mapping[str, Any]
    estimate: Estimate
    chosen_on: str
    same_items: bool


@dataclass(frozen=True)
class Measured:
    """What a measured finding comes to. by: the same for each group or axis value; fixed: for `any`, the best
    cell alone."""

    estimate: Estimate
    by: tuple[tuple[str, Estimate | None], ...]
    fixed: tuple[Fixed, ...]
    notes: tuple[str, ...]


def measure(spec: Mapping[str, Any], run: Run, choices: Mapping[str, Mapping[str, Any]]) -> Measured:
    """The finding of a specification in plain data, from the run of its stage.

    A grid is the mean over its cells, item by item, or with reduce `any` the item's largest value over them;
    both need a value in every cell that has any. Raises NoFinding where there is no figure.
    """
    trials = run.trials.assign(**{VALUE: np.nan})
    conditions = run.manifest.get("conditions", {})
    of, against = str(spec["of"]), spec.get("against")
    names = [of] if against is None else [of, str(against)]
    members = {name: _members(name, conditions) for name in names}
    mine = trials["condition"].isin([each for found in members.values() for each in found])
    rows = trials[mine & (trials["status"] == "ok")].copy()
    if rows.empty:
        raise NoFinding(f"no trial of {listed(names)} is valid")
    try:
        rows[VALUE] = values_of(rows, str(spec["readout"]), run.manifest.get("readout"))
    except KeyError as error:
        raise NoFinding(str(error.args[0])) from error
    rows, notes = _kept(spec, rows, run)
    any_cell = spec.get("reduce") == "any"
    shares = kind_of_column(str(spec["readout"]), run.manifest) not in COUNTED
    work = _Work(rows, conditions, members, any_cell, shares)
    by = spec.get("by")
    parts = [] if by is None else work.by(str(by), names)
    try:
        estimate, more = work.whole(names)
    except NoFinding as error:
        raise NoFinding(str(error), [part for part in parts if part[1] is not None]) from error
    notes += more
    fixed: tuple[Fixed, ...] = ()
    if any_cell:
        notes += _trap_of_the_largest(rows, members, names)
        fixed = work.fixed(of, choices, run.manifest.get("experiment", {}).get("stage"))
    return Measured(estimate, tuple(parts), fixed, tuple(notes))


@dataclass(frozen=True)
class _Work:
    """The valid rows of a finding, with their values. shares: whether values that are all 0 or 1 are shares,
    which layers and ranks are not."""

    rows: pd.DataFrame
    conditions: Mapping[str, Any]
    members: Mapping[str, Mapping[str, Axes]]
    any_cell: bool
    shares: bool

    def whole(self, names: Sequence[str]) -> tuple[Estimate, list[str]]:
        collapsed = {name: self._collapsed(name, self.members[name]) for name in names}
        notes = [note for _, told in collapsed.values() for note in told]
        return self._estimate(names, {name: frame for name, (frame, _) in collapsed.items()}), notes

    def by(self, word: str, names: Sequence[str]) -> list[tuple[str, Estimate | None]]:
        """The estimate for each group of items, or each value of an axis that the first name's grid has; the
        other side is the same cell of its grid where that has the axis."""
        found = []
        if word == "group":
            for group in self.rows["group"].drop_duplicates():
                own = replace(self, rows=self.rows[self.rows["group"] == group])
                found.append((str(group), own._part(names)))
            return found
        axes = list(dict.fromkeys(axis for cell in self.members[names[0]].values() for axis in cell))
        axis = axis_named(word, axes)
        if axis is None:
            raise NoFinding(f"by: expected group or an axis of {names[0]} ({listed(axes)}), got '{word}'")
        values = {axis_key(cell[axis]): cell[axis] for cell in self.members[names[0]].values()}
        for key, value in values.items():
            members = {
                name: {
                    each: cell
                    for each, cell in cells.items()
                    if axis not in cell or axis_key(cell[axis]) == key
                }
                for name, cells in self.members.items()
            }
            found.append((str(value), replace(self, members=members)._part(names)))
        return found

    def fixed(
        self, of: str, choices: Mapping[str, Mapping[str, Any]], stage: str | None
    ) -> tuple[Fixed, ...]:
        """The cell that a choice on other items took, where there is one, and the best on these items."""
        cells = self.members[of]
        found = []
        for name, choice in choices.items():
            for chosen in choice.get("chosen") or ():
                cell = _the_cell(cells, chosen)
                if cell is not None and choice.get("from") != stage:
                    told = f"choice {name}, made on stage {choice.get('from')}"
                    found.append(Fixed(cells[cell], self._alone(of, cell), told, False))
                    break
        mine = self.rows[self.rows["condition"].isin(list(cells))]
        means = mine.groupby("condition", observed=True)[VALUE].mean().dropna()
        if len(means):
            best = max((name for name in cells if name in means.index), key=lambda name: means[name])
            found.append(Fixed(cells[best], self._alone(of, best), "the same items", True))
        return tuple(found)

    def _alone(self, of: str, cell: str) -> Estimate:
        own = replace(self, members={of: {cell: self.members[of][cell]}}, any_cell=False)
        return own.whole([of])[0]

    def _part(self, names: Sequence[str]) -> Estimate | None:
        try:
            return self.whole(names)[0]
        except NoFinding:
            return None

    def _collapsed(self, name: str, cells: Mapping[str, Axes]) -> tuple[pd.DataFrame, list[str]]:
        """One row per item and repeat: the mean or the largest of the cells."""
        rows = self.rows[self.rows["condition"].isin(list(cells))]
        rows = rows[rows[VALUE].notna()]
        if rows.empty:
            raise NoFinding(f"no valid trial of {name} has a value")
        apart = rows.groupby(_KEY, sort=False, observed=True)[VALUE]
        values, numbers = apart.max() if self.any_cell else apart.mean(), apart.count()
        there = int(rows["condition"].nunique())
        whole = numbers == there
        notes = []
        if there < len(cells):
            gone = f"{count(len(cells) - there)} of {plural(len(cells), 'cell')} of {name}"
            notes.append(f"{gone} have no value and are left out")
        if not whole.all():
            lost = f"{count(int((~whole).sum()))} of {plural(len(whole), 'trial')} of {name}"
            notes.append(f"{lost} without a value in every cell are left out")
        if not whole.any():
            raise NoFinding(f"no trial of {name} has a value in every cell")
        shown = rows.drop_duplicates(_KEY).set_index(_KEY)
        frame = shown.assign(**{VALUE: values})[whole].reset_index()
        frame["condition"], frame["status"] = name, "ok"
        return frame, notes

    def _estimate(self, names: Sequence[str], collapsed: Mapping[str, pd.DataFrame]) -> Estimate:
        table = pd.concat(collapsed.values(), ignore_index=True)
        read = {name: _together(cells, self.conditions) for name, cells in self.members.items()}
        first, second = names[0], names[-1]
        paired = pair(table, first, second, VALUE, read)
        if not len(paired.first):
            raise NoFinding(f"{first} and {second} share no trial that both have a value of")
        # Prompts without donors are clustered by target alone.
        labels: dict[str, Any] = {"target": paired.target} if paired.target.notna().any() else {}
        donors = {name: given for name, given in paired.donors.items() if given.notna().any()}
        if donors:
            labels["donor"] = donors
        items = len(dict.fromkeys(paired.target.index.get_level_values("item")))
        both = np.concatenate([paired.first, paired.second])
        share = self.shares and binary(both)
        sides = [_side(first, paired.first, share)]
        if first == second:
            return _mean(paired.first, clustered_mean(paired.first, **labels), sides, items, share)
        sides.append(_side(second, paired.second, share))
        test = clustered_mean(paired.difference, **labels)
        return _difference(paired.first, paired.second, test, sides, items, paired.dropped, share)


def _mean(values: Floats, test: ClusteredMean, sides: Sequence[Side], items: int, share: bool) -> Estimate:
    assert test.mean is not None
    low, high, method, note = test.ci_low, test.ci_high, f"{test.method}, t interval", test.note
    if share:
        low, high = wilson(test.mean, _effective(test))
        method, note = "Wilson interval, effective n by donors and targets", ""
    return Estimate(test.mean, low, high, len(values), items, share, None, None, method, tuple(sides), note)


def _difference(
    first: Floats,
    second: Floats,
    test: ClusteredMean,
    sides: Sequence[Side],
    items: int,
    dropped: str,
    share: bool,
) -> Estimate:
    assert test.mean is not None
    notes = [dropped.rstrip(".")] if dropped else []
    if not share:
        notes += [test.note] if test.note else []
        return Estimate(
            test.mean, test.ci_low, test.ci_high, len(first), items, False, test.p, None,
            f"paired t test, {test.method}", tuple(sides), "; ".join(notes),
        )  # fmt: skip
    exact = mcnemar(first, second)
    low, high = newcombe(first, second, _effective(test))
    p, method = exact, "McNemar's exact test, Newcombe's interval"
    if any(size < len(first) for size in test.clusters.values()):
        # McNemar's test takes every pair for independent: where pairs share prompts, the larger p stands.
        p = max(exact, _without_spread(test) if test.p is None else test.p)
        method += _SHARED
    return Estimate(
        test.mean, low, high, len(first), items, True, p, exact, method, tuple(sides), "; ".join(notes)
    )


def _without_spread(test: ClusteredMean) -> float:
    """The p of differences that are all alike, one for each of the fewest clusters."""
    fewest = min(test.clusters.values(), default=test.n)
    return sign_test(fewest) if test.mean else 1.0


def _effective(test: ClusteredMean) -> float:
    """The number of independent trials that the interval of a share may count on: the effective n, or where
    there is no spread to take it from, the fewest clusters."""
    if test.effective_n is not None:
        return test.effective_n
    return float(min(test.clusters.values(), default=test.n))


def _side(name: str, values: Floats, share: bool) -> Side:
    ones = int(values.sum()) if share else None
    return Side(name, float(values.mean()), len(values), ones)


def _members(name: str, conditions: Mapping[str, Any]) -> dict[str, Axes]:
    found = cells_of(conditions, name)
    if not found:
        known = list(dict.fromkeys((*grids_of(conditions), *conditions)))
        raise NoFinding(f"expected a condition or grid of the stage ({listed(known)}), got '{name}'")
    return found


def _together(cells: Mapping[str, Axes], conditions: Mapping[str, Any]) -> dict[str, Any]:
    """A condition that reads the donors that any of the cells reads."""
    bodies = {name: conditions.get(name, {}) for name in cells}
    prompt = next((body["prompt"] for body in bodies.values() if body.get("prompt")), "target")
    writes = {
        f"{name}.{write}": spec
        for name, body in bodies.items()
        for write, spec in (body.get("writes") or {}).items()
    }
    return {"prompt": prompt, "writes": writes}


def _kept(spec: Mapping[str, Any], rows: pd.DataFrame, run: Run) -> tuple[pd.DataFrame, list[str]]:
    """The rows of the items of which everything holds that the finding asks, and what is to be noted."""
    criteria = [read_criterion(given) for given in spec.get("items") or ()]
    if not criteria:
        return rows, []
    try:
        figures = item_figures(
            run.trials, criteria, run.manifest.get("conditions", {}), run.manifest.get("readout")
        )
    except (KeyError, ValueError) as error:
        raise NoFinding(f"items: {error.args[0]}") from error
    held = pd.DataFrame(figures)
    kept = []
    for item, row in held.iterrows():
        if all(each.metric is not None and each.holds(row[each.metric.name]) for each in criteria):
            kept.append(item)
    words = listed([each.words for each in criteria])
    notes = [f"{count(len(kept))} of {plural(len(held), 'item')}: those with {words}"]
    same = {each.metric.readout for each in criteria if each.metric is not None} & {str(spec["readout"])}
    if same:
        notes.append("items chosen by the same readout: the null shows how much that alone gives")
    if not kept:
        raise NoFinding(f"no item of {count(len(held))} has {words}")
    return rows[rows["item"].isin(kept)], notes


def _trap_of_the_largest(
    rows: pd.DataFrame, members: Mapping[str, Mapping[str, Axes]], names: Sequence[str]
) -> list[str]:
    """What must be said of the largest of many cells, of which those with a value count."""
    there = set(rows.loc[rows[VALUE].notna(), "condition"])
    cells = {name: len(there & set(members[name])) for name in names}
    if len(names) < 2:
        whole = plural(cells[names[0]], "cell")
        return [f"the largest of {whole} of each item, without a null grid: it is high by chance alone"]
    if cells[names[0]] > cells[names[1]]:
        first, second = (f"{names[place]} has {plural(cells[names[place]], 'cell')}" for place in (0, 1))
        return [f"{first}, {second}: the largest of more cells is larger by chance alone"]
    return []


def _the_cell(cells: Mapping[str, Axes], chosen: Axes) -> str | None:
    """The one cell of a grid that a chosen cell of another stage names, all axes of the grid given."""
    for name, cell in cells.items():
        named = {axis_named(axis, list(cell)): value for axis, value in chosen.items()}
        same = (axis in named and axis_key(named[axis]) == axis_key(value) for axis, value in cell.items())
        if cell and all(same):
            return name
    return None


def fixed_words(fixed: Fixed) -> str:
    """The cell and where it was chosen, in words."""
    return f"{cell_words(fixed.cell)} (chosen on {fixed.chosen_on})"
