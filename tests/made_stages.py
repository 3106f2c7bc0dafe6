"""A run with stages, made from known figures: candidates, a choice among them, and their test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analyses.choices.selection import select_cells
from analyses.tables.run import Run

N = 40
LAYERS = 9
FROM, AT = "dir.from_layer", "dir.from_positions"
WORDS = ("index:-1", "index:-2")
SAMPLING = {"temperature": 0.0, "top_k": None, "top_p": None, "max_new_tokens": 8}
RULE = {
    "kind": "select",
    "from": "candidates",
    "over": [FROM, AT],
    "where": [
        {"of": "add", "minus": "baseline", "readout": "refusal", "above": 0},
        {"axis": FROM, "below": "80%"},
    ],
    "lowest": {"of": "ablate", "readout": "refusal"},
    "seed": 42,
}


def write(layer: int) -> dict[str, Any]:
    return {
        "site": "resid_pre", "layers": [layer], "op": "project_out", "during": "prefill", "positions": "all",
        "value": {"kind": "constant", "name": "direction"}, "expect": None, "min_positions": None,
        "has_old": True,
    }  # fmt: skip


def condition(name: str, writes: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {
        "label": name, "words": [f"What {name} does."], "prompt": "target", "writes": writes,
        "sampling": SAMPLING, "same_as": None,
    } | fields  # fmt: skip


def cells(grid: str, layers: int = LAYERS) -> dict[str, Any]:
    """The cells of a grid over layers and two positions."""
    found = {}
    for layer in range(layers):
        for word in WORDS:
            name = f"{grid}[{FROM}={layer},{AT}={word}]"
            found[name] = condition(name, {"dir": write(layer)}, grid={FROM: layer, AT: word})
    return found


def rows(
    stage: str, values: dict[str, np.ndarray], writes: set[str], column: str, offset: int
) -> pd.DataFrame:
    """Trials of a stage: condition -> a value for each item; items of other stages have other prompts."""
    frames = []
    for number, (name, held) in enumerate(values.items()):
        n = len(held)
        acts = name in writes
        frames.append(
            pd.DataFrame(
                {
                    "stage": stage, "condition": name, "item": [f"{i:04d}" for i in range(n)], "repeat": 0,
                    "donor": None, "target": [f"t{offset + i}" for i in range(n)],
                    "group": ["en" if i % 2 else "de" for i in range(n)], "split": stage, "status": "ok",
                    "reason": None, "output_ids": [[i, number, *[3] * 40] for i in range(n)],
                    column: held,
                    "dir.asked_prefill": 9.0 if acts else np.nan,
                    "dir.positions_prefill": 9.0 if acts else np.nan,
                    "dir.asked_decode": 0.0 if acts else np.nan,
                    "dir.positions_decode": 0.0 if acts else np.nan,
                    "dir.relative_change": 0.2 + number * 1e-3 if acts else np.nan, "origin": None,
                }
            )
        )  # fmt: skip
    return pd.concat(frames, ignore_index=True)


def section(conditions: dict[str, Any], column: str, **fields: Any) -> dict[str, Any]:
    return {
        "kind": "measure", "status": "done", "reason": None, "question": "", "in_sample": None,
        "conditions": conditions, "experiment": {"n": N, "repeats": 1}, "plan_gates": [], "layer_notes": [],
        "readouts": [column], "prompts": {"asked": N},
        "readout": {column: {"kind": "log_odds", "version": 1, "columns": {column: "number"}}},
        "contrasts": {"family": "none", "baseline": "baseline", "primary": column, "extra": [], "same": [],
                      "statistics": "paired_clustered"},
    } | fields  # fmt: skip


def staged(folder: Path, *, findings: dict[str, Any] | None = None, layers: int = LAYERS) -> Run:
    """Candidates of two grids, the choice of the lowest, a test on other prompts, and a stage left out.

    Refusal of `ablate` is lowest at layer 5, index:-1; in the test, ablation takes refusal from 36 of 40 to 3
    of 40, and a random direction leaves it at 35.
    """
    rng = np.random.default_rng(0)
    conditions = {"baseline": condition("baseline", {})} | cells("ablate", layers) | cells("add", layers)
    level = rng.normal(size=N)
    values = {"baseline": 2 + level}
    for name, body in conditions.items():
        if name != "baseline":
            layer, word = body["grid"].values()
            effect = -0.5 * abs(layer - 5) - (word == WORDS[1]) if name.startswith("ab") else layer - 3
            gain = effect if name.startswith("add") else -5 - effect
            values[name] = 2 + level + gain + rng.normal(scale=0.1, size=N)
    candidates = rows("candidates", values, set(values) - {"baseline"}, "refusal", 0)
    tested = {
        "baseline": condition("baseline", {}),
        "ablated": condition("ablated", {"dir": write(5)}),
        "random": condition("random", {"dir": write(5)}),
    }
    refused = {"baseline": 36, "ablated": 3, "random": 35}
    shares = {name: (np.arange(N) < number).astype(float) for name, number in refused.items()}
    evaluate = rows("evaluate", shares, {"ablated", "random"}, "refuses", 1000)
    selection = select_cells(candidates, conditions, RULE, layers)
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("choices", "artefacts"):
        (folder / name).mkdir()
    choice = {
        "name": "best", "from": "candidates", "rule": RULE, "over": RULE["over"],
        "chosen": [dict(cell) for cell in selection.chosen], "items": None, "sentence": selection.sentence,
        "n_items": selection.n_items, "n_cells": selection.n_cells, "n_pass": selection.n_pass,
        "table": list(selection.table),
    }  # fmt: skip
    (folder / "choices" / "best.json").write_text(json.dumps(choice))
    table = [
        {"group": "", "position": word, "layer": layer, "norm": 1.0 + layer, "resid_norm": 10.0,
         "separation": 0.5 * layer, "consistency": None if layer == 0 else 0.9}
        for word in WORDS
        for layer in range(layers)
    ]  # fmt: skip
    artefact = {
        "name": "direction",
        "site": "resid_pre",
        "units": "raw",
        "layers": list(range(layers)),
        "table": table,
    }
    (folder / "artefacts" / "direction.json").write_text(json.dumps(artefact))
    manifest = {
        "schema": 1, "status": "done", "dtype": "float32", "counts": {}, "published": None,
        "experiment": {"name": "made_stages", "question": "Is refusal one direction?", "n": N, "repeats": 1},
        "model": {"name": "organism", "layers": layers},
        "stages": {
            "direction": {"kind": "extract", "status": "done", "question": "", "in_sample": None},
            "candidates": section(conditions, "refusal", question="Which direction?"),
            "best": {"kind": "select", "status": "done", "reason": None, "question": "", "in_sample": None},
            "evaluate": section(
                tested, "refuses",
                contrasts={"family": "each_against_baseline", "baseline": "baseline", "primary": "refuses",
                           "extra": [["ablated", "random"]], "same": [], "statistics": "paired_clustered"},
            ),
            "weights": section({}, "refuses", status="left_out", reason="'none' has chosen nothing"),
        },
        "findings": findings or {}, "figures": {},
    }  # fmt: skip
    trials = pd.concat([candidates, evaluate], ignore_index=True)
    for axis in (FROM, AT):
        held = {name: body.get("grid", {}).get(axis) for name, body in conditions.items()}
        trials[f"grid.{axis}"] = trials["condition"].map(held)
    return Run(trials, manifest, folder)
