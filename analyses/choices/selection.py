"""What an experiment chooses: cells of a grid, rows of an artefact's table, or items; pure functions of
data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analyses.choices import chance
from analyses.choices.candidates import NOT_TO_BE_CHOSEN, Candidate, choose, failures, judge, matches
from analyses.choices.criteria import Criterion, Metric, Objective, read_criterion, read_objective
from analyses.choices.paired_figures import Readouts, axis_of, by_item, figures_of, universe
from analyses.tables.cells import Axes
from analyses.wording import count, listed, plural

SEED = 42
_AXES = ("group", "position", "layer", "head")


@dataclass(frozen=True)
class Selection:
    """What was chosen: cells or rows as {axis: value}, the best first, or items as (donor, target).

    table: every cell, row or item with its figures, n, passes and why. n_items: items that every figure is
    the mean of; of a choice of items, those kept. chance: how many would pass if the signs of the paired
    differences that the criteria bound were those of a coin; None where no criterion bounds a difference.
    """

    chosen: tuple[dict[str, Any], ...]
    items: tuple[tuple[str, str], ...] | None
    table: tuple[dict[str, Any], ...]
    sentence: str
    n_items: int
    chance: float | None = None

    @property
    def n_cells(self) -> int:
        """Cells, rows or items that were there to choose from."""
        return len(self.table)

    @property
    def n_pass(self) -> int:
        """Those of them that meet every criterion."""
        return sum(bool(row["passes"]) for row in self.table)


def select_cells(
    trials: pd.DataFrame,
    conditions: Mapping[str, Any],
    rule: Mapping[str, Any],
    layers: int | None,
    *,
    excluded: Sequence[Axes] = (),
    readouts: Readouts | None = None,
) -> Selection:
    """Choose cells of the grids of one measuring stage.

    trials: its rows; conditions, readouts: of its manifest section; rule: a select stage in plain data;
    layers: L of the model, for depths; excluded: cells that may not be chosen, as {axis: value}.

    A figure is the mean over items of (readout of `of` - that of `minus`), paired within item and repeat, in
    the cell's conditions; axes that are not in `over` are averaged. All figures are of the same items: one
    without a value in some cell is left out everywhere, and counted. Cells with values for less than half of
    the items fail instead. Of the cells that pass, `draw` are taken at random (by `seed`), or the `top` best;
    all, where nothing ranks them. Ties go to the first in the order of the grid. Raises ValueError for names
    that the stage does not have, KeyError for a readout that it does not have.
    """
    criteria, objective = _rule(rule)
    metrics = _metrics(criteria, objective)
    over, cells = universe(conditions, metrics, [str(word) for word in rule.get("over") or ()])
    found = figures_of(trials, conditions, metrics, over, cells, readouts)
    candidates = []
    for place, cell in enumerate(cells):
        figures = {metric.name: found.mean(metric, place) for metric in metrics}
        unfit = found.unfit.get(place, "")
        if not unfit and any(matches(cell, other) for other in excluded):
            unfit = NOT_TO_BE_CHOSEN
        n = 0 if place in found.unfit else len(found.items)
        candidates.append(judge(cell, figures, n, criteria, layers, unfit))
    taken, sentence = choose(candidates, _with_seed(rule), criteria, objective, "cell")
    told = [sentence]
    if metrics and found.items:
        lost = found.asked - len(found.items)
        left = f"; {count(lost)} without a value somewhere are left out" if lost else ""
        told.append(f"Means of {count(len(found.items))} of {plural(found.asked, 'item')}{left}.")
    by_chance = chance.cells_by_chance(criteria, candidates, found, layers, _with_seed(rule)["seed"])
    if by_chance is not None:
        told.append(chance.in_words(by_chance, _passing(candidates), len(cells), "cell"))
    n_items = len(found.items) if metrics else 0
    return Selection(_axes(taken), None, _table(candidates), " ".join(told), n_items, by_chance)


def select_rows(
    table: Sequence[Mapping[str, Any]] | pd.DataFrame,
    rule: Mapping[str, Any],
    layers: int | None,
    *,
    excluded: Sequence[Axes] = (),
) -> Selection:
    """Choose rows of an artefact's table, by its columns (`readout`) and axes (layer, position, group).

    Axes of the table that are not in `over` are averaged. The rest is as in `select_cells`. Raises ValueError
    for a column or an axis that the table does not have.
    """
    frame = table if isinstance(table, pd.DataFrame) else pd.DataFrame([dict(row) for row in table])
    criteria, objective = _rule(rule)
    metrics = _metrics(criteria, objective)
    axes = [axis for axis in _AXES if axis in frame.columns]
    over = [axis_of(str(word), axes) for word in rule.get("over") or axes]
    for metric in metrics:
        if metric.readout not in frame.columns:
            columns = [str(column) for column in frame.columns if column not in axes]
            offered = listed(columns) or "there is none"
            raise ValueError(f"expected a column of the artefact's table ({offered}), got '{metric.readout}'")
    candidates = []
    grouped = frame.groupby(over, sort=False, dropna=False) if over else [((), frame)]
    for key, held in grouped:
        cell = {axis: _plain(value) for axis, value in zip(over, key, strict=True)}
        figures = {metric.name: _mean(held[metric.readout]) for metric in metrics}
        undefined = [name for name, value in figures.items() if value is None]
        unfit = f"{listed(undefined)} undefined" if undefined else ""
        if not unfit and any(matches(cell, other) for other in excluded):
            unfit = NOT_TO_BE_CHOSEN
        candidates.append(judge(cell, figures, len(held), criteria, layers, unfit))
    taken, sentence = choose(candidates, _with_seed(rule), criteria, objective, "row")
    return Selection(_axes(taken), None, _table(candidates), sentence, 0)


def select_items(
    trials: pd.DataFrame,
    rule: Mapping[str, Any],
    *,
    conditions: Mapping[str, Any] | None = None,
    readouts: Readouts | None = None,
) -> Selection:
    """Keep the items of one measuring stage that meet every criterion of `items`.

    A figure is the item's own: the mean over its repeats (and cells, where `of` names a grid) of the readout,
    less that in `minus` within the repeat. An item without a value fails, and is counted apart. Items are
    told by donor and target; the donor is "" where they have none. Raises as `select_cells`.
    """
    criteria = [read_criterion(given) for given in rule.get("items") or ()]
    if not criteria or any(each.metric is None or each.metric.of is None for each in criteria):
        raise ValueError("items: expected criteria, each with of and readout")
    figures = item_figures(trials, criteria, conditions, readouts)
    known = trials.drop_duplicates("item").set_index("item")
    candidates = []
    for item, row in known.iterrows():
        values = {name: _number(frame.get(item)) for name, frame in figures.items()}
        undefined = [name for name, value in values.items() if value is None]
        unfit = f"no value of {listed(undefined)}" if undefined else ""
        ids = {side: _name(row.get(side)) for side in ("donor", "target")}
        candidates.append(judge({"item": item, **ids}, values, 1, criteria, None, unfit))
    kept = [each for each in candidates if each.passes]
    items = tuple(dict.fromkeys((each.axes["donor"], each.axes["target"]) for each in kept))
    told = [_kept(candidates, kept, criteria)]
    by_chance = chance.items_by_chance(criteria, candidates)
    if by_chance is not None:
        told.append(chance.in_words(by_chance, len(kept), len(candidates), "item"))
    return Selection((), items, _table(candidates), " ".join(told), len(kept), by_chance)


def item_figures(
    trials: pd.DataFrame,
    criteria: Sequence[Criterion],
    conditions: Mapping[str, Any] | None,
    readouts: Readouts | None,
) -> dict[str, pd.Series]:
    """Metric -> its value by item, for criteria that bound items. conditions: needed where one names a
    grid."""
    rows = trials[trials["status"] == "ok"]
    known = conditions or {str(name): {} for name in trials["condition"].unique()}
    metrics = dict.fromkeys(each.metric for each in criteria if each.metric is not None)
    return {metric.name: by_item(rows, known, metric, [], [{}], readouts)[0] for metric in metrics}


def _kept(candidates: Sequence[Candidate], kept: Sequence[Candidate], criteria: Sequence[Criterion]) -> str:
    told = [f"{each.words} drops {count(failures(candidates, each))}" for each in dict.fromkeys(criteria)]
    lost = sum(bool(each.unfit) for each in candidates)
    told += [f"{count(lost)} without a value"] if lost else []
    whole = plural(len(candidates), "item")
    first = f"{count(len(kept))} of {whole} kept" if kept else f"None of {whole} is kept"
    return f"{first} ({'; '.join(told)})."


def _rule(rule: Mapping[str, Any]) -> tuple[list[Criterion], Objective | None]:
    return [read_criterion(given) for given in rule.get("where") or ()], read_objective(rule)


def _with_seed(rule: Mapping[str, Any]) -> dict[str, Any]:
    seed = rule.get("seed")
    return {**rule, "seed": SEED if seed is None else int(seed)}


def _metrics(criteria: Sequence[Criterion], objective: Objective | None) -> list[Metric]:
    first = [] if objective is None else [objective.metric]
    return list(dict.fromkeys([*first, *(each.metric for each in criteria if each.metric is not None)]))


def _passing(candidates: Sequence[Candidate]) -> int:
    return sum(each.passes for each in candidates)


def _axes(taken: Sequence[Candidate]) -> tuple[dict[str, Any], ...]:
    return tuple(dict(each.axes) for each in taken)


def _table(candidates: Sequence[Candidate]) -> tuple[dict[str, Any], ...]:
    return tuple(each.row for each in candidates)


def _mean(values: pd.Series) -> float | None:
    held = pd.to_numeric(values, errors="coerce").to_numpy(dtype=float)
    return float(held.mean()) if np.isfinite(held).all() else None


def _number(value: Any) -> float | None:
    return None if value is None or np.isnan(value) else float(value)


def _name(value: object) -> str:
    return "" if value is None or (isinstance(value, float) and np.isnan(value)) else str(value)


def _plain(value: object) -> Any:
    return value.item() if isinstance(value, np.generic) else value
