"""A run with texts and prompts, some of them hostile, for the tests of its report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from analyses.figures import Drawn
from analyses.tables.run import Run
from tests.made_run import made_manifest, made_trials

HOSTILE = '<img src=x onerror="window.hacked = 1"></script><script>window.hacked = 2</script>\u2028'
SHARED = "the river runs past the old mill"
SVG = '<svg viewBox="0 0 10 10"><path d="M0 0H10" stroke="var(--accent-1)"/></svg>'
DRAWN = Drawn(
    files=(),
    captions={"forest": "What it shows.", "mine": "Mine."},
    skipped={"lost": "figure lost is not drawn: x"},
    titles={"forest": "Forest", "mine": "My figure"},
    svg={"forest": SVG, "mine": SVG},
)


def report_trials() -> pd.DataFrame:
    """Those of `made_trials`, with groups, prompts and outputs: two groups of items; `kv_only` begins as the
    baseline does and goes on with a marker as a word and one within a word."""
    trials = made_trials()
    number = trials["item"].astype(int)
    trials["group"] = number.map(lambda i: "even" if i % 2 == 0 else "odd")
    trials["finish"] = "eos"
    trials["target_ids"] = [[1, 100 + i] for i in number]
    trials["donor_ids"] = [
        [("donor", [1, 200 + i])] if name != "baseline" else []
        for name, i in zip(trials["condition"], number, strict=True)
    ]
    ends = {"kv_only": "by a mirror and the metalevel", "transfer_l5": HOSTILE}
    trials["text"] = [
        f"{SHARED} {i}" + (f" {ends[name]}" if name in ends else "")
        for name, i in zip(trials["condition"], number, strict=True)
    ]
    return trials


def report_manifest(**fields: Any) -> dict[str, Any]:
    """That of `made_run`, with what a manifest has besides."""
    manifest = made_manifest()
    manifest |= {
        "command": ["python", "-m", "runner", "+experiment=made", "output_root=/tmp/with space"],
        "config": {"experiment": {"name": "made"}, "sampling": {"seed": 42}},
        "config_hash": "c0ffee",
        "markers": {"list": ["self", "mirror", "meta"], "version": 1},
        "readout": {"behaviour": {"kind": "behaviour", "version": 1, "columns": {"score": "number"}}},
        "packages": {"numpy": "2.0", "patchbay": "0.1.0"},
        "git": {"commit": "0123456789abcdef", "dirty": True, "diff": "- old\n+ new"},
        "times": {"started": "2026-01-02T03:04:05+00:00", "finished": "2026-01-02T04:05:06+00:00"},
        "seeds": {"prompts": 1, "sampling": 42},
    }
    return manifest | fields


def write_prompts(folder: Path, trials: pd.DataFrame) -> None:
    """The texts of all prompts: "target 7", "donor 7"."""
    numbers = sorted(set(trials["item"].astype(int)))
    ids = [[1, 100 + i] for i in numbers] + [[1, 200 + i] for i in numbers]
    texts = [f"target {i} {HOSTILE}" for i in numbers] + [f"donor {i}" for i in numbers]
    schema = pa.schema([("ids", pa.list_(pa.int32())), ("text", pa.string())])
    pq.write_table(pa.table({"ids": ids, "text": texts}, schema=schema), folder / "prompts.parquet")


def report_run(folder: Path, **fields: Any) -> Run:
    """A run whose folder has its prompts. fields: of the manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    trials = report_trials()
    write_prompts(folder, trials)
    return Run(trials, report_manifest(**fields), folder)
