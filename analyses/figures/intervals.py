"""The declared analyses of a run as figures: intervals one under another, shares of variance, a layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analyses.figures.labels import label_of, model_words, range_words
from analyses.figures.lettering import inches
from analyses.figures.palette import ABSENT, COLOURS, CONTROL, INK, PAPER
from analyses.figures.rows import Column, Panel, Row, sheet
from analyses.figures.scales import MINUS
from analyses.figures.style import COLUMN, Page, above, blank, columns_for
from analyses.figures.subject import NotDrawn
from analyses.statistics.clusters import in_words
from analyses.tables.run import Run
from analyses.wording import together

MOST = 30  # intervals that are shown
_ROW, _HEAD = 0.2, 0.26
# Sources of variance: in words, and their colour in every figure.
_SOURCES = {
    "donor": ("donor", COLOURS[0]),
    "target": ("target", COLOURS[1]),
    "item": ("item", COLOURS[0]),
    "pair": ("pair, beyond both", COLOURS[2]),
    "repeat": ("repeat", COLOURS[3]),
    "residual": ("draws of one item", CONTROL),
}
_CHANCE = 0.5  # the area under the curve of a feature that tells nothing


@dataclass(frozen=True)
class _Interval:
    """value is None for a heading. main: what the analysis is about, in its own colour."""

    label: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    main: bool = False


@dataclass(frozen=True)
class _Plan:
    """The rows of a figure, the values at which lines stand, what the axis and the caption say."""

    rows: Sequence[_Interval]
    lines: Sequence[float]
    axis: str
    words: str
    band: tuple[float, float] | None = None


Label = Callable[[str], str]


def analysis(run: Run, summary: Mapping[str, Any], told: Mapping[str, Any]) -> Page:
    """The figure of one declared analysis. told: its entry in the summary; summary, run: those of its stage.

    Raises NotDrawn for one without a result, and for a kind that has no figure.
    """
    result = told.get("result")
    if result is None:
        raise NotDrawn(str(told.get("note") or "the analysis has no result"))

    def label(name: str) -> str:
        return label_of(summary, name)

    kind = str(told["kind"])
    if kind in _PLANS:
        return _intervals(run, told, _PLANS[kind](result, label))
    if kind == "variance":
        return _variance(run, told, result, label)
    if kind == "localisation":
        return _localisation(run, told, result)
    raise NotDrawn(f"an analysis of kind '{kind}' has no figure")


def _interaction(result: Mapping[str, Any], label: Label) -> _Plan:
    rows: list[_Interval] = []
    for cell in result["rows"]:
        names = {part: label(name) for part, name in cell["conditions"].items()}
        rows += [
            _Interval(str(cell["row"] or "Effect of the first write")),
            _of(f"{names['both']} {MINUS} {names['second']}", cell["with_second"]),
            _of(f"{names['first']} {MINUS} {names['neither']}", cell["without"]),
            _of("interaction", cell["interaction"], main=True),
        ]
    if result["between"]:
        rows.append(_Interval("Interactions compared"))
        rows += [
            _of(f"{each['row']} {MINUS} {each['less']}", each["difference"]) for each in result["between"]
        ]
    words = (
        f"Effect in {result['readout']} of the first write where the second is there and where it is not, "
        f"paired by item{_sample([cell['interaction'] for cell in result['rows']])}. Orange: the "
        "interaction, the first effect less the second."
    )
    return _Plan(rows, [0.0], f"paired difference in {result['readout']}", words)


def _share(result: Mapping[str, Any], label: Label) -> _Plan:
    rows = [_of(label(part["condition"]), part["share"]) for part in result["parts"]]
    axis = f"share of the effect of {label(result['whole'])} in {result['readout']}"
    words = (
        f"Each condition's effect against {label(result['against'])}, as a share of that of "
        f"{label(result['whole'])}{_sample([part['effect'] for part in result['parts']])}; intervals by "
        "Fieller. Dashed: all of it."
    )
    return _Plan(rows, [0.0, 1.0], axis, words)


def _specificity(result: Mapping[str, Any], label: Label) -> _Plan:
    treatment = label(result["treatment"])
    rows = [
        _of(
            f"{treatment} {MINUS} {label(each['condition'])}",
            each["difference"],
            each["condition"] == result["bar"],
        )
        for each in result["rivals"]
    ]
    axis = f"paired difference in {result['readout']}"
    words = (
        f"Paired differences of {treatment} from each condition that it must differ from"
        f"{_sample([each['difference'] for each in result['rivals']])}. Orange: the comparison that decides."
    )
    return _Plan(rows, [0.0], axis, words)


def _decomposition(result: Mapping[str, Any], label: Label) -> _Plan:
    rows: list[_Interval] = []
    for each in result["contrasts"]:
        rows += [
            _Interval(f"{label(each['condition'])} less {label(each['against'])}"),
            _of(f"{result['of']}, as a whole", each["whole"], main=True),
            *(_of(part["name"], part["difference"]) for part in each["parts"]),
        ]
    words = (
        f"Paired differences in {result['of']} and in its parts"
        f"{_sample([each['whole'] for each in result['contrasts']])}. Orange: the whole, the sum of the "
        "others."
    )
    return _Plan(rows, [0.0], "paired difference", words)


def _predictors(result: Mapping[str, Any], label: Label) -> _Plan:
    features = sorted(result["features"], key=lambda each: -abs(each["area"] - _CHANCE))
    rows = [_Interval(str(e["name"]), e["area"], e["ci_low"], e["ci_high"]) for e in features]
    if result["area"] is not None:
        rows.insert(0, _Interval("all together, cross-validated", result["area"], main=True))
    chance = result["chance"]
    axis = f"area under the curve, {result['readout']} high against low"
    words = (
        f"How well each feature tells {result['n_high']:,} trials of {label(result['condition'])} with "
        f"{result['readout']} of {result['high']:g} or more from {result['n_low']:,} with {result['low']:g} "
        f"or less. Orange: all features, on trials that were left out ({result['folds']} folds). Dashed: "
        f"{_CHANCE}, no better than chance."
    )
    if chance is not None:
        words += f" Band: the middle 95% of {result['draws']:,} permutations, of all features."
    return _Plan(rows, [_CHANCE], axis, words, None if chance is None else (chance[0], chance[1]))


_PLANS: Mapping[str, Callable[[Mapping[str, Any], Label], _Plan]] = {
    "interaction": _interaction,
    "share": _share,
    "specificity": _specificity,
    "decomposition": _decomposition,
    "predictors": _predictors,
}


def _sample(estimates: Sequence[Mapping[str, Any] | None]) -> str:
    """How many trials there are, and how many donors and targets, where all estimates have the same."""
    known = [each for each in estimates if each is not None]
    if not known:
        return ""
    trials = f" ({range_words([each['n'] for each in known])} trials"
    clusters = [each["clusters"] for each in known]
    same = clusters[0] and all(each == clusters[0] for each in clusters)
    return f"{trials}, {in_words(clusters[0])})" if same else f"{trials})"


def _of(label: str, estimate: Mapping[str, Any] | None, main: bool = False) -> _Interval:
    found = estimate or {}
    value = found.get("value")
    shown = label if value is not None else f"{label}: not given"
    return _Interval(shown, value, found.get("low"), found.get("high"), main)


def _intervals(run: Run, told: Mapping[str, Any], plan: _Plan) -> Page:
    rows = plan.rows[:MOST]
    values = [row.value for row in rows if row.value is not None]
    if not values:
        raise NotDrawn("the analysis has no figure to draw")
    text = ["" if row.value is None else _told(row) for row in rows]
    heading = [row.value is None and not row.label.endswith(": not given") for row in rows]
    page = sheet(
        [Row(row.label, _HEAD if top else _ROW, top) for row, top in zip(rows, heading, strict=True)],
        [Panel("")],
        [Column("estimate [95% CI]", text)],
    )
    (axes,) = page.panels
    ends = [end for row in rows for end in (row.value, row.low, row.high) if end is not None]
    low, high = min([*ends, *plan.lines]), max([*ends, *plan.lines])
    if plan.band is not None:
        axes.axvspan(*plan.band, color=ABSENT, alpha=0.7, linewidth=0, zorder=0)
    for number, at in enumerate(plan.lines):
        dashed = number > 0 or at != 0
        axes.axvline(at, color=INK, linewidth=0.8, linestyle=(0, (3, 2)) if dashed else "-", zorder=1)
    for row, y in zip(rows, page.middles, strict=True):
        _mark(axes, row, y)
    room = 0.04 * (high - low or 1.0)
    axes.set_xlim(low - room, high + room)
    axes.set_xlabel(plan.axis)
    cut = f"{MOST} of {len(plan.rows)} rows." if len(plan.rows) > MOST else ""
    return _page(run, told, page.figure, plan.words, "Points: estimates with their 95% CI.", cut)


def _mark(axes: Axes, row: _Interval, y: float) -> None:
    if row.value is None:
        return
    colour = COLOURS[1] if row.main else COLOURS[0]
    if row.low is not None and row.high is not None:
        axes.plot([row.low, row.high], [y, y], color=colour, linewidth=1.5, solid_capstyle="butt", zorder=2)
    axes.plot([row.value], [y], linestyle="", marker="o", markersize=5, color=colour, zorder=3)


def _told(row: _Interval) -> str:
    value, low, high = together(row.value, row.low, row.high)
    return (value if row.low is None else f"{value} [{low}, {high}]").replace("-", MINUS)


def _variance(run: Run, told: Mapping[str, Any], result: Mapping[str, Any], label: Label) -> Page:
    parts = [part for part in result["parts"] if sum(part["shares"].values()) > 0][:MOST]
    if not parts:
        raise NotDrawn("no condition has variance")
    page = sheet([Row(label(part["name"]), 0.24) for part in parts], [Panel("")], [])
    (axes,) = page.panels
    sources = [source for source in _SOURCES if any(source in part["shares"] for part in parts)]
    handles = []
    starts = np.zeros(len(parts))
    for source in sources:
        colour = _SOURCES[source][1]
        shares = np.array([part["shares"].get(source, 0.0) for part in parts])
        drawn = axes.barh(
            page.middles, shares, 0.15, left=starts, color=colour, linewidth=0.4, edgecolor=PAPER
        )
        handles.append(drawn[0])
        starts = starts + shares
    axes.set_xlim(0, 1)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25%", "50%", "75%", "100%"])
    axes.set_xlabel(f"share of the variance of {result['readout']}")
    words = [_SOURCES[source][0] for source in sources]
    width = float(page.figure.get_size_inches()[0])
    above(page.figure, handles, words, columns_for(words, width))
    items = range_words([part["n_items"] for part in parts])
    repeats = range_words([part["repeats"] for part in parts])
    told_as = f"Variance components as shares of their sum; {items} items, {repeats} repeats of each."
    return _page(run, told, page.figure, told_as)


def _localisation(run: Run, told: Mapping[str, Any], result: Mapping[str, Any]) -> Page:
    rows = sorted(result["rows"], key=lambda row: row["layer"])
    layers, means = [row["layer"] for row in rows], [row["mean"] for row in rows]
    figure = blank(COLUMN, 2.5)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
    upper.axvspan(result["low"] - 0.5, result["high"] + 0.5, color=ABSENT, alpha=0.6, linewidth=0)
    upper.plot(layers, means, color=COLOURS[0], marker="o")
    at = layers.index(result["layer"])
    upper.plot([layers[at]], [means[at]], marker="o", markersize=9, color="none", markeredgecolor=INK,
               markeredgewidth=1.1)  # fmt: skip
    less = f" {MINUS} {result['against']}" if result.get("against") else ""
    name = f"{result['readout']}{less}"
    upper.set_ylabel(name if inches(name) < 1.5 else name.replace(f" {MINUS} ", f"\n{MINUS} "))
    lower.bar(layers, [row["chosen"] for row in rows], 0.7, color=COLOURS[0])
    lower.set_ylim(0, 1)
    lower.set_yticks([0, 1], ["0", "all"])
    lower.set_ylabel("best in")
    lower.set_xlabel(f"layer (of {result['of_layers']})")
    lower.xaxis.set_major_locator(MaxNLocator(nbins=10, integer=True, min_n_ticks=1))
    words = (
        f"Above: the mean at each layer{_sample([result['at_best']])}; ring: the {result['direction']}; "
        f"band: where 95% of {result['draws']:,} tables with resampled prompts have it. Below: the share of "
        "these tables in which the layer is best."
    )
    return _page(run, told, figure, words)


def _page(run: Run, told: Mapping[str, Any], figure: Figure, *parts: str) -> Page:
    mark = "Exploratory." if told.get("exploratory") else ""
    words = " ".join(part for part in (*parts, mark, model_words(run)) if part)
    return Page(figure, str(told.get("label") or told["name"]), words)
