"""What every write did: how much of what it was asked for it wrote, and how much that changed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from analyses.figures.labels import grid_label, label_of, model_words
from analyses.figures.palette import BAD, COLOURS, CONTROL, INK, PAPER, REFERENCE
from analyses.figures.rows import Column, Panel, Row, sheet
from analyses.figures.scales import MINUS
from analyses.figures.style import Page
from analyses.figures.subject import NotDrawn
from analyses.gates.receipts import inert_limit
from analyses.summary.folding import MOST_CELLS, MOST_OF_A_STAGE, is_folded, large_grids
from analyses.tables.cells import grid_name
from analyses.tables.run import Run
from analyses.wording import count, plural

PHASES = ("prefill", "decode")
MOST = 34  # writes that are shown; of more, those with something wrong first
_ROW, _BAR = 0.23, 0.12  # inches
_LEAST = 1e-8  # a change of 0 stands here, at the left end of its axis


@dataclass(frozen=True)
class _Write:
    """A write of a condition, or of all cells of a large grid. asked, written, shadowed: positions by phase.
    change: relative change, of the logits where the write has no old tensor. verdict: empty where it acted as
    asked; bad: it never acted, or not as expected (`expect: noop` is meant to change nothing)."""

    label: str
    asked: Mapping[str, int]
    written: Mapping[str, int]
    shadowed: Mapping[str, int]
    phases: tuple[str, ...]
    change: float | None
    verdict: str
    bad: bool
    cells: int = 1


def receipts(run: Run, summary: Mapping[str, Any]) -> Page:
    """Every write of every condition of a run: in each phase the share of the positions it was asked for that
    it wrote (pale: overwritten later), and its mean relative change on a log axis, with the limit below which
    a write counts as inert. Red and hatched: inert, and not as a control. Cells of large grids are added up;
    stages stand one under another. Of more than 34 writes, those with something wrong come first.

    Raises NotDrawn where no write has a valid trial.
    """
    rows = [each for each in summary.get("receipts") or () if each.get("trials")]
    if not rows:
        raise NotDrawn("no write has a valid trial")
    limit = inert_limit(run.manifest)
    parts = summary.get("stages")
    if parts is None:
        found = {"": _writes(rows, summary, limit, MOST_CELLS)}
    else:
        found = {
            stage: _writes([row for row in rows if row["stage"] == stage], part, limit, MOST_OF_A_STAGE)
            for stage, part in parts.items()
        }
    every = sum(map(len, found.values()))
    shown = _most(found)
    writes = [each for held in shown.values() for each in held]
    laid: list[tuple[Row, _Write | None]] = []
    for stage, held in shown.items():
        laid += [(Row(f"Stage {stage}", _ROW, heading=True), None)] if stage else []
        laid += [(Row(each.label, _ROW), each) for each in held]
    phases = [phase for phase in PHASES if any(phase in each.phases for each in writes)]
    panels = [*(Panel(phase, 1.0) for phase in phases), Panel("relative change", 1.2)]
    told = ["" if each is None else each.verdict for _, each in laid]
    colours = [BAD if each is not None and each.bad else REFERENCE for _, each in laid]
    page = sheet([row for row, _ in laid], panels, [Column("", told, colours)] if any(told) else [])
    placed = [(each, y) for (_, each), y in zip(laid, page.middles, strict=True) if each is not None]
    for axes, phase in zip(page.panels, phases, strict=False):
        for each, y in placed:
            _bar(axes, each, phase, y)
        axes.set_xlim(0, 1)
        axes.set_xticks([0, 0.5, 1], ["0", "50%", "all"])
    _changes(page.panels[-1], placed, limit)
    return Page(page.figure, "What the writes did", _caption(run, writes, every, limit, rows))


def _most(found: Mapping[str, Sequence[_Write]]) -> dict[str, list[_Write]]:
    """At most MOST writes by stage, in order, those with something wrong first."""
    every = [each for held in found.values() for each in held]
    kept = {id(each) for each in sorted(every, key=lambda each: (not each.bad, not each.verdict))[:MOST]}
    shown = {stage: [each for each in held if id(each) in kept] for stage, held in found.items()}
    return {stage: held for stage, held in shown.items() if held}


def _writes(
    rows: Sequence[Mapping[str, Any]], summary: Mapping[str, Any], limit: float, most: int
) -> list[_Write]:
    """The writes of a flat run or one stage. most: cells of a grid that are shown one by one."""
    large = large_grids(list(summary.get("conditions") or ()), most)
    apart: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        folded = is_folded(row["condition"], large)
        name = grid_name(row["condition"]) if folded else row["condition"]
        apart.setdefault((name, row["write"]), []).append(row)
    names = [name for name, _ in apart]
    made = []
    for (name, write), held in apart.items():
        first = held[0]["condition"]
        if name == first:
            label = label_of(summary, name)
        else:
            label = f"{grid_label(summary, first)}, {plural(len(held), 'cell')}"
        made.append(_write(f"{label}: {write}" if names.count(name) > 1 else label, held, limit))
    return made


def _write(label: str, held: Sequence[Mapping[str, Any]], limit: float) -> _Write:
    added = {
        key: {phase: sum(row[key].get(phase, 0) for row in held) for phase in PHASES}
        for key in ("asked", "written", "shadowed")
    }
    changes = [change for row in held if (change := _change(row)) is not None]
    found = [_verdict(row, limit) for row in held]
    bad = any(wrong for _, wrong in found)
    words = [words for words, wrong in found if words and wrong == bad]
    verdict = words[0] if words else ""
    if verdict and len(held) > 1 and len(words) < len(held):
        verdict = f"{count(len(words))} of {count(len(held))}: {verdict}"
    phases = tuple(phase for phase in PHASES if any(phase in row["phases"] for row in held))
    change = math.exp(sum(math.log(max(c, _LEAST)) for c in changes) / len(changes)) if changes else None
    return _Write(
        label, added["asked"], added["written"], added["shadowed"], phases, change, verdict, bad, len(held)
    )


def _change(row: Mapping[str, Any]) -> float | None:
    found = row.get("relative_change")
    return row.get("logit_change") if found is None else found


def _verdict(row: Mapping[str, Any], limit: float) -> tuple[str, bool]:
    """What a write did not do, and whether that is wrong: `expect` says what was meant not to act."""
    expected = (row.get("spec") or {}).get("expect")
    change = _change(row)
    silent = [phase for phase in row["phases"] if not row["written"].get(phase)]
    hidden = [
        p for p in row["phases"] if row["written"].get(p) and row["shadowed"].get(p, 0) >= row["written"][p]
    ]
    if silent:
        words = "never fired"
    elif hidden:
        words = "overwritten"
    elif change is not None and change <= limit:
        words = "no change"
    else:
        return ("", False) if expected is None else (f"acted, not {expected}", True)
    if expected == "noop" and not silent and not hidden:
        return f"{words}, expected", False
    return (f"{words}, expected" if expected == "inert" else words), True


def _bar(axes: Axes, write: _Write, phase: str, y: float) -> None:
    if phase not in write.phases:
        axes.text(0.0, y, "not asked", color=CONTROL, va="center", ha="left")
        return
    asked, written = write.asked[phase], write.written[phase]
    shadowed = min(write.shadowed[phase], written)
    part = min(1.0, written / asked) if asked else 0.0
    hidden = part * shadowed / written if written else 0.0
    edge = BAD if write.bad else CONTROL
    hatch = "////////" if write.bad else ""
    axes.barh(y, 1.0, _BAR, facecolor=PAPER, edgecolor=edge, linewidth=0.7, hatch=hatch, zorder=2)
    colour = BAD if write.bad else COLOURS[0]
    axes.barh(y, part - hidden, _BAR, color=colour, linewidth=0, zorder=3)
    axes.barh(y, hidden, _BAR, left=part - hidden, color=colour, alpha=0.35, linewidth=0, zorder=3)


def _changes(axes: Axes, placed: Sequence[tuple[_Write, float]], limit: float) -> None:
    known = [each.change for each, _ in placed if each.change is not None and math.isfinite(each.change)]
    low = min([limit, *known])
    low, high = 10 ** (math.floor(math.log10(max(low, _LEAST))) - 0.5), max([1.0, *known]) * 3
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    powers = range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)
    step = -(-len(powers) // 3)
    axes.xaxis.set_major_locator(FixedLocator([10.0**power for power in powers[::-1][::step]]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _power(value)))
    axes.axvline(limit, color=INK, linestyle=(0, (3, 2)), linewidth=0.8, zorder=1)
    for each, y in placed:
        if each.change is None and not sum(each.written.values()):
            continue
        if each.change is None:
            axes.text(high, y, "not measured ", color=CONTROL, va="center", ha="right")
            continue
        at = min(max(each.change, low), high)
        colour = BAD if each.bad else COLOURS[0]
        axes.plot([low, at], [y, y], color=colour, linewidth=0.8, alpha=0.5, zorder=2)
        axes.plot(
            [at], [y], marker="o", markersize=5, markerfacecolor=PAPER if each.change <= limit else colour,
            markeredgecolor=colour, markeredgewidth=1.1, clip_on=False, zorder=3,
        )  # fmt: skip


def _power(value: float) -> str:
    """1, 0.01 and 1e-6, for the ticks of a log axis."""
    return f"{value:g}" if value >= 0.01 else f"1e{math.log10(value):.0f}".replace("-", MINUS)


def _caption(
    run: Run, writes: Sequence[_Write], every: int, limit: float, rows: Sequence[Mapping[str, Any]]
) -> str:
    trials = sorted({row["trials"] for row in rows})
    number = count(trials[0]) if len(trials) == 1 else f"{count(trials[0])} to {count(trials[-1])}"
    parts = [
        f"Bars: the share of the positions each write was asked for that it wrote, over {number} valid "
        f"trials of a condition. Points: mean |new {MINUS} old| / |old| at the written positions (of the "
        f"first logits, where there is nothing old); dashed: {_power(limit)}, the limit of an inert write.",
    ]  # fmt: skip
    if any(sum(each.shadowed.values()) for each in writes):
        parts.append("Pale: overwritten by a later write.")
    if any(each.bad for each in writes):
        parts.append("Red, hatched: inert, or not what was expected of it.")
    if any(each.cells > 1 for each in writes):
        parts.append("Cells of a large grid are added up; their change is the geometric mean.")
    if every > len(writes):
        parts.append(f"{count(len(writes))} of {count(every)} writes, those with something wrong first.")
    return " ".join([*parts, model_words(run)])
