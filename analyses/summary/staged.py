"""What a run with stages comes to: its findings and choices first, then every stage as a run of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from analyses.findings.finding import Finding
from analyses.findings.findings import findings, read_artefacts, read_choices
from analyses.gates.stages import empty_selections
from analyses.tables.run import Run
from analyses.tables.stages import left_out

_BY_STAGE = ("contrasts", "exploratory", "checks", "trends", "repeats", "gates", "receipts")
_RANGES = ("norm", "resid_norm", "separation", "consistency")
_CHOICE = ("from", "over", "chosen", "sentence", "n_items", "n_cells", "n_pass", "chance")


def of_stages(run: Run, stages: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The part of a summary that its stages make up. stages: the summary of each that has trials.

    `findings`, `choices`, `artefacts`, `left_out` (stage -> reason) and `stages`; `conditions` by
    "stage.condition"; contrasts, exploratory, checks, trends, repeats, gates, receipts of all stages,
    each with its `stage`. The table of a choice is in choices/NAME.json, that of an artefact in
    artefacts/NAME.json.
    """
    choices = read_choices(run.folder)
    found: dict[str, Any] = {
        "findings": [plain_finding(each) for each in findings(run)],
        "choices": {name: _choice(choice) for name, choice in choices.items()},
        "artefacts": {name: _artefact(each) for name, each in read_artefacts(run.folder).items()},
        "left_out": left_out(run.manifest),
        "stages": dict(stages),
        "conditions": {
            f"{stage}.{name}": condition
            for stage, summary in stages.items()
            for name, condition in summary["conditions"].items()
        },
    }
    for key in _BY_STAGE:
        found[key] = [{"stage": stage} | each for stage, summary in stages.items() for each in summary[key]]
    empty = [{"stage": stage} | asdict(gate) for stage, gate in empty_selections(run.manifest, choices)]
    found["gates"] = [*empty, *found["gates"]]
    return found


def plain_finding(finding: Finding) -> dict[str, Any]:
    """A finding in plain data."""
    found = asdict(finding)
    if finding.depth is not None:
        found["depth"]["share"] = finding.depth.share
    return found


def _choice(choice: Mapping[str, Any]) -> dict[str, Any]:
    items = choice.get("items")
    found = {key: choice.get(key) for key in _CHOICE}
    return found | {"items_kept": None if items is None else len(items)}


def _artefact(artefact: Mapping[str, Any]) -> dict[str, Any]:
    """Where an artefact is from, and the ranges of the columns of its table."""
    table = artefact.get("table") or []
    found = {key: artefact.get(key) for key in ("site", "units", "layers", "positions", "groups")}
    found["rows"] = len(table)
    for column in _RANGES:
        values = [row[column] for row in table if row.get(column) is not None]
        found[column] = [min(values), max(values)] if values else None
    return found
