"""Every trial of each condition: its paired difference from the baseline as a cloud, quartiles and dots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from numpy.typing import NDArray

from analyses.figures.labels import label_of, model_words, range_words
from analyses.figures.palette import ABSENT, COLOURS, CONTROL, INK
from analyses.figures.rows import Column, Panel, Row, sheet
from analyses.figures.scales import MINUS
from analyses.figures.style import Page
from analyses.figures.subject import NotDrawn, role_of
from analyses.summary.folding import is_folded, large_grids
from analyses.tables.by_condition import ByCondition, numbers
from analyses.tables.run import Run
from analyses.wording import count

Floats = NDArray[np.float64]
MOST_ROWS, MOST_DOTS = 16, 400
_ROW = 0.44  # inches
_CLOUD, _BOX, _RAIN = 0.2, 0.03, 0.14  # inches: a cloud's height, half a box, what the dots spread over
_EVEN = (0.7548776662466927, 0.5698402909980532)  # steps that fill a square evenly (Roberts 2018, R2)
_BINS = 256
_FEW = 60  # whole numbers in the range of values that are counted one by one


@dataclass(frozen=True)
class _Cloud:
    condition: str
    label: str
    values: Floats
    mean: float
    low: float | None
    high: float | None
    control: bool


def raincloud(run: Run, summary: Mapping[str, Any]) -> Page:
    """For each condition that is contrasted with the baseline, the paired differences of the primary readout:
    their distribution, the quartiles, the mean with its 95% CI, and a dot for each trial. Whole numbers are
    counted, others smoothed. At most 16 conditions, the largest differences, and 400 dots of each; the
    caption says so. Cells of large grids are left out.

    Raises NotDrawn where no condition has two differences that differ.
    """
    clouds, every = _clouds(run, summary)
    if not any(len(each.values) > 1 and np.ptp(each.values) > 0 for each in clouds):
        raise NotDrawn("no condition has differences that differ")
    inside = np.concatenate([each.values for each in clouds])
    whole = bool(np.all(inside == np.round(inside))) and np.ptp(inside) <= _FEW
    ends = _ends(inside, whole)
    page = sheet([Row(each.label, _ROW) for each in clouds], [Panel("")], _columns(clouds))
    (axes,) = page.panels
    for each, middle in zip(clouds, page.middles, strict=True):
        places, heights = _heights(each.values, whole, ends)
        _draw(axes, each, middle, places, heights / (heights.max() or 1.0) * _CLOUD, whole, ends)
    axes.set_xlim(*ends)
    axes.axvline(0, color=INK, linewidth=0.8, zorder=1)
    baseline = label_of(summary, str(summary.get("baseline")))
    axes.set_xlabel(f"{summary.get('primary')} {MINUS} that of {baseline}, same item")
    title = f"Paired differences in {summary.get('primary')} from {baseline}"
    return Page(page.figure, title, _caption(run, summary, clouds, every, whole, inside, ends))


def _clouds(run: Run, summary: Mapping[str, Any]) -> tuple[list[_Cloud], int]:
    """The conditions in their declared order, and how many there were before the cut."""
    primary, baseline = str(summary.get("primary")), str(summary.get("baseline"))
    large = large_grids(list(summary.get("conditions") or ()))
    found = [
        each
        for each in summary.get("contrasts") or ()
        if each["kind"] == "difference"
        and each["against"] == baseline
        and each.get("difference") is not None
        and not is_folded(each["condition"], large)
    ]
    values = numbers(run.trials, primary)
    if values is None or not found:
        raise NotDrawn(f"nothing is contrasted with {baseline} in {primary}")
    every = len(found)
    kept = sorted(found, key=lambda each: -abs(each["difference"]))[:MOST_ROWS]
    found = [each for each in found if any(each is one for one in kept)]
    apart = ByCondition.of(run.trials)
    units = _units(run.trials)
    held = np.full(int(units.max()) + 1 if len(units) else 0, np.nan)
    mine = apart.ok(baseline)
    held[units[mine]] = values[mine]
    clouds = []
    for each in found:
        rows = apart.ok(each["condition"])
        difference = values[rows] - held[units[rows]]
        difference = difference[np.isfinite(difference)]
        if not len(difference):
            continue
        body = run.manifest.get("conditions", {}).get(each["condition"], {})
        clouds.append(
            _Cloud(
                each["condition"], label_of(summary, each["condition"]), difference, float(difference.mean()),
                each.get("ci_low"), each.get("ci_high"), role_of(body) != "treatment",
            )
        )  # fmt: skip
    return clouds, every


def _units(trials: pd.DataFrame) -> NDArray[np.int64]:
    """A number for each item and repeat."""
    items, _ = pd.factorize(trials["item"])
    repeats, names = pd.factorize(trials["repeat"])
    return np.asarray(items, dtype=np.int64) * max(1, len(names)) + repeats


def _ends(values: Floats, whole: bool) -> tuple[float, float]:
    """The ends of the axis. Of numbers with far outliers, what lies within six times the middle 98%."""
    low, high = float(values.min()), float(values.max())
    if not whole:
        inner = np.quantile(values, [0.01, 0.99])
        room = 2.5 * float(inner[1] - inner[0]) or (high - low)
        low, high = max(low, inner[0] - room), min(high, inner[1] + room)
    low, high = min(low, 0.0), max(high, 0.0)
    room = 0.6 if whole else 0.04 * (high - low)
    return low - room, high + room


def _heights(values: Floats, whole: bool, ends: tuple[float, float]) -> tuple[Floats, Floats]:
    """Where the cloud stands and how high it is, as a density: whole numbers are counted; others are smoothed
    by a Gaussian of Silverman's width, from counts in bins, so that a million take no longer than a
    thousand."""
    if whole:
        places = np.arange(values.min(), values.max() + 1)
        return places, np.bincount((values - values.min()).astype(np.int64)) / len(values)
    edges = np.linspace(*ends, _BINS + 1)
    step = edges[1] - edges[0]
    heights = np.histogram(values, edges)[0] / (len(values) * step)
    quartiles = np.quantile(values, [0.25, 0.75])
    spread = min(float(values.std()), float(quartiles[1] - quartiles[0]) / 1.34) or float(values.std())
    width = max(0.9 * spread * len(values) ** -0.2, step / 2)
    reach = min(_BINS, int(4 * width / step) + 1)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) * step / width) ** 2)
    smooth = np.convolve(heights, kernel / kernel.sum())[reach : reach + _BINS]
    return (edges[:-1] + edges[1:]) / 2, smooth


def _draw(
    axes: Axes,
    cloud: _Cloud,
    middle: float,
    places: Floats,
    heights: Floats,
    whole: bool,
    ends: tuple[float, float],
) -> None:
    colour = CONTROL if cloud.control else COLOURS[0]
    floor = middle + 0.02
    foot = floor - _BOX - 0.015  # of the cloud
    if whole:
        axes.bar(places, -heights, 0.86, bottom=foot, color=colour, alpha=0.45, linewidth=0, zorder=2)
    else:
        seen = heights > 0.003 * _CLOUD
        axes.fill_between(
            places, foot, foot - heights, where=seen, color=colour, alpha=0.45, linewidth=0, zorder=2
        )
    axes.axhline(foot, color=ABSENT, linewidth=0.5, zorder=0)
    low, high = np.quantile(cloud.values, [0.25, 0.75])
    axes.plot([low, high], [floor, floor], color=colour, linewidth=3.2, alpha=0.45, solid_capstyle="butt")
    _dots(axes, cloud.values, floor + _BOX + 0.02, colour, whole, ends)
    if cloud.low is not None and cloud.high is not None:
        axes.plot([cloud.low, cloud.high], [floor, floor], color=INK, linewidth=1.3, zorder=4)
    axes.plot([cloud.mean], [floor], marker="o", color=INK, markersize=3.6, zorder=5)


def _dots(
    axes: Axes, values: Floats, top: float, colour: str, whole: bool, ends: tuple[float, float]
) -> None:
    """One mark for all dots: short strokes with round ends. Their places are even and always the same."""
    chosen = np.sort(values)
    if len(chosen) > MOST_DOTS:
        chosen = chosen[np.linspace(0, len(chosen) - 1, MOST_DOTS).round().astype(int)]
    chosen = chosen[(chosen >= ends[0]) & (chosen <= ends[1])]
    order = np.arange(len(chosen))
    y = top + (order * _EVEN[0] % 1) * (_RAIN - 0.02)
    x = chosen + (order * _EVEN[1] % 1 - 0.5) * 0.7 if whole else chosen
    speck = (ends[1] - ends[0]) * 5e-4  # a stroke without any length is not drawn
    points = np.column_stack([x, y, x + speck, y]).reshape(-1, 2)
    codes = np.tile([Path.MOVETO, Path.LINETO], len(chosen))
    # Snapped to whole pixels a stroke would lose its length.
    axes.add_patch(
        PathPatch(
            Path(points, codes), fill=False, edgecolor=colour, linewidth=1.7, capstyle="round", alpha=0.55,
            snap=False, zorder=1.5,
        )
    )  # fmt: skip


def _columns(clouds: Sequence[_Cloud]) -> list[Column]:
    up = [_percent((each.values > 0).mean()) for each in clouds]
    down = [_percent((each.values < 0).mean()) for each in clouds]
    return [Column("higher", up), Column("lower", down)]


def _percent(part: float) -> str:
    """A whole percentage that is 0 or 100 only where none or all are."""
    if 0 < part < 0.005:
        return "< 1%"
    return "> 99%" if 0.995 <= part < 1 else f"{100 * part:.0f}%"


def _caption(
    run: Run,
    summary: Mapping[str, Any],
    clouds: Sequence[_Cloud],
    every: int,
    whole: bool,
    inside: Floats,
    ends: tuple[float, float],
) -> str:
    primary, baseline = summary.get("primary"), label_of(summary, str(summary.get("baseline")))
    pairs = range_words([len(each.values) for each in clouds])
    cloud = "how many pairs have each difference" if whole else "a Gaussian kernel density, Silverman's width"
    parts = [
        f"Difference in {primary} of each trial from that of {baseline} on the same item ({pairs} pairs).",
        f"Cloud: {cloud}; each row has its own height. Bar: the middle half. Black: mean with its clustered "
        "95% CI, uncorrected. Higher, lower: share of pairs.",
    ]
    jitter = ", moved aside by less than half a point" if whole else ""
    capped = max(len(each.values) for each in clouds) > MOST_DOTS
    parts.append(
        f"Dots: {MOST_DOTS} pairs evenly by rank{jitter}." if capped else f"Dots: the pairs{jitter}."
    )
    outside = int(((inside < ends[0]) | (inside > ends[1])).sum())
    if outside:
        parts.append(f"{count(outside)} of {count(len(inside))} differences lie beyond the axis.")
    if every > len(clouds):
        parts.append(f"Of {count(every)} conditions, the {len(clouds)} with the largest mean differences.")
    if any(each.control for each in clouds):
        parts.append("Grey: controls, and conditions that write nothing.")
    return " ".join([*parts, model_words(run)])
