"""Tables and manifests of made runs, for the tests of the gates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from analyses.gates.all_gates import result_gates
from analyses.gates.gate import Gate

N = 20
SAMPLING = {"temperature": 0.8, "top_k": None, "top_p": None, "max_new_tokens": 10}


def write(**fields: Any) -> dict[str, Any]:
    """One write of the manifest; a V_PROJ write in decode unless told otherwise."""
    spec = {
        "site": "v_proj",
        "layers": [7],
        "op": "replace",
        "value": "donor",
        "positions": "last:16",
        "during": "decode",
        "hold": "cycle",
        "align": None,
        "rope": None,
        "expect": None,
        "min_positions": None,
        "has_old": True,
    }
    return spec | fields


def condition(writes: Mapping[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    return {"label": "", "words": [], "writes": writes or {}, "sampling": SAMPLING, "same_as": None} | fields


def manifest(conditions: Mapping[str, Any], **fields: Any) -> dict[str, Any]:
    return {
        "schema": 1,
        "experiment": {"name": "made", "n": N, "repeats": 1},
        "dtype": "float32",
        "conditions": {"baseline": condition(), **conditions},
        "contrasts": {"family": "each_against_baseline", "baseline": "baseline", "primary": "score"},
    } | fields


def rows(name: str, *, n: int = N, offset: int = 0, tokens: int = 60, **columns: Any) -> pd.DataFrame:
    """n valid trials of one condition, with texts of that many tokens; a column is a constant or one value
    per trial."""
    frame = pd.DataFrame(
        {
            "stage": "measure",
            "condition": name,
            "item": [f"{i:04d}" for i in range(n)],
            "donor": [f"d{i}" for i in range(n)],
            "target": [f"t{i}" for i in range(n)],
            "repeat": 0,
            "status": "ok",
            "reason": None,
            "output_ids": [[offset + i, i + 1, *[7] * (tokens - 2)] for i in range(n)],
            "score": [float((i * 7 + offset) % 5) for i in range(n)],
            "origin": None,
            "batch_rows": 8,
            "batch_length": 30,
        }
    )
    for key, value in columns.items():
        frame[key] = value
    return frame


def receipt(
    write_name: str, prefill: Sequence[int], decode: Sequence[int], change: float | None, **more: float
) -> dict[str, Any]:
    """Receipt columns of one write, each trial alike: (asked, written) by phase and the relative change."""
    return {
        f"{write_name}.asked_prefill": prefill[0],
        f"{write_name}.positions_prefill": prefill[1],
        f"{write_name}.asked_decode": decode[0],
        f"{write_name}.positions_decode": decode[1],
        f"{write_name}.positions_shadowed": 0,
        f"{write_name}.relative_change": math.nan if change is None else change,
        f"{write_name}.keys_ahead": 0,
    } | {f"{write_name}.{key}": value for key, value in more.items()}


def table(*frames: pd.DataFrame) -> pd.DataFrame:
    return pd.concat(frames, ignore_index=True)


def probed(name: str, *, n: int = N, offset: int = 0, **columns: Any) -> pd.DataFrame:
    """n valid trials of one condition of a run that generates nothing: columns are those of its probes."""
    frame = rows(name, n=n, offset=offset).drop(columns="score")
    frame["output_ids"] = [[] for _ in range(n)]
    for key, value in columns.items():
        frame[key] = value
    return frame


def readout(kind: str, *columns: str) -> dict[str, Any]:
    """A readout of the manifest."""
    return {"kind": kind, "version": 1, "columns": dict.fromkeys(columns, "number")}


def named(gates: Sequence[Gate], gate: str) -> list[Gate]:
    return [found for found in gates if found.gate == gate]


def gates_of(spec: Mapping[str, Any], columns: Mapping[str, Any], **fields: Any) -> list[Gate]:
    """Gates of a run of baseline and one treated condition with one write, v_proj."""
    trials = table(rows("baseline"), rows("treated", offset=100, **columns))
    return result_gates(trials, manifest({"treated": condition({"v_proj": spec})}, **fields))
