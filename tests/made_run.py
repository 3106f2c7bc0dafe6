"""A run made from known figures, finished or still going, for the tests of tables and summaries."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from analyses.tables.join import PLAN_SCHEMA
from analyses.tables.run import SCORES, Run

N = 60
EFFECTS = {"baseline": 0.0, "kv_only": 3.0, "transfer_l5": 3.0, "kv_plain": 0.0, "kv_self": 0.0}


def made_manifest(**contrast_options: Any) -> dict[str, Any]:
    write = {"site": "kv_cache", "layers": [0], "op": "replace", "value": "donor", "positions": "all"}
    kv = {"kv": write | {"during": "prefill", "expect": None, "min_positions": None, "has_old": True}}
    sampling = {"temperature": 0.8, "top_k": None, "top_p": None, "max_new_tokens": 20}
    options = {
        "family": "each_against_baseline",
        "baseline": "baseline",
        "primary": "score",
        "extra": [],
        "same": [],
    }
    conditions = {
        name: {
            "label": f"label of {name}",
            "words": [f"What {name} does."],
            "writes": {} if name == "baseline" else kv,
            "sampling": sampling,
            "same_as": None,
        }
        for name in EFFECTS
    }
    conditions["kv_self"]["writes"] = {"kv": kv["kv"] | {"value": "self", "expect": "noop"}}
    return {
        "schema": 1,
        "status": "done",
        "experiment": {"name": "made", "question": "Does it carry over?", "n": N, "repeats": 1},
        "dtype": "float32",
        "model": {"name": "organism", "layers": 9},
        "conditions": conditions,
        "contrasts": options | {"statistics": "paired_clustered"} | contrast_options,
        "readouts": ["behaviour"],
        "plan_gates": [],
        "counts": {"planned": N * len(EFFECTS)},
        "published": None,
        "prompts": {"asked": N},
    }


def made_trials(seed: int = 0) -> pd.DataFrame:
    """Five conditions over the same items: 12 donors, 15 targets; kv_self repeats the baseline exactly."""
    rng = np.random.default_rng(seed)
    donor, target = rng.integers(12, size=N), rng.integers(15, size=N)
    base = rng.poisson(0.8, N) + rng.integers(0, 2, 15)[target]
    rows = []
    for number, (name, effect) in enumerate(EFFECTS.items()):
        gain = rng.poisson(effect, N) if effect else rng.integers(-1, 2, N) * (name == "kv_plain")
        score = np.maximum(base + gain, 0)
        for i in range(N):
            acts = name != "baseline"
            rows.append(
                {
                    "stage": "measure",
                    "condition": name,
                    "item": f"{i:04d}",
                    "repeat": 0,
                    "donor": f"d{donor[i]}",
                    "target": f"t{target[i]}",
                    "status": "ok",
                    "reason": None,
                    "output_ids": [i, 0 if name == "kv_self" else number],
                    "n_new": 2,
                    "score": float(score[i]),
                    "markers": float(score[i]),
                    "bonus": 0.0,
                    "strict": float(score[i] // 2),
                    "perplexity": math.nan if i == 0 else 20.0 + number,
                    "kv.asked_prefill": 10.0 if acts else math.nan,
                    "kv.positions_prefill": 10.0 if acts else math.nan,
                    "kv.asked_decode": 0.0 if acts else math.nan,
                    "kv.positions_decode": 0.0 if acts else math.nan,
                    "kv.relative_change": math.nan if not acts else 0.0 if name == "kv_self" else 0.7,
                    "origin": None,
                }
            )
    return pd.DataFrame(rows)


def made_run(folder: Path = Path("."), **contrast_options: Any) -> Run:
    return Run(made_trials(), made_manifest(**contrast_options), folder)


def save(folder: Path, trials: pd.DataFrame, manifest: dict[str, Any]) -> Path:
    folder.mkdir()
    trials.to_parquet(folder / "trials.parquet")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


RECEIPT = {
    "positions_decode": 0,
    "asked_decode": 0,
    "positions_shadowed": 0,
    "decode_shadowed": 0,
    "keys_ahead": 0,
    "logit_change": None,
}


def save_running(folder: Path, trials: pd.DataFrame, manifest: dict[str, Any]) -> list[str]:
    """Write a run that is still going, without results; returns the lines of its segments."""
    (folder / "segments").mkdir(parents=True)
    for condition in manifest["conditions"].values():
        condition["receipt_order"] = list(condition["writes"])
    (folder / "manifest.json").write_text(json.dumps(manifest | {"status": "running"}))
    rows = trials.to_dict(orient="records")
    for number, row in enumerate(rows):
        row |= {"key": f"k{number}", "experiment": "made", "group": "", "split": "", "seed": 42}
        row |= {"target_ids": [1], "donor_ids": [("donor", [1])]}
    names = PLAN_SCHEMA.names
    plan = pa.Table.from_pylist([{name: row[name] for name in names} for row in rows], schema=PLAN_SCHEMA)
    pq.write_table(plan, folder / "plan.parquet")
    lines = []
    for row in rows:
        kv = {k: row[f"kv.{k}"] for k in ("asked_prefill", "positions_prefill", "relative_change")}
        scores = {k: None if math.isnan(row[k]) else row[k] for k in SCORES}
        result = {k: row[k] for k in ("key", "status", "reason", "output_ids", "n_new", "origin")}
        result |= {"text": "", "finish": "eos", "batch_rows": 1, "batch_length": 9, "min_margin": 1.0}
        receipts = [] if row["condition"] == "baseline" else [kv | RECEIPT]
        lines.append(json.dumps(result | {"scores": scores, "receipts": receipts}))
    return lines
