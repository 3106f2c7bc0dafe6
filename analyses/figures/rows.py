"""Rows one under another with panels in them: labels on the left, figures on the right, as in a table.

Everything is placed in inches from the top, so that nothing has to be laid out twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analyses.figures.lettering import SIZE, inches
from analyses.figures.palette import ABSENT, INK, REFERENCE
from analyses.figures.style import PAGE, wrapped

LINE = 0.142  # inches from one line of type to the next
_GAP, _APART = 0.14, 0.24  # inches between columns and between panels
_TOP, _BELOW = 0.2, 0.4  # inches above the first row, and for the axis below the last
_LONGEST = 2.2  # inches of a label before it is wrapped


@dataclass(frozen=True)
class Row:
    """height: inches, more where the label has more lines. heading: over the rows below it, without marks."""

    label: str
    height: float = 0.22
    heading: bool = False


@dataclass(frozen=True)
class Column:
    """What stands right of the panels, one text for each row; right-aligned. colours: where it is not ink."""

    title: str
    cells: Sequence[str]
    colours: Sequence[str] = ()


@dataclass(frozen=True)
class Panel:
    """A panel over all rows. share: of the width that labels and columns leave."""

    title: str
    share: float = 1.0


@dataclass(frozen=True)
class Sheet:
    """panels: their y axes are inches from the top; middles: where each row has its middle."""

    figure: Figure
    panels: tuple[Axes, ...]
    middles: tuple[float, ...]


def sheet(
    rows: Sequence[Row], panels: Sequence[Panel], columns: Sequence[Column], width: float = PAGE
) -> Sheet:
    """An empty page with labels, panels and columns in place. A figure of a heading's row is bold."""
    labels = [wrapped(row.label, _LONGEST, SIZE).split("\n") for row in rows]
    heights = [max(row.height, LINE * len(lines) + 0.08) for row, lines in zip(rows, labels, strict=True)]
    # A heading in the first row has room for the titles of columns beside it.
    top = 0.0 if rows and rows[0].heading and not any(panel.title for panel in panels) else _TOP
    ends, at = [], top
    for height in heights:
        ends.append((at, at + height))
        at += height
    whole = at + _BELOW
    figure = Figure(figsize=(width, whole))

    def write(
        x: float, y: float, text: str, *, right: bool = False, bold: bool = False, colour: str = INK
    ) -> None:
        figure.text(
            x / width, 1 - y / whole, text, color=colour, va="center", ha="right" if right else "left",
            weight="bold" if bold else "normal", fontsize=SIZE,
        )  # fmt: skip

    middles = tuple((low + high) / 2 for low, high in ends)
    over = top / 2 if top else middles[0]
    for row, lines, middle in zip(rows, labels, middles, strict=True):
        for number, line in enumerate(lines):
            y = middle + (number - (len(lines) - 1) / 2) * LINE
            write(0, y, line, bold=row.heading)
    widths = [
        inches(line, weight="bold" if row.heading else "normal")
        for row, lines in zip(rows, labels, strict=True)
        for line in lines
    ]
    left = max(widths, default=0.0) + _GAP
    right = width
    for column in reversed(columns):
        colours = column.colours or [INK] * len(rows)
        for row, middle, cell, colour in zip(rows, middles, column.cells, colours, strict=True):
            write(right, middle, cell, right=True, bold=row.heading, colour=colour)
        write(right, over, column.title, right=True, colour=REFERENCE)
        right -= max(_widths(rows, column)) + _GAP
    shares = sum(panel.share for panel in panels)
    room = max(1.0, right - left - _APART * (len(panels) - 1))
    made = []
    for panel in panels:
        wide = room * panel.share / shares
        axes = figure.add_axes((left / width, _BELOW / whole, wide / width, (at - top) / whole))
        axes.set_ylim(at, top)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x", color=ABSENT, linewidth=0.5)
        axes.set_axisbelow(True)
        if panel.title:
            write(left, over, panel.title, colour=REFERENCE)
        made.append(axes)
        left += wide + _APART
    return Sheet(figure, tuple(made), middles)


def _widths(rows: Sequence[Row], column: Column) -> list[float]:
    """Inches of each text of a column."""
    cells = [
        inches(cell, weight="bold" if row.heading else "normal")
        for row, cell in zip(rows, column.cells, strict=True)
    ]
    return [inches(column.title), *cells]
