"""What a run measures, as its manifest says: readouts, their columns, and whether texts are generated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

# Kinds that say something of the generated text, and those that are computed from other columns.
_OF_TEXT = ("behaviour", "perplexity", "contains", "degenerate")
_DERIVED = ("onset", "difference", "holds")
COUNTED = ("onset", "difference", "rank", "lens", "top_k")  # kinds of layers and ranks: 0 and 1 are no share


def readouts_of(manifest: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    """Readout -> its `kind`, its `columns` (name -> what each holds) and its fields; empty where the manifest
    names none."""
    found: Mapping[str, Mapping[str, Any]] = manifest.get("readout") or {}
    return found


def generates(manifest: Mapping[str, Any]) -> bool:
    """Whether the run generates texts: it does unless no readout that it names reads one."""
    kinds = [readout.get("kind") for readout in readouts_of(manifest).values()]
    return not kinds or any(kind in _OF_TEXT for kind in kinds)


def probe_columns(trials: pd.DataFrame, manifest: Mapping[str, Any]) -> dict[str, list[str]]:
    """Probe -> its columns in the table. What is of the text is none, since that is compared itself; nor is
    what is derived from other columns, which may be undefined as a result (an onset that never comes)."""
    return {
        name: [column for column in readout.get("columns") or {} if column in trials.columns]
        for name, readout in readouts_of(manifest).items()
        if readout.get("kind") not in (*_OF_TEXT, *_DERIVED)
    }


def kind_of_column(column: str, manifest: Mapping[str, Any]) -> str:
    """The kind of the readout that gives a column; empty where none is named."""
    for readout in readouts_of(manifest).values():
        if column in (readout.get("columns") or {}):
            return str(readout.get("kind"))
    return ""
