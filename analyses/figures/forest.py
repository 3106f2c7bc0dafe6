"""All declared contrasts of a stage as intervals, with their figures beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from analyses.comparisons.contrast import HOLM, corrected, correction_name
from analyses.figures.labels import label_of, model_words, range_words
from analyses.figures.palette import ABSENT, COLOURS, CONTROL, INK, PAPER, REFERENCE
from analyses.figures.rows import Column, Panel, Row, sheet
from analyses.figures.scales import MINUS
from analyses.figures.style import Page
from analyses.figures.subject import NotDrawn, role_of
from analyses.tables.run import Run
from analyses.wording import bare_p, count, listed, plural, together

ALPHA = 0.05
MOST, KEPT = 40, 30  # contrasts that are all shown; the most extreme of more
_ROW, _HEAD = 0.2, 0.26


@dataclass(frozen=True)
class _Mark:
    """One contrast, ready to be drawn. low, high: the interval that decides, 90% of an equivalence. sure: its
    corrected p is below alpha."""

    label: str
    value: float | None
    low: float | None
    high: float | None
    p: float | None
    sure: bool
    control: bool
    margin: float | None
    published: tuple[float, float | None, float | None] | None
    why: str


def forest(run: Run, summary: Mapping[str, Any]) -> Page:
    """Every declared contrast of a flat run or one stage: the mean paired difference with its interval, 95%
    of a difference and 90% of an equivalence, whose margin is a band. A full mark is significant after the
    correction (an equivalence: shown). Open diamond: what was published of the same condition. Of more than
    40 contrasts the 30 largest differences are shown, and the caption says so.

    Raises NotDrawn where no contrast has a difference.
    """
    found = [each for each in summary.get("contrasts") or () if each.get("difference") is not None]
    every = len(found)
    if not found:
        raise NotDrawn("no contrast of it has a difference")
    if every > MOST:
        extreme = sorted(found, key=lambda each: -abs(each["difference"]))[:KEPT]
        found = [each for each in found if any(each is kept for kept in extreme)]
    marks: list[tuple[str, _Mark | None]] = []
    for title, group in _groups(summary, found):
        drawn = [_mark(each, run, summary) for each in group]
        marks += [(title, None), *((mark.label, mark) for mark in drawn)]
    rows = [Row(label, _HEAD if mark is None else _ROW, heading=mark is None) for label, mark in marks]
    every_mark = [mark for _, mark in marks]
    page = sheet(rows, [Panel("")], _columns(every_mark, summary))
    (axes,) = page.panels
    low, high = _limits([mark for mark in every_mark if mark is not None])
    axes.set_xlim(low, high)
    axes.axvline(0, color=INK, linewidth=0.8, zorder=1)
    for mark, middle in zip(every_mark, page.middles, strict=True):
        if mark is None:
            axes.axhline(middle - _HEAD / 2, color=ABSENT, linewidth=0.6, zorder=0)
        else:
            _draw(axes, mark, middle, low, high)
    axes.set_xlabel(f"paired difference in {summary.get('primary')}")
    title = f"Contrasts in {summary.get('primary')}"
    return Page(page.figure, title, _caption(run, summary, found, every_mark, every, (low, high)))


def _groups(
    summary: Mapping[str, Any], found: Sequence[Mapping[str, Any]]
) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """The contrasts under their headings, in the declared order."""
    baseline = str(summary.get("baseline"))
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for each in found:
        if each["kind"] == "equivalence":
            heading = "Equivalence (90% CI)"
        elif each["against"] == baseline:
            heading = f"Condition less {label_of(summary, baseline)}"
        else:
            heading = "Between conditions"
        groups.setdefault(heading, []).append(each)
    return list(groups.items())


def _mark(each: Mapping[str, Any], run: Run, summary: Mapping[str, Any]) -> _Mark:
    equivalence = each.get("equivalence") or {}
    same = each["kind"] == "equivalence"
    low, high = (each.get("ci_low"), each.get("ci_high")) if not same else (
        equivalence.get("ci_low"), equivalence.get("ci_high"),
    )  # fmt: skip
    first, second = label_of(summary, each["condition"]), label_of(summary, each["against"])
    against_baseline = each["against"] == summary.get("baseline") and not same
    p = corrected(each)
    body = run.manifest.get("conditions", {}).get(each["condition"], {})
    return _Mark(
        label=first if against_baseline else f"{first} {MINUS} {second}",
        value=each["difference"],
        low=low,
        high=high,
        p=p,
        sure=p is not None and p < ALPHA,
        control=role_of(body) != "treatment",
        margin=equivalence.get("margin"),
        published=_published(summary, each["condition"]) if against_baseline else None,
        why=_untested(each) if low is None else "",
    )


def _untested(each: Mapping[str, Any]) -> str:
    return "all equal" if each.get("sd") == 0 else "untested"


def _published(summary: Mapping[str, Any], condition: str) -> tuple[float, float | None, float | None] | None:
    """The published mean difference of a condition from the baseline, with its printed interval."""
    rows = (summary.get("published") or {}).get("rows") or ()
    printed = {row["figure"]: row["recomputed"] for row in rows if row["condition"] == condition}
    if printed.get("mean") is None:
        return None
    return float(printed["mean"]), printed.get("ci95 low"), printed.get("ci95 high")


def _correction(summary: Mapping[str, Any]) -> str:
    return correction_name(summary.get("correction", HOLM))


def _columns(marks: Sequence[_Mark | None], summary: Mapping[str, Any]) -> list[Column]:
    told, p = [], []
    for mark in marks:
        if mark is None or mark.value is None:
            told.append("")
            p.append("")
            continue
        value, low, high = together(mark.value, mark.low, mark.high)
        interval = f" [{low}, {high}]" if mark.low is not None else f" ({mark.why})"
        told.append((value + interval).replace("-", MINUS))
        p.append("" if mark.p is None else bare_p(mark.p))
    return [Column("difference [CI]", told), Column(f"p, {_correction(summary)}", p)]


def _limits(marks: Sequence[_Mark]) -> tuple[float, float]:
    """The ends of the axis: all intervals, but not those that dwarf the others."""
    values = [0.0, *(mark.value for mark in marks if mark.value is not None)]
    values += [mark.published[0] for mark in marks if mark.published is not None]
    values += [side * mark.margin for mark in marks if mark.margin is not None for side in (-1, 1)]
    halves = [(mark.high - mark.low) / 2 for mark in marks if mark.low is not None and mark.high is not None]
    ends = [end for mark in marks for end in (mark.low, mark.high) if end is not None]
    room = max(4 * median(halves), 0.25 * (max(values) - min(values))) if halves else 0.0
    low = max(min([*values, *ends]), min(values) - room)
    high = min(max([*values, *ends]), max(values) + room)
    spread = (high - low) or 1.0
    return low - 0.03 * spread, high + 0.03 * spread


def _draw(axes: Axes, mark: _Mark, y: float, low: float, high: float) -> None:
    if mark.value is None:
        return
    colour = CONTROL if mark.control else COLOURS[0]
    if mark.margin is not None:
        band = (-mark.margin, y - _ROW / 2), 2 * mark.margin, _ROW
        axes.add_patch(Rectangle(*band, facecolor=COLOURS[2], alpha=0.2, linewidth=0))
    shift = 0.0 if mark.published is None else 0.035
    if mark.low is not None and mark.high is not None:
        thick = 2.6 if mark.margin is not None else 1.5
        axes.plot(
            [max(mark.low, low), min(mark.high, high)], [y - shift] * 2, color=colour, linewidth=thick,
            solid_capstyle="butt", zorder=2,
        )  # fmt: skip
        for end, out, arrow in ((low, mark.low < low, "<"), (high, mark.high > high, ">")):
            if out:
                axes.plot(
                    [end], [y - shift], marker=arrow, color=colour, markersize=5, clip_on=False, zorder=3
                )
    shape = "s" if mark.margin is not None else "o"
    axes.plot(
        [mark.value], [y - shift], linestyle="", marker=shape, markersize=5,
        markerfacecolor=colour if mark.sure else PAPER, markeredgecolor=colour, markeredgewidth=1.2, zorder=3,
    )  # fmt: skip
    if mark.published is not None:
        value, first, last = mark.published
        if first is not None and last is not None:
            axes.plot([first, last], [y + 0.05] * 2, color=REFERENCE, linewidth=0.8, zorder=2)
        axes.plot(
            [value], [y + 0.05], linestyle="", marker="D", markersize=4, markerfacecolor=PAPER,
            markeredgecolor=REFERENCE, markeredgewidth=0.9, zorder=3,
        )  # fmt: skip


def _caption(
    run: Run,
    summary: Mapping[str, Any],
    found: Sequence[Mapping[str, Any]],
    marks: Sequence[_Mark | None],
    every: int,
    limits: tuple[float, float],
) -> str:
    drawn = [mark for mark in marks if mark is not None]
    pairs = range_words([each["n"] for each in found if each.get("n") is not None])
    names = {name for each in found for name in each.get("clusters") or ()}
    donors = ["the donors that were read"] if names - {"target"} else []
    clustered = listed([*donors, *(["target"] if "target" in names else [])])
    family = max((each.get("family") or 0 for each in found), default=0)
    parts = [
        f"Mean paired difference in {summary.get('primary')} of each declared contrast: the first condition "
        f"less the second, over the items that both have ({pairs} pairs)."
    ]
    if every > len(found):
        parts.append(f"Of {count(every)} contrasts, the {len(found)} with the largest differences.")
    if any(mark.low is not None for mark in drawn):
        how = f" clustered by {clustered}" if clustered else ""
        parts.append(f"Lines: 95% CI, t with standard errors{how}.")
    if any("sign test" in str(each.get("method")) for each in found):
        parts.append("Where all pairs of 0 and 1 differ alike: Newcombe's interval, exact sign test.")
    if any(mark.p is not None for mark in drawn):
        family_words = f"{_correction(summary)} over {plural(family, 'contrast')}"
        parts.append(f"Full marks: p < {ALPHA} after {family_words}; open: not.")
    if any(mark.margin is not None for mark in drawn):
        parts.append(
            "Squares: two one-sided tests with their 90% CI; band: the margin; full: equal within it."
        )
    if any(mark.published is not None for mark in drawn):
        parts.append("Open diamond: published, with its own unclustered 95% CI.")
    if any(mark.control for mark in drawn):
        parts.append("Grey: controls, and conditions that write nothing.")
    if any(_beyond(mark, limits) for mark in drawn):
        parts.append("Arrow: the interval goes on.")
    return " ".join([*parts, model_words(run)])


def _beyond(mark: _Mark, limits: tuple[float, float]) -> bool:
    return mark.low is not None and mark.high is not None and (mark.low < limits[0] or mark.high > limits[1])
