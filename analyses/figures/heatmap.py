"""A grid over two of its axes, as colours."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import cast

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, TwoSlopeNorm
from matplotlib.patches import Rectangle
from matplotlib.spines import Spine

from analyses.figures.heat import Heat, heat
from analyses.figures.lettering import inches
from analyses.figures.palette import ABSENT, INK, PAPER
from analyses.figures.scales import Scale, alpha_units, is_share, readout_label, scale_of
from analyses.figures.style import COLUMN, PAGE, Page, blank, fitted
from analyses.figures.subject import NotDrawn, Shown, Subject
from analyses.tables.cells import Axes as Cell
from analyses.tables.cells import axis_key, axis_named

_CELL, _SIDE, _BELOW = 0.3, 1.3, 0.75  # inches: a cell, and what labels and colour bar need


def heatmap(subject: Subject) -> Page:
    """A panel for each grid of `of`, all on one colour scale: diverging around 0 where `against` is given or
    the means have both signs. Cells that the grid does not have, or of which no trial is valid, are grey
    (crossed: none valid); a chosen cell is outlined, and one that its criteria rule out has a dot."""
    x, y = (scale_of(subject, str(subject.spec[key])) for key in ("x", "y"))
    panels = [(shown, heat(subject, shown, x, y)) for shown in subject.shown]
    means = np.concatenate([found.means.ravel() for _, found in panels])
    known = means[np.isfinite(means)]
    if not len(known):
        raise NotDrawn(f"no cell of {subject.readout} has a value")
    norm, colours = _colours(subject, known)
    per_row = min(len(panels), 3)
    rows = -(-len(panels) // per_row)
    wide = max(_CELL, 0.0 if x.layer else max(inches(tick) for tick in x.ticks) / 0.8)
    width = min(PAGE, max(COLUMN, per_row * len(x.keys) * wide + _SIDE))
    each = max(2, len(y.keys)) * _cell(width, per_row, len(x.keys), len(y.keys))
    flat = rows == 1 and len(y.keys) <= 4
    figure = blank(width, 0.5 * flat + rows * (each + _BELOW))
    grid = figure.subplots(rows, per_row, sharex=True, sharey=True, squeeze=False)
    used = list(grid.flat)[: len(panels)]
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_visible(False)
    for place, (axes, (shown, found)) in enumerate(zip(used, panels, strict=True)):
        image = axes.imshow(
            np.ma.masked_invalid(found.means), norm=norm, cmap=colours, origin="lower", aspect="auto",
            interpolation="nearest",
        )  # fmt: skip
        _grey(axes, found)
        _frame(axes, x, y, (width - _SIDE) / per_row / len(x.keys))
        if len(panels) > 1:
            axes.set_title(textwrap.fill(shown.label, max(16, int(width / per_row / 0.075))))
        if place % per_row == 0:
            axes.set_ylabel(fitted(y.label, each))
        if place >= len(panels) - per_row:
            unit = alpha_units(subject, shown, x.name)
            axes.set_xlabel(f"{x.label} ({unit})" if unit else x.label)
            axes.tick_params(axis="x", labelbottom=True)
    empty = {
        (int(column), int(row))
        for _, found in panels
        for row, column in zip(*np.nonzero(np.isnan(found.means)), strict=True)
    }
    notes = _marks(subject, used, x, y, empty)
    less = "" if subject.against is None else subject.against.name
    # Beside a flat grid there is no room for the words.
    label = readout_label(subject, less)
    if flat:
        bar = figure.colorbar(image, ax=grid, label=label, location="bottom", aspect=32, fraction=0.08)
    else:
        bar = figure.colorbar(image, ax=grid, label=fitted(label, rows * each), aspect=14, pad=0.02)
    cast(Spine, bar.outline).set_linewidth(0.6)
    numbers = [
        (int(items), int(trials))
        for _, found in panels
        for items, trials in zip(found.items.ravel(), found.trials.ravel(), strict=True)
        if items
    ]
    what = "Colour: mean" if not less else f"Colour: paired mean difference from {less}"
    return Page(figure, subject.title, subject.caption_of(numbers, f"{what}.", *notes, *_greys(panels)))


def _colours(subject: Subject, known: np.ndarray) -> tuple[Normalize, str]:
    low, high = float(known.min()), float(known.max())
    if subject.against is not None or low < 0 < high:
        most = max(abs(low), abs(high)) or 1.0
        return TwoSlopeNorm(0.0, -most, most), "RdBu_r"
    if is_share(subject):
        return Normalize(0.0, 1.0), "cividis"
    return Normalize(low, high if high > low else low + 1.0), "cividis"


def _cell(width: float, panels: int, columns: int, rows: int) -> float:
    """The height of a cell: square, but not so flat that a label does not fit or so tall that it looms."""
    return min(0.34, max(0.17, (width - _SIDE) / panels / columns)) if rows > 3 else 0.34


def _frame(axes: Axes, x: Scale, y: Scale, cell: float) -> None:
    """Ticks of every value, of numbers every second, third, ... where they are many. cell: its width in
    inches; words that are wider stand upright."""
    for side, scale, most in ((axes.xaxis, x, 16), (axes.yaxis, y, 24)):
        step = -(-len(scale.keys) // most) if scale.numeric else 1
        side.set_ticks(range(0, len(scale.keys), step), list(scale.ticks)[::step])
        side.set_tick_params(length=0)
    if not x.layer and max(inches(tick) for tick in x.ticks) > 0.85 * cell:
        axes.tick_params(axis="x", labelrotation=90)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _grey(axes: Axes, found: Heat) -> None:
    for row, column in zip(*np.nonzero(np.isnan(found.means)), strict=True):
        axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=ABSENT, edgecolor="none"))
        if found.ran[row, column]:
            axes.plot([column], [row], marker="x", color=INK, markersize=4, markeredgewidth=0.8)


def _greys(panels: Sequence[tuple[Shown, Heat]]) -> list[str]:
    ran = [found.ran & np.isnan(found.means) for _, found in panels]
    absent = [~found.ran for _, found in panels]
    told = []
    if any(each.any() for each in absent):
        told.append("Grey: not in the grid.")
    if any(each.any() for each in ran):
        told.append("Crossed: no valid trial.")
    return told


def _marks(
    subject: Subject, panels: list[Axes], x: Scale, y: Scale, empty: set[tuple[int, int]]
) -> list[str]:
    """Outline the chosen cells, put a dot into those that failed, and draw the published layer."""
    notes = []
    for choice in subject.chosen():
        chosen = [at for cell in choice.cells if (at := _at(cell, x, y)) is not None]
        failed = {at for cell in choice.failed if (at := _at(cell, x, y)) is not None}
        passed = {at for cell in choice.passed if (at := _at(cell, x, y)) is not None}
        if not chosen:
            continue
        # Of cells that differ in another axis, one passes; of those without a value, the cross says so.
        failed -= passed | empty
        for axes in panels:
            for column, row in sorted(failed):
                axes.plot(
                    [column], [row], marker="o", color=PAPER, markeredgecolor=INK, markersize=2.6,
                    markeredgewidth=0.5,
                )  # fmt: skip
            for column, row in chosen:
                for width, colour in ((2.6, PAPER), (1.4, INK)):
                    axes.add_patch(
                        Rectangle(
                            (column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor=colour, linewidth=width
                        )
                    )
        notes.append(f"Outlined: choice {choice.choice}.")
        if failed:
            notes.append("Dot: fails its criteria.")
    for along, scale in (("x", x), ("y", y)):
        for finding, value in subject.published_at(scale.name).items():
            for axes in panels:
                line = axes.axvline if along == "x" else axes.axhline
                line(value, color=INK, linestyle=(0, (2, 2)), linewidth=1)
            notes.append(f"Dashed: published ({finding}).")
    return notes


def _at(cell: Cell, x: Scale, y: Scale) -> tuple[int, int] | None:
    """Column and row of a cell; None where it is not on the figure."""
    found = []
    for scale in (x, y):
        axis = axis_named(scale.name, list(cell))
        if axis is None or axis_key(cell[axis]) not in scale.keys:
            return None
        found.append(scale.keys.index(axis_key(cell[axis])))
    return found[0], found[1]
