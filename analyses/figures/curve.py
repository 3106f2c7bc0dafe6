"""Lines with their 95% bands: a readout along an axis of a grid, or a list readout along the layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analyses.figures.lettering import SIZE
from analyses.figures.palette import ABSENT, COLOURS, CONTROL, INK, REFERENCE
from analyses.figures.scales import (
    alpha_units,
    is_rank,
    is_share,
    layers_read,
    onset_of,
    readout_label,
    scale_of,
)
from analyses.figures.style import COLUMN, CONTROL_DASHES, MARKERS, PAGE, Page, blank, legend, ticks
from analyses.figures.subject import NotDrawn, Role, Shown, Subject
from analyses.findings.measured import Estimate
from analyses.tables.cells import axis_key, axis_named

_PER_ROW, _PANEL = 4, 1.9
_MARKED = 14  # points of a line that are marked one by one


@dataclass(frozen=True)
class Line:
    """One line. places and estimates go together; an estimate is None where nothing is known. flat: a
    condition without the axis, the same everywhere. key: of its look, the same in all panels. by: the value
    that it is of, on a figure that is apart by one."""

    key: str
    label: str
    role: Role
    places: tuple[float, ...]
    estimates: tuple[Estimate | None, ...]
    flat: bool = False
    by: Any = None
    onset: Estimate | None = None


class LineOf(Protocol):
    """Makes the line of a condition or grid, from the items of a subject."""

    def __call__(self, of: Subject, shown: Shown, label: str, key: str, by: Any = None) -> Line: ...


@dataclass(frozen=True)
class Panel:
    title: str
    lines: tuple[Line, ...]
    unit: str = ""
    by: Any = None


def curve(subject: Subject) -> Page:
    """`readout` along x. A line for each condition or grid of `of`; one without the axis is level, and so is
    `against`, which is drawn and not subtracted. by: of one grid, a line for each value; of several, a panel.
    Grids whose alpha is counted in other units stand in panels of their own."""
    word = str(subject.spec["x"])
    scale = scale_of(subject, word)

    def line(of: Subject, shown: Shown, label: str, key: str, by: Any = None) -> Line:
        if subject.axis(word, shown) is None:
            level = of.estimate(shown)
            return Line(key, label, shown.role, scale.places, (level,) * len(scale.places), True, by)
        keys = {axis_key(cell[str(subject.axis(word, shown))]) for cell in shown.cells.values()}
        values = [v for v in subject.values(word) if axis_key(v) in keys]
        places = tuple(float(scale.places[scale.keys.index(axis_key(value))]) for value in values)
        estimates = tuple(of.estimate(subject.at(shown, word, value)) for value in values)
        return Line(key, label, shown.role, places, estimates, by=by)

    panels = _by_unit(subject, word, _panels(subject, line))
    figure, grid = _page(subject, panels)
    notes = []
    for axes, panel in zip(grid, panels, strict=True):
        ticks(axes, "x", scale)
        if scale.numeric and min(scale.places) < 0 < max(scale.places):
            axes.axvline(0, color=ABSENT, linewidth=0.6, zorder=0)
        if scale.numeric and len(scale.places) > 1:
            room = 0.04 * (max(scale.places) - min(scale.places))
            axes.set_xlim(min(scale.places) - room, max(scale.places) + room)
        notes += _chosen(subject, axes, panel, word, [subject.axis(word, s) for s in subject.shown])
        for finding, value in subject.published_at(word).items():
            axes.axvline(value, color=INK, linestyle=(0, (2, 2)), linewidth=1)
            notes.append(f"Dashed: published ({finding}).")
    _name_x(figure, grid, [f"{scale.label} ({each.unit})" if each.unit else scale.label for each in panels])
    return _finished(subject, figure, panels, list(dict.fromkeys(notes)))


def layers(subject: Subject) -> Page:
    """A list readout along its layers: the mean of each layer. A line for each condition of `of`, and one for
    `against`. Where the stage has an onset readout of the same list, its mean is a triangle on the x axis
    with its interval. by: as in `curve`."""
    read = layers_read(subject)
    if not read:
        raise NotDrawn(f"{subject.readout}: expected a readout that is a list by layer")
    onset = onset_of(subject)

    def line(of: Subject, shown: Shown, label: str, key: str, by: Any = None) -> Line:
        estimates = tuple(of.estimate(shown, f"{subject.readout}[{layer}]") for layer in read)
        first = None if onset is None else of.estimate(shown, onset)
        return Line(key, label, shown.role, tuple(map(float, read)), estimates, False, by, first)

    panels = _panels(subject, line)
    figure, grid = _page(subject, panels)
    for axes in grid:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=10, integer=True, min_n_ticks=1))
    _name_x(figure, grid, ["layer"] * len(grid))
    found = any(line.onset is not None for panel in panels for line in panel.lines)
    notes = [f"Triangle: mean {onset}, of the trials that have one."] if found else []
    return _finished(subject, figure, panels, notes)


def _name_x(figure: Figure, grid: Sequence[Axes], labels: Sequence[str]) -> None:
    """The name of the x axis: once where all panels have the same."""
    if len(grid) > 1 and len(set(labels)) == 1:
        figure.supxlabel(labels[0], fontsize=SIZE)
        return
    for axes, label in zip(grid, labels, strict=True):
        axes.set_xlabel(label)


def _panels(subject: Subject, line: LineOf) -> list[Panel]:
    shown = list(subject.shown)
    if subject.against is not None and subject.against.name not in [each.name for each in shown]:
        role: Role = "reference" if subject.against.role == "reference" else "control"
        shown.append(replace(subject.against, role=role))
    by = subject.spec.get("by")
    if by is None:
        return [Panel("", tuple(line(subject, each, each.label, each.name) for each in shown))]
    cuts: list[tuple[Any, Subject]]
    if by == "group":
        cuts = [(group, subject.of_group(group)) for group in subject.groups()]
    else:
        cuts = [(value, subject) for value in subject.values(str(by))]

    def cut(each: Shown, value: Any) -> Shown:
        return each if by == "group" else subject.at(each, str(by), value)

    if len(subject.shown) == 1 and len(cuts) <= len(COLOURS):
        first = shown[0]
        lines = [line(of, cut(first, value), str(value), axis_key(value), value) for value, of in cuts]
        lines += [line(subject, each, each.label, each.name) for each in shown[1:]]
        return [Panel("", tuple(lines))]
    return [
        Panel(
            str(value) if by == "group" else f"{str(by).rpartition('.')[2]} {value}",
            tuple(line(of, cut(each, value), each.label, each.name) for each in shown),
            by=value,
        )
        for value, of in cuts
    ]


def _by_unit(subject: Subject, word: str, panels: Sequence[Panel]) -> list[Panel]:
    """Lines whose alpha is counted in the same unit stand together; level ones in each."""
    units = {shown.name: alpha_units(subject, shown, word) for shown in subject.shown}
    kinds = list(dict.fromkeys(unit for unit in units.values() if unit))
    if len(kinds) < 2:
        return [replace(panel, unit=kinds[0] if kinds else "") for panel in panels]
    return [
        replace(panel, unit=kind, lines=tuple(x for x in panel.lines if units.get(x.key, "") in ("", kind)))
        for panel in panels
        for kind in kinds
    ]


def _page(subject: Subject, panels: Sequence[Panel]) -> tuple[Figure, list[Axes]]:
    """The panels with their lines, the readout's axis and one legend."""
    per_row = min(len(panels), _PER_ROW)
    rows = -(-len(panels) // per_row)
    width = COLUMN if per_row == 1 else min(PAGE, per_row * 1.75 + 0.9)
    figure = blank(width, rows * (_PANEL + 0.35))
    grid = figure.subplots(rows, per_row, sharey=True, squeeze=False)
    used: list[Axes] = []
    looks = _looks(panels)
    for place, axes in enumerate(grid.flat):
        if place >= len(panels):
            axes.set_visible(False)
            continue
        used.append(axes)
        for line in panels[place].lines:
            _draw(axes, line, looks[line.key])
        axes.set_title(panels[place].title)
        if place % per_row == 0:
            axes.set_ylabel(readout_label(subject))
    if is_rank(subject):
        used[0].set_yscale("symlog", linthresh=1)
        used[0].set_ylim(bottom=0)
    elif is_share(subject):
        used[0].set_ylim(-0.02, 1.02)
    by = subject.spec.get("by")
    apart = any(line.by is not None for panel in panels for line in panel.lines)
    legend(figure, used, width, str(by) if apart else "")
    return figure, used


@dataclass(frozen=True)
class Look:
    colour: str
    dashes: tuple[float, ...]
    marker: str

    @property
    def style(self) -> Any:
        """As matplotlib calls a line's style."""
        return (0, self.dashes) if self.dashes else "-"


def _looks(panels: Sequence[Panel]) -> dict[str, Look]:
    """Treatments in colours, controls in grey dashes, references in dark grey: the same in all panels."""
    roles = {line.key: line.role for panel in panels for line in panel.lines}
    found = {}
    numbers: dict[str, int] = dict.fromkeys(("treatment", "control", "reference"), 0)
    for key, role in roles.items():
        number = numbers[role]
        numbers[role] += 1
        if role == "treatment":
            again = () if number < len(COLOURS) else CONTROL_DASHES[0]
            found[key] = Look(COLOURS[number % len(COLOURS)], again, MARKERS[number % len(MARKERS)])
        else:
            colour = CONTROL if role == "control" else REFERENCE
            found[key] = Look(colour, CONTROL_DASHES[number % len(CONTROL_DASHES)], "")
    return found


def _draw(axes: Axes, line: Line, look: Look) -> None:
    """A line over the places that have a value, its band where there is an interval."""
    mean, low, high = (
        np.array(
            [np.nan if each is None or (v := getattr(each, end)) is None else v for each in line.estimates]
        )
        for end in ("value", "low", "high")
    )
    x = np.array(line.places)
    if line.flat:
        axes.axhline(mean[0], color=look.colour, linestyle=look.style, linewidth=1.1, label=line.label)
        if np.isfinite(low[0]):
            axes.axhspan(low[0], high[0], color=look.colour, alpha=0.12, linewidth=0)
        return
    marker = look.marker if len(x) <= _MARKED else ""
    axes.plot(x, mean, color=look.colour, linestyle=look.style, marker=marker, label=line.label)
    axes.fill_between(x, low, high, color=look.colour, alpha=0.18, linewidth=0)
    if line.onset is not None:
        foot, low_end, high_end = axes.get_xaxis_transform(), line.onset.low, line.onset.high
        if low_end is not None and high_end is not None:
            axes.hlines(0.015, low_end, high_end, color=look.colour, transform=foot, linewidth=1.4)
        axes.plot(
            [line.onset.value],
            [0.015],
            marker="^",
            color=look.colour,
            transform=foot,
            markersize=6,
            clip_on=False,
        )


def _chosen(subject: Subject, axes: Axes, panel: Panel, word: str, names: Sequence[str | None]) -> list[str]:
    """A ring around the chosen points of the treatments."""
    by = subject.spec.get("by")
    notes = []
    for choice in subject.chosen():
        for cell in choice.cells:
            axis = axis_named(word, list(cell))
            if axis is None or axis not in names:
                continue
            apart = None if by in (None, "group") else axis_named(str(by), list(cell))
            for line in panel.lines:
                cut = panel.by if line.by is None else line.by
                if line.flat or line.role != "treatment":
                    continue
                if apart is not None and cut is not None and axis_key(cell[apart]) != axis_key(cut):
                    continue
                place = next(
                    (i for i, x in enumerate(line.places) if _is(subject, word, x, cell[axis])), None
                )
                if place is None or (point := line.estimates[place]) is None:
                    continue
                axes.plot([line.places[place]], [point.value], marker="o", markersize=9, color="none",
                          markeredgecolor=INK, markeredgewidth=1.1, zorder=5)  # fmt: skip
                notes.append(f"Ring: choice {choice.choice}.")
    return notes


def _is(subject: Subject, word: str, place: float, value: Any) -> bool:
    return scale_of(subject, word).place(value) == place


def _finished(subject: Subject, figure: Figure, panels: Sequence[Panel], notes: Sequence[str]) -> Page:
    estimates = [each for panel in panels for line in panel.lines for each in line.estimates]
    bands = "Bands: 95% interval of the mean, clustered by donor and target."
    if all(each is None or each.share for each in estimates):
        bands = "Bands: 95% interval of the share (Wilson, effective n by donors and targets)."
    gone = any(each is None for each in estimates)
    gaps = ["Gaps: no valid trial."] if gone else []
    return Page(figure, subject.title, subject.caption(estimates, bands, *notes, *gaps))
