"""Which cells a grid has and what its axes are called, from the manifest alone; nothing heavy is imported
here, so that a configuration is checked by the same words."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Axes = Mapping[str, Any]


def grid_name(condition: str) -> str:
    """The grid that a condition is a cell of; a condition that is none is its own."""
    return condition.partition("[")[0]


def cells_of(conditions: Mapping[str, Any], grid: str) -> dict[str, Axes]:
    """The conditions of a grid with the values of their axes, in the manifest's order; a condition that is no
    cell stands alone, without axes. Empty where there is no such name."""
    if grid in conditions:
        return {grid: conditions[grid].get("grid") or {}}
    return {
        name: body["grid"]
        for name, body in conditions.items()
        if body.get("grid") and grid_name(name) == grid
    }


def grids_of(conditions: Mapping[str, Any]) -> dict[str, dict[str, Axes]]:
    """Every grid with its cells."""
    names = dict.fromkeys(grid_name(name) for name, body in conditions.items() if body.get("grid"))
    return {name: cells_of(conditions, name) for name in names}


def axis_named(word: str, axes: Sequence[str]) -> str | None:
    """The axis that a word means: its name, or its last part where only one axis has it."""
    if word in axes:
        return word
    ends = [axis for axis in axes if axis.rpartition(".")[2] == word.rpartition(".")[2]]
    return ends[0] if len(ends) == 1 else None


def axis_key(value: object) -> str:
    """An axis value as a key: 4 and "4" are the same, lists are told by their entries."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, str) else json.dumps(value)


def cell_words(axes: Axes) -> str:
    """A cell in words, axes by their last part: "from_layer 4, from_positions index:-1"."""
    return ", ".join(f"{axis.rpartition('.')[2]} {axis_words(value)}" for axis, value in axes.items())


def axis_words(value: object) -> str:
    """A value of an axis in words: whole numbers in a row, as a window of layers has them, as "3-7"."""
    told = "+".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    parts = told.split("+")
    if len(parts) < 3 or not all(part.isdecimal() for part in parts):
        return told
    numbers = [int(part) for part in parts]
    in_a_row = numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    return f"{numbers[0]}-{numbers[-1]}" if in_a_row else told
