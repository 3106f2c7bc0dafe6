"""The means of the cells of a grid over two of its axes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analyses.figures.scales import Scale
from analyses.figures.subject import NotDrawn, Shown, Subject, same_cell
from analyses.tables.cells import UNIT, values_of


@dataclass(frozen=True)
class Heat:
    """means, items and trials: [len(y), len(x)]; a mean is NaN where the grid has no such cell (`ran` False)
    or no valid trial has a value in it. Other axes of the grid are averaged over."""

    means: NDArray[np.float64]
    items: NDArray[np.int64]
    trials: NDArray[np.int64]
    ran: NDArray[np.bool_]


def heat(subject: Subject, shown: Shown, x: Scale, y: Scale) -> Heat:
    """The mean of the readout in each cell, less that of `against` on the same items and repeats: of its only
    condition, or of the cell that agrees with this one in the axes that both grids have."""
    names = {axis: subject.axis(axis.name, shown) for axis in (x, y)}
    missing = [axis.name for axis, name in names.items() if name is None]
    if missing:
        raise NotDrawn(f"{shown.name} has no axis {' and '.join(missing)}")
    against = subject.against
    values = _values(subject, [*shown.cells, *(against.cells if against else ())])
    parts: dict[tuple[int, int], list[pd.Series]] = {}
    ran = np.zeros((len(y.keys), len(x.keys)), dtype=bool)
    for name, cell in shown.cells.items():
        column, row = (axis.place(cell[str(names[axis])]) for axis in (x, y))
        assert column is not None and row is not None
        at = y.places.index(row), x.places.index(column)
        ran[at] = True
        found = values[name]
        if against is not None:
            found = found - values[_partner(against, shown, name)]
        parts.setdefault(at, []).append(found.dropna())
    means = np.full(ran.shape, np.nan)
    items, trials = np.zeros(ran.shape, dtype=np.int64), np.zeros(ran.shape, dtype=np.int64)
    for at, series in parts.items():
        whole = pd.concat(series)
        if len(whole):
            means[at] = whole.mean()
            items[at] = whole.index.get_level_values("item").nunique()
            trials[at] = max(len(each) for each in series)
    return Heat(means, items, trials, ran)


def _values(subject: Subject, names: list[str]) -> Mapping[str, pd.Series]:
    """The values of each condition, by item and repeat."""
    trials = subject.run.trials
    rows = trials[trials["condition"].isin(names) & (trials["status"] == "ok")]
    try:
        values = values_of(rows, subject.readout, subject.run.manifest.get("readout"))
    except KeyError as error:
        raise NotDrawn(str(error.args[0])) from error
    by_unit = values.set_axis(pd.MultiIndex.from_frame(rows[UNIT]))
    conditions = rows["condition"].to_numpy()
    return {name: by_unit[conditions == name] for name in names}


def _partner(against: Shown, shown: Shown, name: str) -> str:
    if len(against.cells) == 1:
        return next(iter(against.cells))
    found = [other for other, cell in against.cells.items() if same_cell(shown.cells[name], cell)]
    if len(found) != 1:
        raise NotDrawn(f"{against.name} has {len(found)} cells that agree with {name}, expected one")
    return found[0]
