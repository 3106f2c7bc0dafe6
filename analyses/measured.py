"""What a run measures, as its manifest says: readouts, their columns, and whether texts are generated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

_OF_TEXT = ("behaviour", "perplexity")  # kinds that say something of the generated text


def readouts_of(manifest: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    """Readout -> its `kind`, its `columns` (name -> what each holds) and its fields; empty where the manifest
    names none."""
    found: Mapping[str, Mapping[str, Any]] = manifest.get("readout") or {}
    return found


def generates(manifest: Mapping[str, Any]) -> bool:
    """Whether the run generates texts: it does unless every readout that it names is a probe."""
    kinds = [readout.get("kind") for readout in readouts_of(manifest).values()]
    return not kinds or any(kind in _OF_TEXT for kind in kinds)


def probe_columns(trials: pd.DataFrame, manifest: Mapping[str, Any]) -> dict[str, list[str]]:
    """Probe -> its columns in the table. Perplexity is none: it is of the text, which is compared itself."""
    return {
        name: [column for column in readout.get("columns") or {} if column in trials.columns]
        for name, readout in readouts_of(manifest).items()
        if readout.get("kind") not in _OF_TEXT
    }


def kind_of_column(column: str, manifest: Mapping[str, Any]) -> str:
    """The kind of the readout that gives a column; empty where none is named."""
    for readout in readouts_of(manifest).values():
        if column in (readout.get("columns") or {}):
            return str(readout.get("kind"))
    return ""
