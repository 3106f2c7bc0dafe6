"""Check a run folder from the outside: `python -m tests.check_run_folder outputs/NAME/v0001`. Used by
.ci/run."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pyarrow.parquet as pq


def main(folder: Path) -> int:
    names = {path.name for path in folder.iterdir()}
    expected = {"config.yaml", "manifest.json", "trials.parquet", "prompts.parquet", "summary.json"}
    expected |= {"summary.md", "report.html", "figures"}
    assert expected <= names, f"{folder}: missing {sorted(expected - names)}"
    assert not {"segments", "plan.parquet"} & names, f"{folder}: segments are left over"
    manifest = json.loads((folder / "manifest.json").read_text())
    summary = json.loads((folder / "summary.json").read_text())
    table = pq.read_table(folder / "trials.parquet").to_pandas()
    assert manifest["status"] == "done" and manifest["exit_status"] == 0
    assert len(table) == 6 * 300 and (table["status"] == "ok").all()
    means = table.groupby("condition")["score"].mean()
    assert means["kv_only"] > means["baseline"] + 1, means
    assert means["kv_self"] == means["baseline"], means
    found = {(g["condition"], g["gate"], g["verdict"]) for g in summary["gates"]}
    assert ("kv_self", "expect", "expected") in found, found
    assert not [g for g in summary["gates"] if g["verdict"] == "fail"], summary["gates"]
    print(f"{folder}: {len(table)} trials, as expected")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
