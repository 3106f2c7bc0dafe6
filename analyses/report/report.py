"""The report of a run: `report.html` in its folder, one file that opens from disk and loads nothing."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from analyses.figures import Drawn
from analyses.findings.tables import stage_head
from analyses.report.beyond import analyses_section, choices_section, confounds_section, findings_section
from analyses.report.evidence import gates_section
from analyses.report.measured import Block, blocks
from analyses.report.opening import opening, verdict_section
from analyses.report.page import Section, page
from analyses.report.parts import drawing, heading, paragraph, rendered, together
from analyses.report.record import manifest_section, reproduce_section
from analyses.report.trials import Shown, shown_trials
from analyses.tables.run import Run
from analyses.wording import count

NAME = "report.html"
_ANALYSIS = "analysis_"  # before the name of an analysis, in that of its figure
# The figures that belong to a part of the page, by the last word of their name; the others stand together.
_PLACES = {
    "forest": "contrasts",
    "raincloud": "results",
    "shares": "results",
    "dose": "trends",
    "receipts": "receipts",
}


def write_report(run: Run, summary: Mapping[str, Any], drawn: Drawn) -> Path:
    """Write `report.html` into the run's folder, whole or not at all; returns its path.

    summary: as `analyses.summary.summary.summarise` gives it for this run; drawn: the figures of the run, as
    `analyses.figures.draw` returns them. Everything that the page says is from these three. Raises OSError
    where the folder cannot be written.
    """
    path = run.folder / NAME
    aside = path.with_name(f".{NAME}.{os.getpid()}.part")
    try:
        with aside.open("w", encoding="utf-8") as file:
            file.write(report(run, summary, drawn))
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    return path


def report(run: Run, summary: Mapping[str, Any], drawn: Drawn) -> str:
    """The page of a run as HTML: the verdict, gates and receipts, what each condition does, results,
    contrasts beside published figures, figures, analyses, confounds, choices, trials, manifest, how to
    reproduce. At most `trials.MOST_TRIALS` trials are in it."""
    pictures = _drawings(summary, drawn)
    shown = shown_trials(run)
    found: list[Section | None] = [
        verdict_section(summary),
        gates_section(summary, [each for part in pictures.values() for each in part.get("receipts", ())]),
        findings_section(summary),
    ]
    if "stages" in summary:
        found.append(choices_section(summary))
        found += [_stage(name, part, pictures.get(name, {})) for name, part in summary["stages"].items()]
    else:
        found += [
            Section(each.anchor, each.title, each.body, each.note) for each in blocks(summary, pictures[""])
        ]
    found += [
        _figures(drawn, pictures),
        analyses_section(summary, _of_analyses(summary, pictures)),
        confounds_section(run, summary),
        _trials(shown),
        manifest_section(run),
        reproduce_section(run),
    ]
    title = str(summary["experiment"].get("name") or "Report")
    return page(
        f"{title}, {run.folder.resolve().name}",
        [each for each in found if each is not None],
        header=opening(run, summary),
        data={"trials": shown.data},
        styles=("trials.css",),
        scripts=("trials.js",),
    )


def _stage(name: str, summary: Mapping[str, Any], pictures: Mapping[str, Sequence[Markup]]) -> Section:
    """A stage that measured, all its parts one below the other."""
    bodies = [paragraph(f"{stage_head(name, summary)}.", "lead")]
    for each in blocks(summary, pictures):
        bodies.append(_block(name, each))
    return Section(f"stage-{name}", f"Stage {name}", together(*bodies))


def _block(stage: str, block: Block) -> Markup:
    return Markup('<div id="{}">{}{}</div>').format(
        f"{stage}-{block.anchor}", heading(block.title), block.body
    )


def _drawings(summary: Mapping[str, Any], drawn: Drawn) -> dict[str, dict[str, list[Markup]]]:
    """Figures as parts of the page: stage ("" of a flat run) -> place -> figures. Place "": none of its
    own."""
    stages = list(summary["stages"]) if "stages" in summary else [""]
    analysed = {str(each["name"]) for each in summary.get("analyses") or []}
    found: dict[str, dict[str, list[Markup]]] = {stage: {} for stage in stages}
    for name, svg in drawn.svg.items():
        stage = max((each for each in stages if each and name.startswith(f"{each}_")), key=len, default="")
        kind = name.removeprefix(f"{stage}_") if stage else name
        place = _PLACES.get(kind, "") if stage or "stages" not in summary else ""
        if kind.removeprefix(_ANALYSIS) in analysed and kind.startswith(_ANALYSIS):
            place = kind
        files = [(kind.upper(), f"figures/{name}.{kind}") for kind in ("png", "pdf")]
        picture = drawing(drawn.titles.get(name, ""), svg, drawn.captions.get(name, ""), files)
        found.setdefault(stage if place else "", {}).setdefault(place, []).append(picture)
    return found


def _of_analyses(
    summary: Mapping[str, Any], pictures: Mapping[str, Mapping[str, Sequence[Markup]]]
) -> dict[str, list[Markup]]:
    """The figures of declared analyses, by the name of the analysis."""
    found: dict[str, list[Markup]] = {}
    for part in pictures.values():
        for each in summary.get("analyses") or []:
            found.setdefault(str(each["name"]), []).extend(part.get(f"{_ANALYSIS}{each['name']}", ()))
    return found


def _figures(drawn: Drawn, pictures: Mapping[str, Mapping[str, Sequence[Markup]]]) -> Section | None:
    """The figures that belong to no other part, and why others are missing."""
    rest = pictures.get("", {}).get("", ())
    if not rest and not drawn.skipped:
        return None
    missing = [
        paragraph(f"{sentence[:1].upper()}{sentence[1:]}.", "about") for sentence in drawn.skipped.values()
    ]
    return Section("figures", "Figures", together(*rest, *missing), count(len(rest)) if rest else "")


def _trials(shown: Shown) -> Section:
    if not shown.trials:
        return Section("trials", "Trials", paragraph("There is no trial yet."))
    return Section(
        "trials",
        "Trials",
        rendered("trials.html.j2", sentences=shown.sentences),
        count(shown.trials),
        wide=True,
    )
