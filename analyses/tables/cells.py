"""Which cells a grid has, and the values of a readout in each, trial by trial."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

UNIT = ["item", "repeat"]
Axes = Mapping[str, Any]
_ENTRY = re.compile(r"([\w.]+)\[(-?\d+|first|last)\]")


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


def values_of(
    rows: pd.DataFrame, word: str, readouts: Mapping[str, Mapping[str, Any]] | None = None
) -> pd.Series:
    """The numbers of a readout, row by row: those of the column of that name, of the first column of the
    readout of that name, or of an entry of a list (`lens.rank[3]`: layer 3, where the readout has layers).

    readouts: those of the manifest. Undefined values are NaN. Raises KeyError, which names what there is, for
    a word that is none of these, and for a list without an entry.
    """
    readouts = readouts or {}
    found = _ENTRY.fullmatch(word)
    name, entry = (found[1], found[2]) if found else (word, None)
    column = name
    if name not in rows.columns:
        columns = list((readouts.get(name) or {}).get("columns") or ())
        if not columns or columns[0] not in rows.columns:
            offered = dict.fromkeys((*readouts, *(c for r in readouts.values() for c in r["columns"])))
            known = ", ".join(offered) or ", ".join(map(str, rows.columns))
            raise KeyError(f"{word}: expected a readout of the table ({known})")
        column = columns[0]
    held = rows[column]
    if entry is not None:
        place = _place(entry, column, readouts)
        held = held.map(lambda cell: _entry(cell, place))
    elif held.map(lambda cell: isinstance(cell, list | tuple | np.ndarray)).any():
        raise KeyError(f"{word}: expected one number a trial, found lists; say which entry, as {word}[last]")
    return pd.to_numeric(held, errors="coerce").astype(float)


def _place(entry: str, column: str, readouts: Mapping[str, Mapping[str, Any]]) -> int:
    if entry in ("first", "last"):
        return 0 if entry == "first" else -1
    number = int(entry)
    for readout in readouts.values():
        layers = readout.get("layers")
        if column in readout["columns"] and layers:
            if number not in layers:
                raise KeyError(f"{column}[{entry}]: expected one of the layers {', '.join(map(str, layers))}")
            return list(layers).index(number)
    return number


def _entry(cell: object, place: int) -> float | None:
    if not isinstance(cell, list | tuple | np.ndarray) or not -len(cell) <= place < len(cell):
        return None
    value = cell[place]
    return None if value is None else float(value)
