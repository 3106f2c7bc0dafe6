"""A select stage: a choice over an earlier table, kept with the table that it came from."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from analyses.choices.selection import Selection, select_cells, select_items, select_rows
from analyses.tables.light import NOT_READ
from runner.config.stages.known import Chosen
from runner.config.stages.spec import SelectStageSpec
from runner.results.store import atomic_write
from runner.stages.run import StagedRun

FOLDER = "choices"


@dataclass(frozen=True)
class Made:
    """A choice as it is stored: what was chosen, from what, and by which rule."""

    name: str
    source: str
    rule: dict[str, Any]
    selection: Selection

    def plain(self) -> dict[str, Any]:
        found = self.selection
        return {
            "name": self.name,
            "from": self.source,
            "rule": self.rule,
            "over": self.rule["over"],
            "chosen": [dict(cell) for cell in found.chosen],
            "items": None if found.items is None else [list(item) for item in found.items],
            "sentence": found.sentence,
            "n_items": found.n_items,
            "chance": found.chance,
            "n_cells": len(found.table),
            "n_pass": sum(bool(row.get("passes")) for row in found.table),
            "table": [dict(row) for row in found.table],
        }


def select_stage(run: StagedRun, name: str, body: SelectStageSpec, layers: int) -> Chosen:
    """Choose, write choices/NAME.json and say what was chosen. layers: of the model, for depths."""
    rule = body.model_dump(mode="json", by_alias=True)
    made = Made(name, body.from_, rule, _selected(run, body, rule, layers))
    folder = run.folder.path / FOLDER
    folder.mkdir(exist_ok=True)
    text = json.dumps(made.plain(), indent=2, ensure_ascii=False, default=str)
    atomic_write(folder / f"{name}.json", text.encode())
    found = made.selection
    chosen = Chosen(
        name,
        tuple(found.chosen),
        None if found.items is None else frozenset((donor, target) for donor, target in found.items),
        found.sentence,
    )
    run.speaker.say(f"stage {name}: select from {body.from_}", "bold")
    run.speaker.say(found.sentence, "yellow" if chosen.empty else "")
    return chosen


def _selected(run: StagedRun, body: SelectStageSpec, rule: dict[str, Any], layers: int) -> Selection:
    artefact = run.known.artefacts.get(body.from_)
    excluded = () if body.but is None else run.known.choices[body.but].cells
    if artefact is not None:
        return select_rows(artefact.table, rule, layers, excluded=excluded)
    trials, section = run.tables[body.from_].table(NOT_READ).to_pandas(), run.sections[body.from_]
    conditions, readouts = section["conditions"], section["readout"]
    if body.items:
        return select_items(trials, rule, conditions=conditions, readouts=readouts)
    return select_cells(trials, conditions, rule, layers, excluded=excluded, readouts=readouts)
