"""The means at the doses of each declared trend, with the fitted line."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from analyses.figures.labels import label_of, model_words, range_words
from analyses.figures.palette import COLOURS, PAPER
from analyses.figures.scales import MINUS
from analyses.figures.style import COLUMN, PAGE, Page, blank
from analyses.figures.subject import NotDrawn, Subject
from analyses.tables.cells import axis_words
from analyses.tables.run import Run
from analyses.wording import p_value, together

ALPHA = 0.05
MOST = 6  # trends that are shown
_PER_ROW = 3


def dose(run: Run, summary: Mapping[str, Any]) -> Page:
    """A panel for each declared trend: the mean of the primary readout at each dose with its 95% CI, and the
    fitted line with the 95% CI of its slope, through the middle of the means. Full points: the slope is
    significant after the correction.

    Raises NotDrawn where no trend has means.
    """
    every = summary.get("trends") or ()
    found = [each for each in every if len(each.get("means") or ()) > 1][:MOST]
    if not found:
        raise NotDrawn("no trend of it has means")
    per_row = min(len(found), _PER_ROW)
    rows = -(-len(found) // per_row)
    width = COLUMN if per_row == 1 else PAGE
    figure = blank(width, rows * 2.2)
    grid = figure.subplots(rows, per_row, sharey=True, squeeze=False)
    for axes in list(grid.flat)[len(found) :]:
        axes.set_visible(False)
    for place, (axes, each) in enumerate(zip(grid.flat, found, strict=False)):
        _panel(axes, each, run, summary)
        if len(found) > 1:
            axes.set_title(textwrap.fill(_grid_of(each, summary), max(16, int(width / per_row / 0.08))))
        if place % per_row == 0:
            axes.set_ylabel(f"mean {each['readout']}")
    return Page(figure, f"{found[0]['readout']} by dose", _caption(run, found, len(every)))


def _panel(axes: Axes, trend: Mapping[str, Any], run: Run, summary: Mapping[str, Any]) -> None:
    doses, means = np.array(trend["doses"], dtype=float), np.array(trend["means"], dtype=float)
    sure = trend.get("p_holm") is not None and trend["p_holm"] < ALPHA
    slope, low, high = (trend.get(key) for key in ("slope", "ci_low", "ci_high"))
    room = 0.06 * (doses.max() - doses.min() or 1.0)
    line = np.array([doses.min() - room, doses.max() + room])
    if slope is not None:
        axes.plot(
            line, means.mean() + slope * (line - doses.mean()), color=COLOURS[0], linewidth=1.2, zorder=2
        )
    if slope is not None and low is not None and high is not None:
        across = np.linspace(line[0], line[1], 41)
        ends = [means.mean() + end * (across - doses.mean()) for end in (low, high)]
        axes.fill_between(across, *ends, color=COLOURS[0], alpha=0.18, linewidth=0, zorder=1)
        told = together(slope, low, high)
        words = [f"slope {told[0]} [{told[1]}, {told[2]}]".replace("-", MINUS)]
        if trend.get("p_holm") is not None:
            words.append(p_value(trend["p_holm"]))
        left = slope >= 0
        at, side = (0.03, "left") if left else (0.97, "right")
        for number, text in enumerate(words):
            axes.annotate(
                text, (at, 0.98), (0, -10.5 * number), "axes fraction", "offset points", ha=side, va="top"
            )  # fmt: skip
    subject = Subject({"of": list(trend["conditions"]), "readout": trend["readout"]}, run, {}, {})
    for at, mean, name in zip(doses, means, trend["conditions"], strict=True):
        # The interval of a dose is that of all its trials; the mean is over items that have every dose.
        estimate = subject.estimate(subject.member(name))
        if estimate is not None and estimate.low is not None and estimate.high is not None:
            shift = mean - estimate.value
            axes.plot(
                [at, at], [estimate.low + shift, estimate.high + shift], color=COLOURS[0], linewidth=1.2
            )
        axes.plot(
            [at], [mean], marker="o", markersize=5.5, markerfacecolor=COLOURS[0] if sure else PAPER,
            markeredgecolor=COLOURS[0], markeredgewidth=1.2, zorder=4,
        )  # fmt: skip
    axes.margins(y=0.25)
    axes.set_xlim(*line)
    ticks, label = _ticks(trend, summary)
    axes.set_xticks(doses, ticks)
    if sum(map(len, ticks)) > 26:
        axes.tick_params(axis="x", labelrotation=35)
    axes.set_xlabel(label)


def _ticks(trend: Mapping[str, Any], summary: Mapping[str, Any]) -> tuple[list[str], str]:
    """What stands at the doses: the values of the grid's axis, else the labels of the conditions."""
    names = list(trend["conditions"])
    inside = [name.partition("[")[2].removesuffix("]") for name in names]
    if all(part.count("=") == 1 for part in inside):
        axis = inside[0].partition("=")[0]
        values = [axis_words(part.partition("=")[2]) for part in inside]
        return [value.removeprefix("donor:").replace("-", MINUS) for value in values], f"dose ({axis})"
    return [textwrap.fill(label_of(summary, name), 14) for name in names], "dose"


def _grid_of(trend: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    first = trend["conditions"][0]
    return label_of(summary, first).partition(",")[0] if "[" in first else ""


def _caption(run: Run, found: list[Mapping[str, Any]], every: int) -> str:
    items = range_words([each["n"] for each in found])
    clusters = any(each.get("clusters") for each in found)
    parts = [
        f"Mean {found[0]['readout']} at each dose over the {items} items that have every dose; whiskers: 95% "
        "CI.",
        "Line: least-squares slope; band: its 95% CI, "
        + ("clustered by donor and target, " if clusters else "")
        + f"turned about the middle. Full points: p < {ALPHA} after Holm over {every} "
        + ("trend." if every == 1 else "trends.")
        + " Exploratory.",
    ]
    if every > len(found):
        parts.append(f"{len(found)} of {every} trends.")
    return " ".join([*parts, model_words(run)])
