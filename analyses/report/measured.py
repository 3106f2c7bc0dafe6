"""What a flat run or a stage measured: conditions in words, results, contrasts and what they stand on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from analyses.report.contrasts import contrasts, exploratory, title
from analyses.report.parts import (
    NOTHING,
    Cell,
    Verdict,
    bullets,
    dash,
    folded,
    name,
    number,
    paragraph,
    table,
    together,
    verdicts,
)
from analyses.report.published import published
from analyses.summary.folding import cell_of, fold, large_grids, without_cells
from analyses.summary.markdown import means, others, percent, repeat_cell, span
from analyses.tables.run import SCORES
from analyses.wording import count, figure, in_column, plural
from analyses.wording import together as in_one_unit

_MOST_BESIDE = 8  # readouts beside the primary one, in the table of results
CHECKED = {"met": ("\u2713", "good"), "not met": ("\u2715", "fail"), "undecided": ("?", "warn")}


@dataclass(frozen=True)
class Block:
    """A part of a section, or a section of a flat run. anchor, title: where it is one."""

    anchor: str
    title: str
    body: Markup
    note: str = ""


def blocks(summary: Mapping[str, Any], drawings: Mapping[str, Sequence[Markup]]) -> list[Block]:
    """All that a flat run or a stage measured, in order. drawings: figures by the block they belong to."""
    found = [
        Block("conditions", "What each condition does", conditions(summary), _number(summary["conditions"])),
        Block("results", "Results by condition", together(results(summary), *drawings.get("results", ()))),
        Block(
            "contrasts",
            "Contrasts",
            contrasts(summary, drawings.get("contrasts", ())),
            _number(summary["contrasts"]),
        ),
    ]
    if summary["published"] is not None:
        found.append(Block("published", "As published", published(summary["published"])))
    if summary["checks"]:
        found.append(Block("checks", "Checks", checks(summary), _number(summary["checks"])))
    if summary["trends"]:
        found.append(Block("trends", "Trends", together(trends(summary), *drawings.get("trends", ()))))
    if summary["repeats"]:
        found.append(Block("repeats", "By repeat", repeats(summary)))
    if summary.get("exploratory"):
        found.append(Block("exploratory", "Exploratory", exploratory(summary)))
    return found


def conditions(summary: Mapping[str, Any]) -> Markup:
    """Each condition in the words of what was resolved and run, whatever its name says."""
    entries = []
    for grid, cells in large_grids(list(summary["conditions"])).items():
        first = summary["conditions"][cells[0]]
        told = f"{plural(len(cells), 'cell')}; the first is {cell_of(cells[0])}."
        entries.append((grid, told, first["words"]))
    for key, each in without_cells(summary["conditions"]).items():
        entries.append((key, "" if each["label"] == key else each["label"], each["words"]))
    item = Markup('<div><dt><span class="name">{}</span>{}</dt><dd>{}</dd></div>')
    rows = [
        item.format(
            key,
            Markup('<span class="label">{}</span>').format(label) if label else "",
            _lines(words),
        )
        for key, label, words in entries
    ]
    about = "In words made from what was resolved and run, not from names."
    return together(
        paragraph(about, "about lead"), Markup('<dl class="conditions">{}</dl>').format(Markup("").join(rows))
    )


def _lines(words: Sequence[str]) -> Markup:
    """Sentences below each other: the prompt, each write, how it samples."""
    told = words or ["No description was recorded."]
    return Markup("").join(Markup("<p>{}</p>").format(each) for each in told)


def results(summary: Mapping[str, Any]) -> Markup:
    """The primary readout of each condition, and means of the others."""
    primary, beside = summary["primary"], others(summary)
    shares = ("strong", "moderate", "none") if primary == SCORES[0] else ()
    head = [
        "condition",
        "n",
        "mean",
        "sd",
        "median",
        "range",
        *(("\u2265 8", "\u2265 5", "0") if shares else ()),
    ]
    told_beside = beside[:_MOST_BESIDE]
    single = without_cells(summary["conditions"])
    columns = {each: in_column(means({"conditions": single}, each)) for each in told_beside}
    rows: list[list[Cell]] = []
    for place, (key, each) in enumerate(single.items()):
        found = each["readouts"].get(primary, {})
        told = in_one_unit(*(found.get(k) for k in ("mean", "sd", "median", "minimum", "maximum")))
        told = [NOTHING if value == "undefined" else value for value in told]
        ends = _range(found.get("minimum"), found.get("maximum"), told[3:])
        row = [name(key), number(_n(each)), *map(number, told[:3]), number(ends)]
        row += [number(percent(found.get(share))) for share in shares]
        row += [number(dash(columns[column][place])) for column in told_beside]
        rows.append(row)
    bodies = [_grids(summary)]
    if rows:
        bodies.append(table([*head, *told_beside], rows))
    shown = "; the shares are of at least 8 (strong), at least 5 and 0" if shares else ""
    left = (
        f" {count(len(beside) - _MOST_BESIDE)} more readouts are in summary.json."
        if beside[_MOST_BESIDE:]
        else ""
    )
    about = f"{primary}: mean, sd (ddof 1), median and range{shown}. The other readouts are means.{left}"
    notes = [
        f"{key}, {column}: {found['note']}."
        for key, each in single.items()
        for column, found in each["readouts"].items()
        if found["note"]
    ]
    bodies.append(paragraph(about, "about"))
    if notes:
        bodies.append(folded(plural(len(notes), "note"), bullets(notes)))
    return together(*bodies)


def _range(low: float | None, high: float | None, told: Sequence[str]) -> str:
    """The least and the greatest value; whole ones, such as counts of words, without decimals."""
    if low is None or high is None:
        return NOTHING
    ends = [count(low), count(high)] if low == round(low) and high == round(high) else told
    return f"{ends[0]} to {ends[1]}"


def _grids(summary: Mapping[str, Any]) -> Markup:
    rows = []
    for readout in (summary["primary"], *others(summary)):
        for grid in fold(summary["conditions"], readout):
            if grid.mean is None:
                continue
            ends = [
                NOTHING if cell is None else f"{figure(cell[1])} at {cell[0]}"
                for cell in (grid.lowest, grid.highest)
            ]
            sizes = [number(count(len(grid.cells))), number(span(grid.n))]
            rows.append([name(grid.name), *sizes, readout, number(figure(grid.mean)), *ends])
    head = ["grid", "cells", "n of a cell", "readout", "mean", "lowest cell", "highest cell"]
    return table(head, rows) if rows else Markup("")


def checks(summary: Mapping[str, Any]) -> Markup:
    """What must come out in a known way."""
    entries = []
    for each in summary["checks"]:
        sign, kind = CHECKED.get(str(each["verdict"]), ("?", ""))
        entries.append(Verdict(kind, sign, str(each["verdict"]), str(each["sentence"])))
    about = (
        "What must come out in a known way. same: in no trial different; different: in most; higher, lower: "
        "on average, clustered by donor and target, corrected together by Holm."
    )
    return together(verdicts(entries), paragraph(about, "about"))


def trends(summary: Mapping[str, Any]) -> Markup:
    """Slopes over doses."""
    bodies: list[Markup] = []
    for each in summary["trends"]:
        told = in_column(each["means"]) or [NOTHING] * len(each["doses"])
        rows = [
            [name(key), number(f"{dose:g}"), number(dash(mean))]
            for key, dose, mean in zip(each["conditions"], each["doses"], told, strict=True)
        ]
        bodies += [
            paragraph(str(each["sentence"])),
            table(["condition", "dose", f"mean {each['readout']}"], rows),
        ]
    about = (
        "Slope of least squares over items that have every dose, clustered. Holm corrects over the trends, "
        "apart from the contrasts: they are exploratory."
    )
    return together(*bodies, paragraph(about, "about"))


def repeats(summary: Mapping[str, Any]) -> Markup:
    """Each difference for each repeat alone."""
    found = summary["repeats"]
    head = ["repeat", *map(title, found)]
    rows = [
        [Cell(str(of_repeat[0]["repeat"])), *(number(repeat_cell(row)) for row in of_repeat)]
        for of_repeat in zip(*(each["rows"] for each in found), strict=True)
    ]
    rows.append(
        [Cell("leaves out 0"), *(number(f"{each['excluding_zero']} of {each['of']}") for each in found)]
    )
    about = "Difference and 95% interval of each repeat alone, clustered, not corrected."
    return together(
        bullets(str(each["sentence"]) for each in found), table(head, rows), paragraph(about, "about")
    )


def _n(condition: Mapping[str, Any]) -> str:
    """ "300", or "298 of 300" where trials have no value."""
    missing = sum(condition[key] for key in ("invalid", "failed", "pending"))
    n = condition["n"]
    return f"{count(n)} of {count(n + missing)}" if missing else count(n)


def _number(entries: Sequence[Any] | Mapping[str, Any]) -> str:
    return count(len(entries)) if entries else ""
