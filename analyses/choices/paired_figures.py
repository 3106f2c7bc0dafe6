"""The figures that cells are chosen by: paired within item and repeat, all of the same items."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analyses.choices.criteria import Metric
from analyses.tables.cells import UNIT, Axes, axis_key, axis_named, cells_of, grids_of, values_of
from analyses.wording import count, listed, plural

FEWEST = 0.5  # a cell in which fewer of the items have a value fails, and costs the other cells no item
Readouts = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Figures:
    """Metrics by item (rows) and place of the cell (columns). items: those with a value of every metric in
    every cell but those in `unfit`, which says why they are not judged; asked: items that there were."""

    frames: Mapping[Metric, pd.DataFrame]
    items: tuple[Any, ...]
    unfit: Mapping[int, str]
    asked: int

    def mean(self, metric: Metric, place: int) -> float | None:
        """The mean over the items; None for a cell that is not judged."""
        if place in self.unfit or not self.items:
            return None
        # Exact, so that neither the order of the items nor rounding decides a tie or a bound at 0.
        return math.fsum(self.frames[metric].loc[list(self.items), place]) / len(self.items)


def figures_of(
    trials: pd.DataFrame,
    conditions: Mapping[str, Any],
    metrics: Sequence[Metric],
    over: Sequence[str],
    cells: Sequence[Axes],
    readouts: Readouts | None,
) -> Figures:
    """The metrics in every cell. A cell in which less than half of the items have a value is not judged; of
    the others, an item without a value in one is left out of all. Raises as `by_item`."""
    rows = trials[trials["status"] == "ok"]
    asked = int(trials["item"].nunique())
    frames = {metric: by_item(rows, conditions, metric, over, cells, readouts) for metric in metrics}
    unfit: dict[int, str] = {}
    for metric, frame in frames.items():
        for place in range(len(cells)):
            valid = int(frame[place].notna().sum())
            if valid == 0:
                unfit.setdefault(place, f"no item has a value of {metric.words}")
            elif valid < FEWEST * asked:
                few = f"{count(valid)} of {plural(asked, 'item')} have a value of {metric.words}"
                unfit.setdefault(place, few)
    live = [place for place in range(len(cells)) if place not in unfit]
    items = [item for item in rows["item"].drop_duplicates()] if live else []
    for frame in frames.values():
        whole = frame[live].notna().all(axis=1)
        kept = set(whole.index[whole.to_numpy()])
        items = [item for item in items if item in kept]
    if metrics and live and not items:
        unfit |= dict.fromkeys(live, "no item has a value in every cell")
    return Figures(frames, tuple(items), unfit, asked)


def universe(
    conditions: Mapping[str, Any], metrics: Sequence[Metric], words: Sequence[str]
) -> tuple[list[str], list[Axes]]:
    """The axes of a choice and its cells: those of every named grid that has all the axes, in the order of
    the metrics; of every such grid where none is named. Raises ValueError where there is none."""
    grids = grids_of(conditions)
    axes = list(dict.fromkeys(axis for cells in grids.values() for each in cells.values() for axis in each))
    over = [axis_of(word, axes) for word in words]
    if not over:
        raise ValueError("over: expected the axes of a grid, got none")
    named = [name for metric in metrics for name in (metric.of, metric.minus) if name in grids]
    found: dict[tuple[str, ...], Axes] = {}
    for name in dict.fromkeys(named or grids):
        for each in grids[str(name)].values():
            if all(axis in each for axis in over):
                cell = {axis: each[axis] for axis in over}
                found.setdefault(tuple(axis_key(value) for value in cell.values()), cell)
    if not found:
        raise ValueError(f"over: no grid that the rule names has the axes {listed(over)}")
    return over, list(found.values())


def axis_of(word: str, axes: Sequence[str]) -> str:
    """The axis that a word means. Raises ValueError for one that is not there."""
    found = axis_named(word, axes)
    if found is None:
        raise ValueError(f"over: expected an axis ({listed(list(axes)) or 'there is none'}), got '{word}'")
    return found


def by_item(
    rows: pd.DataFrame,
    conditions: Mapping[str, Any],
    metric: Metric,
    over: Sequence[str],
    cells: Sequence[Axes],
    readouts: Readouts | None,
) -> pd.DataFrame:
    """A metric by item (rows) and place of the cell (columns): the mean over repeats, paired within each; NaN
    where a repeat has no value. rows: valid trials. Raises ValueError for a condition or an axis that is not
    there, KeyError for a readout."""
    held = _by_unit(rows, conditions, metric.of, metric.readout, over, cells, readouts)
    if metric.minus is not None:
        held = held - _by_unit(rows, conditions, metric.minus, metric.readout, over, cells, readouts)
    apart = held.groupby(level="item", sort=False)
    return apart.mean().where(apart.count().eq(apart.size(), axis=0))


def _by_unit(
    rows: pd.DataFrame,
    conditions: Mapping[str, Any],
    of: str | None,
    readout: str,
    over: Sequence[str],
    cells: Sequence[Axes],
    readouts: Readouts | None,
) -> pd.DataFrame:
    """Values by item and repeat (rows) and place of the cell (columns). A condition that is no grid has the
    same value in every cell, a grid that lacks an axis the same along it; axes that are not chosen between
    are averaged, where all of their values are there."""
    members = cells_of(conditions, str(of))
    if not members:
        known = list(dict.fromkeys((*grids_of(conditions), *conditions)))
        raise ValueError(f"of: expected a condition or grid of the stage ({listed(known)}), got '{of}'")
    shared = [axis for axis in over if all(axis in each for each in members.values())]
    if over and not shared and len(members) > 1:
        raise ValueError(f"of: '{of}' is a grid without an axis of {listed(list(over))}")
    keys = {name: tuple(axis_key(each[axis]) for axis in shared) for name, each in members.items()}
    places = {key: number for number, key in enumerate(dict.fromkeys(keys.values()))}
    sizes = pd.Series(list(keys.values())).map(places).value_counts()
    mine = rows[rows["condition"].isin(list(members))]
    at = mine["condition"].map({name: places[key] for name, key in keys.items()})
    frame = mine[UNIT].assign(at=at, value=values_of(mine, readout, readouts)).dropna(subset=["value"])
    apart = frame.groupby([*UNIT, "at"], sort=False)["value"]
    means, numbers = apart.mean().unstack("at"), apart.count().unstack("at")
    units = pd.MultiIndex.from_frame(rows[UNIT].drop_duplicates())
    found = {}
    for place, cell in enumerate(cells):
        number = places.get(tuple(axis_key(cell[axis]) for axis in shared))
        if number is None or number not in means.columns:
            found[place] = pd.Series(np.nan, index=units)
        else:
            whole = means[number].where(numbers[number] == sizes[number])
            found[place] = whole.reindex(units)
    return pd.DataFrame(found, index=units).astype(float)
