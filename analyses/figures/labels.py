"""How conditions, models and numbers are called on the figures that a run gets of itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from analyses.summary.folding import cell_of
from analyses.tables.cells import grid_name
from analyses.tables.run import Run
from analyses.wording import count, plural


def label_of(summary: Mapping[str, Any], condition: str) -> str:
    """The label of a condition; of a cell of a grid, with its place in the grid in words; its name where
    another condition has the same label."""
    conditions = summary.get("conditions") or {}
    label = str(conditions.get(condition, {}).get("label") or condition)
    if "[" in condition:
        return f"{grid_label(summary, condition)}, {cell_of(condition)}"
    same = sum(body.get("label") == label for body in conditions.values())
    return f"{label} ({condition})" if same > 1 else label


def grid_label(summary: Mapping[str, Any], cell: str) -> str:
    """The label of the grid that a condition is a cell of."""
    label = str((summary.get("conditions") or {}).get(cell, {}).get("label") or cell)
    return label.partition("[")[0].strip() or grid_name(cell)


def model_words(run: Run) -> str:
    """The model and the stage, as every caption ends."""
    manifest = run.manifest
    model = manifest.get("model") or {}
    name = str(model.get("name") or "unnamed model")
    layers = model.get("layers")
    told = name if layers is None else f"{name} ({plural(int(layers), 'layer')})"
    stage = manifest.get("experiment", {}).get("stage")
    place = f"{told}; stage {stage}." if stage else f"{told}."
    return " ".join([place, *([str(manifest["in_sample"])] if manifest.get("in_sample") else [])])


def range_words(numbers: Sequence[int]) -> str:
    """ "300", or "298 to 300" where they differ; "0" where there are none."""
    if not numbers:
        return "0"
    low, high = count(min(numbers)), count(max(numbers))
    return low if low == high else f"{low} to {high}"
