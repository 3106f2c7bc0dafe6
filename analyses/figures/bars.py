"""Means of conditions as bars, by group where the figure is apart by one."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from analyses.figures.lettering import SIZE
from analyses.figures.palette import COLOURS, CONTROL, INK, PAPER, REFERENCE
from analyses.figures.scales import MINUS, is_share, readout_label
from analyses.figures.style import COLUMN, PAGE, Page, above, blank, columns_for
from analyses.figures.subject import NotDrawn, Shown, Subject
from analyses.findings.measured import Estimate
from analyses.wording import count, figure

_ROW, _LETTERS = 0.3, 30  # inches of a bar; letters in a line of its label
# Face, hatch and edge; a reference is ink through which the page shows, on light and dark alike.
_Look = tuple[Any, str, str]
_LOOKS: dict[str, _Look] = {
    "control": (PAPER, "//////", CONTROL),
    "reference": ((INK, 0.3), "", "none"),
}


def bars(subject: Subject) -> Page:
    """Without `by`, a bar for each condition of `of`, top to bottom; by a group or an axis, bars side by side
    at each of its values. Whiskers are 95% intervals. `against` is the floor: a dashed line with its band.
    What was published of a condition, by a finding of its mean, is an open diamond."""
    return _rows(subject) if subject.spec.get("by") is None else _clusters(subject, str(subject.spec["by"]))


def _rows(subject: Subject) -> Page:
    """One bar under another, each with its label and its figure."""
    held = [(shown, subject.estimate(shown)) for shown in subject.shown]
    labels = [textwrap.fill(shown.label, _LETTERS) for shown, _ in held]
    lines = sum(max(1, label.count("\n") + 1) for label in labels)
    page = blank(COLUMN + 1.2, max(1.1, 0.6 + max(_ROW * len(held), 0.16 * lines)))
    axes = page.subplots()
    # The labels tell the bars apart: colour only says what writes something.
    looks = {each.name: _LOOKS.get(each.role, (COLOURS[0], "", COLOURS[0])) for each in subject.shown}
    notes: list[str] = []
    ends = []
    for row, (shown, estimate) in enumerate(held):
        if estimate is None:
            axes.text(0, row, " no valid trial", va="center", color=REFERENCE)
            continue
        face, hatch, edge = looks[shown.name]
        axes.barh(row, estimate.value, 0.66, color=face, hatch=hatch, edgecolor=edge, linewidth=0.6)
        _whisker(axes, row, estimate, upright=False)
        end = max(estimate.value, estimate.high if estimate.high is not None else estimate.value, 0.0)
        ends.append(end)
        axes.annotate(
            _told(estimate), (end, row), xytext=(3, 0), textcoords="offset points", va="center", fontsize=SIZE
        )
        notes += _published(subject, axes, shown, row, estimate, upright=False)
    if not ends:
        raise NotDrawn(f"no valid trial of any condition has a value of {subject.readout}")
    floor = None if subject.against is None else subject.estimate(subject.against)
    if floor is not None and subject.against is not None:
        axes.axvline(floor.value, color=INK, linestyle=(0, (3, 2)), linewidth=1)
        if floor.low is not None and floor.high is not None:
            axes.axvspan(floor.low, floor.high, color=INK, alpha=0.08, linewidth=0)
        notes.append(f"Dashed: {subject.against.label}.")
    axes.set_yticks(range(len(held)), labels)
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(readout_label(subject))
    low, high = axes.get_xlim()
    if is_share(subject):
        # Room for the figures at the ends, ticks only where a share can be.
        axes.set_xlim(0, 1.3)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.5", "0.75", "1"])
        axes.spines["bottom"].set_bounds(0, 1)
    else:
        axes.set_xlim(low, high + 0.18 * (high - low))
        axes.axvline(0, color=INK, linewidth=0.6)
    return _page(subject, page, [*(each for _, each in held), floor], notes)


def _clusters(subject: Subject, by: str) -> Page:
    """The bars of each group beside one another."""
    cuts: list[tuple[Any, Subject]]
    if by == "group":
        cuts = [(group, subject.of_group(group)) for group in subject.groups()]
    else:
        cuts = [(value, subject) for value in subject.values(by)]

    def cut(shown: Shown, value: Any) -> Shown:
        return shown if by == "group" else subject.at(shown, by, value)

    width = max(COLUMN, min(PAGE, 0.8 + len(cuts) * (0.2 * len(subject.shown) + 0.25)))
    page = blank(width, 2.1)
    axes = page.subplots()
    looks = _looks(subject.shown)
    each_width = 0.8 / len(subject.shown)
    estimates: list[Estimate | None] = []
    notes: list[str] = []
    for place, (value, of) in enumerate(cuts):
        for number, shown in enumerate(subject.shown):
            estimate = of.estimate(cut(shown, value))
            estimates.append(estimate)
            if estimate is None:
                continue
            at = place + (number - (len(subject.shown) - 1) / 2) * each_width
            face, hatch, edge = looks[shown.name]
            axes.bar(
                at, estimate.value, each_width * 0.92, color=face, hatch=hatch, edgecolor=edge, linewidth=0.6
            )
            _whisker(axes, at, estimate, upright=True)
        if subject.against is not None:
            floor = of.estimate(cut(subject.against, value))
            estimates.append(floor)
            if floor is not None:
                axes.hlines(
                    floor.value, place - 0.45, place + 0.45, color=INK, linestyle=(0, (3, 2)), linewidth=1
                )
                notes = [f"Dashed: {subject.against.label}."]
    axes.set_xticks(range(len(cuts)), [str(value) for value, _ in cuts])
    if max(len(str(value)) for value, _ in cuts) * len(cuts) * 0.075 > width - 0.8:
        axes.tick_params(axis="x", labelrotation=30)
    axes.tick_params(axis="x", length=0)
    axes.set_xlabel(by)
    axes.set_ylabel(readout_label(subject))
    if is_share(subject):
        axes.set_ylim(0, 1.02)
    axes.axhline(0, color=INK, linewidth=0.6)
    if len(subject.shown) > 1:
        patches = [
            Patch(facecolor=face, hatch=hatch, edgecolor=edge, linewidth=0.6)
            for shown in subject.shown
            for face, hatch, edge in [looks[shown.name]]
        ]
        labels = [shown.label for shown in subject.shown]
        above(page, patches, labels, columns_for(labels, width))
    return _page(subject, page, estimates, notes)


def _page(
    subject: Subject, figure: Figure, estimates: Sequence[Estimate | None], notes: Sequence[str]
) -> Page:
    whiskers = "Whiskers: 95% interval of the mean, clustered by donor and target."
    if all(each is None or each.share for each in estimates):
        whiskers = "Whiskers: 95% interval of the share (Wilson, effective n by donors and targets)."
    return Page(figure, subject.title, subject.caption(estimates, whiskers, *dict.fromkeys(notes)))


def _looks(shown: Sequence[Shown]) -> dict[str, _Look]:
    """Face, hatch and edge of each: treatments in colour, controls hatched grey, references plain grey."""
    colours = iter(COLOURS * len(shown))
    found: dict[str, _Look] = {}
    for each in shown:
        if each.role == "treatment":
            colour = next(colours)
            found[each.name] = (colour, "", colour)
        else:
            found[each.name] = _LOOKS[each.role]
    return found


def _whisker(axes: Axes, at: float, estimate: Estimate, *, upright: bool) -> None:
    if estimate.low is None or estimate.high is None:
        return
    line = axes.vlines if upright else axes.hlines
    line(at, estimate.low, estimate.high, color=INK, linewidth=1)


def _told(estimate: Estimate) -> str:
    """The figure at the end of a bar; of a share, how many of how many."""
    ones = estimate.sides[0].ones
    if ones is None or not estimate.share:
        return figure(estimate.value).replace("-", MINUS)
    return f"{count(ones)} of {count(estimate.n)}"


def _published(
    subject: Subject, axes: Axes, shown: Shown, at: float, estimate: Estimate, *, upright: bool
) -> list[str]:
    value = subject.published_of(shown)
    if value is None:
        return []
    # Papers print shares as percentages.
    value = value / 100 if estimate.share and value > 1 else value
    place = ([at], [value]) if upright else ([value], [at])
    axes.plot(*place, marker="D", color=PAPER, markeredgecolor=INK, markersize=5, zorder=5)
    return ["Diamond: published."]
