"""Which part of a run's folder each measuring stage is: a run of its own to every analysis."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from analyses.tables.columns import GRID, NUMBER, RECEIPTS, STRUCTURE
from analyses.tables.run import Run

MEASURE, SELECT, EXTRACT = "measure", "select", "extract"
DONE, LEFT_OUT, PENDING = "done", "left_out", "pending"
# What the manifest of a stage does not take over.
_OF_THE_RUN = ("stages", "findings", "figures", "analyses", "counts")
_OF_THE_OUTLINE = ("status", "reason")  # how the stage ended; `status` is that of the run


def staged(manifest: Mapping[str, Any]) -> bool:
    """Whether the experiment has stages of its own, not the one of the flat form."""
    return bool(manifest.get("stages"))


def sections(manifest: Mapping[str, Any], kind: str | None = None) -> dict[str, Mapping[str, Any]]:
    """The sections of a manifest's stages, in their order; kind: only those of it. Empty for a flat run."""
    found: Mapping[str, Mapping[str, Any]] = manifest.get("stages") or {}
    return {name: section for name, section in found.items() if kind in (None, section.get("kind"))}


def left_out(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Stages that were left out, with the reason."""
    return {
        name: str(section.get("reason") or "no reason is recorded")
        for name, section in sections(manifest).items()
        if section.get("status") == LEFT_OUT
    }


def flat_name(manifest: Mapping[str, Any]) -> str:
    """The name of the one stage of a flat run."""
    return str(manifest.get("experiment", {}).get("stage") or MEASURE)


def stage_runs(run: Run) -> dict[str, Run]:
    """A run for each measuring stage that has trials, in the manifest's order: its rows, and its manifest
    section laid over that of the run. A stage that compares nothing, and so names no primary readout that it
    has, takes its first column of one number as that. Columns that are null in all its rows and belong to
    other stages (their readouts, writes or axes) are dropped. A flat run is its one stage, as it is.
    """
    if not staged(run.manifest):
        return {flat_name(run.manifest): run}
    found = {}
    measured = sections(run.manifest, MEASURE)
    for name, section in measured.items():
        rows = run.trials[run.trials["stage"] == name]
        if rows.empty or section.get("status") == LEFT_OUT:
            continue
        manifest = {key: value for key, value in run.manifest.items() if key not in _OF_THE_RUN}
        manifest |= {key: value for key, value in section.items() if key not in _OF_THE_OUTLINE}
        experiment = {key: v for key, v in run.manifest.get("experiment", {}).items() if key != "question"}
        own = {"question": section.get("question") or "", **(section.get("experiment") or {})}
        manifest["experiment"] = experiment | own | {"stage": name}
        manifest.setdefault("plan_gates", [])
        manifest["contrasts"] = _with_primary(section)
        others = {column for other, its in measured.items() if other != name for column in _columns(its)}
        foreign = [
            column
            for column in rows.columns
            if column not in STRUCTURE
            and _owner(column) in others - _columns(section)
            and rows[column].isna().all()
        ]
        found[name] = Run(rows.drop(columns=foreign).reset_index(drop=True), manifest, run.folder)
    return found


def _with_primary(section: Mapping[str, Any]) -> dict[str, Any]:
    contrasts = dict(section.get("contrasts") or {})
    columns = {
        column: held
        for readout in (section.get("readout") or {}).values()
        for column, held in readout["columns"].items()
    }
    first = next((column for column, held in columns.items() if held == NUMBER), None)
    if contrasts.get("primary", "score") not in columns and first is not None:
        contrasts["primary"] = first
    return contrasts


def _columns(section: Mapping[str, Any]) -> set[str]:
    """What a stage puts into the table: columns of readouts, axes, and the names of its writes as `write.`"""
    conditions = (section.get("conditions") or {}).values()
    return {
        *(column for readout in (section.get("readout") or {}).values() for column in readout["columns"]),
        *(f"{GRID}.{axis}" for condition in conditions for axis in condition.get("grid") or ()),
        *(f"{write}." for condition in conditions for write in condition.get("writes") or ()),
    }


def _owner(column: str) -> str:
    """Under which name `_columns` has a column: that of its write where it is a receipt."""
    write, _, last = str(column).rpartition(".")
    return f"{write}." if write and last in RECEIPTS else str(column)
