"""How figures look: type, colours, page, and how they are written so that equal data give equal bytes."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator
from matplotlib.transforms import Bbox

from analyses.figures.inline import inline
from analyses.figures.lettering import FAMILY, SIZE, inches
from analyses.figures.palette import INK, REFERENCE
from analyses.figures.scales import Scale

COLUMN, PAGE = 3.4, 7.0  # inches: one column of a paper, and both
MARKERS = ("o", "s", "^", "D", "v", "P", "X")  # one more than colours: 42 pairs before any comes again
CONTROL_DASHES = ((3.0, 1.5), (1.0, 1.2), (5.0, 1.5, 1.0, 1.5), (7.0, 2.0))
_STYLE: dict[Any, Any] = {
    "font.family": FAMILY,
    "font.size": SIZE,
    "axes.titlesize": SIZE,
    "axes.labelsize": SIZE,
    "xtick.labelsize": SIZE,
    "ytick.labelsize": SIZE,
    "legend.fontsize": SIZE,
    "legend.title_fontsize": SIZE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "axes.titlelocation": "left",
    "axes.titlepad": 4.0,
    "lines.linewidth": 1.4,
    "lines.markersize": 4.0,
    "legend.frameon": False,
    "legend.handlelength": 2.2,
    "legend.borderaxespad": 0.2,
    "hatch.linewidth": 0.5,
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
    # Labels are words of an experiment: a $ in them is a $.
    "text.parse_math": False,
    # Marks that stand for trials are not thinned out.
    "path.simplify": False,
    "savefig.dpi": 200,
    "figure.dpi": 200,
}


@dataclass(frozen=True)
class Page:
    """A figure with the line below it."""

    figure: Figure
    title: str
    caption: str


@dataclass(frozen=True)
class Saved:
    """A page as it was written: the files, and the figure alone, without title and caption, as an inline
    SVG."""

    paths: tuple[Path, ...]
    svg: str


@contextmanager
def drawing() -> Iterator[None]:
    """The style of this project, whatever the settings of the process and its user are."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def blank(width: float, height: float) -> Figure:
    """An empty figure of this size in inches; without pyplot, so that nothing is kept between figures."""
    return Figure(figsize=(width, height), layout="constrained")


def save(page: Page, folder: Path, name: str) -> Saved:
    """Write a page as PNG and PDF, title above and caption below, wrapped to its width; and the same figure
    as an inline SVG, without them. It is laid out once for all three."""
    folder.mkdir(parents=True, exist_ok=True)
    figure = page.figure
    width, height = figure.get_size_inches()
    if figure.get_layout_engine() is not None:
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
    body = figure.get_tightbbox()
    svg = inline(figure, _padded(body), name, f"{page.title}. {page.caption}" if page.title else page.caption)
    if page.title:
        title = wrapped(page.title, width, SIZE + 1)
        at = (body.y1 + 0.05) / height
        figure.text(0, at, title, fontsize=SIZE + 1, weight="bold", va="bottom")
    caption = wrapped(page.caption, width, SIZE)
    figure.text(0, (body.y0 - 0.06) / height, caption, fontsize=SIZE, va="top", color=REFERENCE)
    whole = _padded(figure.get_tightbbox())
    kept = {"png": {"Software": None}, "pdf": {"CreationDate": None, "Creator": None, "Producer": None}}
    paths = []
    for kind, metadata in kept.items():
        path = folder / f"{name}.{kind}"
        figure.savefig(path, format=kind, metadata=metadata, bbox_inches=whole)
        paths.append(path)
    return Saved(tuple(paths), svg)


def _padded(box: Bbox) -> Bbox:
    return box.padded(0.05)


def wrapped(text: str, width: float, size: float) -> str:
    """Text in lines that are at most `width` inches wide."""
    if not text:
        return ""
    whole = inches(text, size)
    letters = len(text) if whole <= width else max(12, int(len(text) * width / whole * 0.97))
    return "\n".join(textwrap.wrap(text, letters))


def ticks(axes: Axes, along: str, scale: Scale) -> None:
    """Ticks of an axis (`x` or `y`): whole numbers for layers, each value where they are few."""
    side = axes.xaxis if along == "x" else axes.yaxis
    if scale.layer:
        side.set_major_locator(MaxNLocator(nbins=10, integer=True, min_n_ticks=1))
        return
    if not scale.numeric or len(scale.places) <= 8:
        side.set_major_locator(FixedLocator(list(scale.places)))
        side.set_ticklabels(list(scale.ticks))
    if along == "x" and not scale.numeric and sum(map(len, scale.ticks)) > 40:
        axes.tick_params(axis="x", labelrotation=35)


def legend(figure: Figure, panels: Sequence[Axes], width: float, title: str = "", least: int = 2) -> None:
    """One legend for all panels, above them, where there are at least so many things to tell apart."""
    found: dict[str, Artist] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    if len(found) >= least:
        names = list(found)
        columns = columns_for(names, width)
        above(figure, list(found.values()), names, columns, title)


def above(
    figure: Figure, handles: Sequence[Artist], labels: Sequence[str], columns: int, title: str = ""
) -> None:
    """A legend on top of the page, outside of what is laid out."""
    figure.legend(
        list(handles), list(labels), loc="lower left", bbox_to_anchor=(0, 1), ncols=columns,
        columnspacing=1.2, title=title or None, alignment="left",
    )  # fmt: skip


def columns_for(labels: Sequence[str], width: float) -> int:
    """How many columns a legend of these labels has on a page of `width` inches."""
    longest = max(inches(label) for label in labels)
    return max(1, min(len(labels), int(width / (longest + 0.5))))


def fitted(label: str, length: float) -> str:
    """A label for an axis of this length in inches: where it is longer, what stands in brackets is below."""
    return label if inches(label) <= length else label.replace(" (", "\n(", 1)
