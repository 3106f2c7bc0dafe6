"""What an experiment asks beyond its contrasts, what a difference may be due to, what its stages chose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from analyses.findings.tables import HEAD, artefact_sentences, choice_sentences, finding_row
from analyses.gates.confounds import BETWEEN
from analyses.report.page import Section
from analyses.report.parts import NOTHING, Cell, bullets, heading, name, number, paragraph, table, together
from analyses.tables.run import Run
from analyses.wording import count, figure, listed

CONFOUNDS = "Differences in prompts"
_MOST_ROWS = 200  # of a table of an analysis


def analyses_section(summary: Mapping[str, Any], drawings: Mapping[str, Sequence[Markup]]) -> Section | None:
    """The declared analyses: each a sentence, its figures and a table, whatever its kind. drawings: figures
    by the name of the analysis."""
    found = summary.get("analyses") or []
    if not found:
        return None
    bodies: list[Markup] = []
    for each in found:
        marks = [f"stage {each['stage']}"] if each.get("stage") and "stages" in summary else []
        marks += ["exploratory"] if each.get("exploratory") else []
        aside = Markup(' <span class="aside">{}</span>').format(", ".join(marks)) if marks else ""
        bodies.append(heading(Markup("{}{}").format(str(each.get("label") or each["name"]), aside)))
        bodies.append(paragraph(_sentence(each)))
        if each.get("note"):
            bodies.append(paragraph(str(each["note"]), "about"))
        bodies += drawings.get(str(each["name"]), ())
        told = each.get("table")
        if told and told["rows"]:
            bodies.append(_table([str(column) for column in told["columns"]], told["rows"][:_MOST_ROWS]))
            if len(told["rows"]) > _MOST_ROWS:
                more = len(told["rows"]) - _MOST_ROWS
                bodies.append(paragraph(f"{count(more)} more rows are in summary.json.", "about"))
    return Section("analyses", "Analyses", together(*bodies), count(len(found)))


def findings_section(summary: Mapping[str, Any]) -> Section | None:
    """The findings as a table, beside what was published."""
    found = summary.get("findings") or []
    if not found:
        return None
    rows = [
        [Cell(cells[0]), *(number(_dash(cell)) for cell in cells[1:-1]), Cell(_dash(cells[-1]))]
        for cells in map(finding_row, found)
    ]
    about = (
        "Shares have Wilson's interval, differences of shares Newcombe's, with the effective n where trials "
        "share prompts; other figures the clustered t interval. Differences of shares are tested by "
        "McNemar's exact test, others by the clustered t test; Holm corrects over all findings."
    )
    return Section(
        "findings", "Findings", together(table(HEAD, rows), paragraph(about, "about")), count(len(found))
    )


def confounds_section(run: Run, summary: Mapping[str, Any]) -> Section:
    """In which known facts the prompts of compared conditions differ: what a difference may be due to."""
    parts = run.manifest.get("stages") or {"": run.manifest}
    rows: list[list[Cell]] = []
    compared = 0
    for stage, part in parts.items():
        told = summary["stages"].get(stage, {}) if "stages" in summary else summary
        compared += len(told.get("contrasts") or ())
        for pair, found in (part.get("factors") or {}).items():
            one, _, other = str(pair).partition(BETWEEN)
            facts = list(dict.fromkeys(map(str, found)))
            if not facts:
                continue
            several = len(facts) > 1
            verdict = (
                Cell(
                    f"! {count(len(facts))} facts at once: a difference cannot be put down to one",
                    "sign-warn",
                )
                if several
                else Cell("one fact: what is compared")
            )
            where = [name(stage)] if stage else []
            rows.append([*where, name(f"{one} \u2212 {other}"), Cell(listed(facts)), verdict])
    if not compared and not rows:
        return Section("confounds", CONFOUNDS, paragraph("Nothing is compared."))
    rest = (
        "The other compared conditions read the same prompts, prompts between which no known fact differs, "
        "or share their prompts with a pair above."
    )
    if not rows:
        told = (
            "Compared conditions read the same prompts, or prompts between which no known fact differs: "
            "they differ in what is written into the model. Facts are those that the banks state."
        )
        return Section("confounds", CONFOUNDS, paragraph(told))
    head = [*(["stage"] if any(len(row) == 4 for row in rows) else []), "compared", "differ in", ""]
    note = "several" if any(row[-1].classes for row in rows) else ""
    body = together(table(head, rows), paragraph(rest, "about"))
    return Section("confounds", CONFOUNDS, body, note)


def choices_section(summary: Mapping[str, Any]) -> Section | None:
    """What stages chose and extracted, with the reason."""
    choices, artefacts = summary.get("choices") or {}, summary.get("artefacts") or {}
    if not choices and not artefacts:
        return None
    bodies: list[Markup] = []
    if choices:
        bodies += [heading("Choices"), _named(choice_sentences(summary))]
        bodies.append(paragraph("Every candidate with its figures is in choices/NAME.json.", "about"))
    if artefacts:
        bodies += [heading("Artefacts"), _named(artefact_sentences(summary))]
    return Section(
        "choices", "Choices and artefacts", together(*bodies), count(len(choices) + len(artefacts))
    )


def _named(entries: Sequence[tuple[str, str]]) -> Markup:
    return bullets(Markup('<span class="name">{}</span>: {}').format(key, told) for key, told in entries)


def _sentence(analysis: Mapping[str, Any]) -> str:
    """Its sentence without the label, which is the heading."""
    told = str(analysis.get("sentence") or "It has no result.")
    label = str(analysis.get("label") or analysis["name"])
    for before in (f"{label}: ", f"{label} (exploratory): "):
        told = told.removeprefix(before)
    return told


def _table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Markup:
    """The table of an analysis, columns of figures aligned right."""
    numeric = [place > 0 and all(_is_figure(row[place]) for row in rows) for place in range(len(columns))]
    cells = [
        [
            number(_told(value)) if right else Cell(_told(value))
            for value, right in zip(row, numeric, strict=True)
        ]
        for row in rows
    ]
    return table(columns, cells)


def _is_figure(value: object) -> bool:
    """Whether a cell is a figure, or empty: a number, or a text that begins as one."""
    text = "" if value is None else str(value)
    return not isinstance(value, bool) and (
        text.lstrip("-\u2212<> ")[:1].isdigit() or not text.strip("-\u2013 ")
    )


def _told(value: object) -> str:
    if value is None:
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return count(value) if isinstance(value, int) else figure(value)
    return str(value)


def _dash(text: str) -> str:
    return NOTHING if text == "-" else text
