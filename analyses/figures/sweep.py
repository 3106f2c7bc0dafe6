"""What a sweep compares between models: the depth of findings, and findings against the size of the model."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from analyses.figures.lettering import SIZE
from analyses.figures.palette import COLOURS, CONTROL, INK, PAPER, REFERENCE
from analyses.figures.style import COLUMN, MARKERS, PAGE, Page, blank, legend
from analyses.figures.subject import NotDrawn, is_number
from analyses.findings.cross_model import published
from analyses.wording import plural

_PUBLISHED_LAYERS = "two_hop.{model}.layers"  # L of the models of the published figures
_PER_ROW = 3


@dataclass(frozen=True)
class Found:
    """A finding of one job. size: parameters of its model where the run records them."""

    experiment: str
    finding: str
    label: str
    model: str
    layers: int | None
    size: int | None
    value: Any
    low: float | None
    high: float | None
    unit: str
    kind: str
    depth: float | None
    published: Mapping[str, Any]

    @property
    def name(self) -> tuple[str, str]:
        return self.experiment, self.finding


def depth(told: Mapping[str, Any]) -> Page:
    """The depth (layer / L) of every chosen layer, by model; each finding has its colour and marker. Open
    markers are published ones, of models whose L is known. told: the `summary.json` of a sweep."""
    rows = [each for each in _found(told) if each.kind == "choice" and each.depth is not None]
    if not rows:
        raise NotDrawn("no finding of the sweep is the layer of a choice")
    labels = _labels(rows)
    known = _published_layers()
    own = list(dict.fromkeys(each.model for each in rows))
    beside: dict[tuple[str, str], dict[str, float]] = {}
    for each in rows:
        for model, value in (each.published.get("models") or {}).items():
            if is_number(value) and model in known:
                beside.setdefault(each.name, {})[model] = value / known[model]
    same = {each.published.get("model"): each.model for each in rows if each.published.get("model")}
    models = [*own, *sorted({m for held in beside.values() for m in held if m not in same})]
    width = max(COLUMN, min(PAGE, 1.0 + 0.55 * len(models)))
    figure = blank(width, 2.5)
    axes = figure.subplots()
    for number, (name, label) in enumerate(labels.items()):
        look: dict[str, Any] = {"marker": MARKERS[number % len(MARKERS)], "linestyle": "", "markersize": 6}
        colour, shift = COLOURS[number % len(COLOURS)], _shift(number, len(labels))
        mine = [each for each in rows if each.name == name]
        axes.plot([models.index(e.model) + shift for e in mine], [e.depth or 0.0 for e in mine], color=colour,
                  label=label, **look)  # fmt: skip
        held = beside.get(name, {})
        axes.plot([models.index(same.get(model, model)) + shift for model in held], list(held.values()),
                  markerfacecolor=PAPER, markeredgecolor=colour, **look)  # fmt: skip
    if len(models) > len(own):
        axes.axvline(len(own) - 0.5, color=CONTROL, linewidth=0.6)
    axes.set_xticks(range(len(models)), models, rotation=35, ha="right", rotation_mode="anchor")
    axes.set_xlim(-0.5, len(models) - 0.5)
    axes.set_ylim(0, 1)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0%", "25%", "50%", "75%", "100%"])
    axes.set_ylabel("depth (layer / L)")
    legend(figure, [axes], width, least=1)
    marks = " Open markers: published." if beside else ""
    return Page(figure, "Depth of the chosen layers", f"Runs of {plural(len(own), 'model')}.{marks}")


def scaling(told: Mapping[str, Any]) -> Page:
    """Every other finding that is a number, against the parameters of the model (its layers, where a run does
    not record them): a panel for each finding, with 95% intervals."""
    rows = [
        each
        for each in _found(told)
        if each.kind != "choice" and is_number(each.value) and each.layers is not None
    ]
    models = list(dict.fromkeys(each.model for each in rows))
    if len(models) < 2:
        raise NotDrawn(f"findings of {plural(len(models), 'model')}: expected two or more to compare")
    # Published figures come with the layers of their models, not with their sizes.
    known = any((each.published.get("models") or {}).keys() & _published_layers().keys() for each in rows)
    by_size = all(each.size is not None for each in rows) and not known
    places = _apart(
        {each.model: float((each.size if by_size else each.layers) or 0) for each in rows}, by_size
    )
    labels = _labels(rows)
    per_row = min(_PER_ROW, len(labels))
    lines = -(-len(labels) // per_row)
    width = COLUMN if per_row == 1 else PAGE
    figure = blank(width, lines * 1.6 + 0.25)
    grid = figure.subplots(lines, per_row, sharex=True, squeeze=False)
    used, beside = list(grid.flat)[: len(labels)], False
    for axes in list(grid.flat)[len(labels) :]:
        axes.set_visible(False)
    for number, (axes, (name, label)) in enumerate(zip(used, labels.items(), strict=True)):
        mine = [each for each in rows if each.name == name]
        _points(axes, mine, places)
        if not by_size:
            beside = _published_points(axes, mine[0]) or beside
        axes.set_title(textwrap.fill(label, int(width / per_row / 0.075)))
        axes.tick_params(axis="x", labelbottom=number >= len(labels) - per_row)
    if by_size:
        used[0].set_xscale("log")
        sizes = sorted({float(each.size or 0) for each in rows})
        used[0].xaxis.set_major_locator(FixedLocator(sizes))
        used[0].xaxis.set_major_formatter(FuncFormatter(lambda size, _: _in_words(size)))
        used[0].xaxis.set_minor_locator(NullLocator())
    else:
        used[0].xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
    figure.supxlabel("parameters of the model" if by_size else "layers of the model", fontsize=SIZE)
    legend(figure, used, width)
    diamonds = " Diamonds: published, of other models." if beside else ""
    told_n = f"Runs of {plural(len(models), 'model')}; models of one size stand side by side."
    return Page(figure, "Findings by the size of the model", f"{told_n} Bars: 95% interval.{diamonds}")


def _in_words(size: float) -> str:
    """Parameters as `710k`, `1.2B`."""
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if size >= unit:
            return f"{size / unit:.3g}{name}"
    return f"{size:g}"


def _points(axes: Axes, rows: Sequence[Found], places: Mapping[str, float]) -> None:
    """A marker for each model, with the interval of its finding."""
    models = list(places)
    for each in rows:
        number, at = models.index(each.model), places[each.model]
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        axes.plot(
            [at], [each.value], color=colour, marker=marker, linestyle="", markersize=5, label=each.model
        )
        if each.low is not None and each.high is not None:
            axes.vlines([at], each.low, each.high, color=colour, linewidth=1)
    if rows[0].unit == "share" and rows[0].kind == "mean":
        axes.set_ylim(-0.03, 1.03)
    else:
        axes.axhline(0, color=INK, linewidth=0.4, zorder=0)


def _published_points(axes: Axes, row: Found) -> bool:
    """Open diamonds for the models whose figure is published and whose layers are known."""
    known = _published_layers()
    held = row.published.get("models") or {}
    drawn = {model: value for model, value in held.items() if is_number(value) and model in known}
    axes.plot(
        [known[model] for model in drawn], list(drawn.values()), linestyle="", marker="D", markersize=4.5,
        markerfacecolor=PAPER, markeredgecolor=REFERENCE, label="published" if drawn else "_",
    )  # fmt: skip
    return bool(drawn)


def _apart(sizes: Mapping[str, float], log: bool) -> dict[str, float]:
    """Where each model stands: at its size, and models of the same size side by side."""
    found = {}
    for model, size in sizes.items():
        same = [other for other, its in sizes.items() if its == size]
        step = same.index(model) - (len(same) - 1) / 2
        found[model] = size * 1.12**step if log else size + 0.6 * step
    return found


def _found(told: Mapping[str, Any]) -> list[Found]:
    sizes = {str(job.get("folder")): _size(job.get("folder")) for job in told.get("jobs") or ()}
    by_version = {(Path(f).parent.name, Path(f).name): size for f, size in sizes.items()}
    found = []
    for row in told.get("table") or ():
        if "finding" not in row or row.get("value") is None:
            continue
        depth = (row.get("depth") or {}).get("share")
        found.append(
            Found(
                str(row["experiment"]), str(row["finding"]), str(row.get("label") or row["finding"]),
                str(row["model"]), row.get("layers"), by_version.get((row["experiment"], row["version"])),
                row["value"], row.get("low"), row.get("high"), str(row.get("unit") or ""),
                str(row.get("kind") or ""), depth, row.get("published") or {},
            )
        )  # fmt: skip
    return found


def _size(folder: str | None) -> int | None:
    """The parameters of the model of a run, where its manifest has them."""
    path = None if folder is None else Path(folder) / "manifest.json"
    if path is None or not path.is_file():
        return None
    size = json.loads(path.read_text(encoding="utf-8")).get("model", {}).get("parameters")
    return None if size is None else int(size)


def _labels(rows: Sequence[Found]) -> dict[tuple[str, str], str]:
    """A label for each finding; with its experiment where the sweep has several."""
    several = len({each.experiment for each in rows}) > 1
    return {each.name: f"{each.experiment}: {each.label}" if several else each.label for each in rows}


def _published_layers() -> dict[str, int]:
    return {model: int(layers) for model, layers in published(_PUBLISHED_LAYERS, None).models.items()}


def _shift(number: int, whole: int) -> float:
    """Markers of one model stand beside one another."""
    return (number - (whole - 1) / 2) * min(0.12, 0.6 / whole)
