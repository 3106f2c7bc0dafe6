"""The values of a readout, trial by trial, and the grids that trials are of."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from analyses.tables.axes import Axes as Axes
from analyses.tables.axes import axis_key as axis_key
from analyses.tables.axes import axis_named as axis_named
from analyses.tables.axes import axis_words as axis_words
from analyses.tables.axes import cell_words as cell_words
from analyses.tables.axes import cells_of as cells_of
from analyses.tables.axes import grid_name as grid_name
from analyses.tables.axes import grids_of as grids_of

UNIT = ["item", "repeat"]
_ENTRY = re.compile(r"([\w.]+)\[(-?\d+|first|last)\]")


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
