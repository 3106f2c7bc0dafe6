"""Reading a run's folder: finished, still going, interrupted, older, or broken."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from analyses.summary.summary import summarise, write_summary
from analyses.summary.terminal import print_summary
from analyses.tables.run import TableError, load_run
from tests.made_run import made_manifest, made_trials, save, save_running


def test_a_run_with_pending_trials_says_so_in_its_first_line(tmp_path: Path) -> None:
    lines = save_running(tmp_path / "v0001", made_trials(), made_manifest())
    (tmp_path / "v0001" / "segments" / "0000-1.jsonl").write_text("\n".join(lines[:100]) + "\n")
    for status, word in (("interrupted", "interrupted"), ("running", "still running")):
        manifest = tmp_path / "v0001" / "manifest.json"
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"status": status}))
        summary = write_summary(load_run(tmp_path / "v0001"))
        text = (tmp_path / "v0001" / "summary.md").read_text()
        assert text.splitlines()[0] == f"# made ({word}, 200 of 300 trials pending)"
        stream = io.StringIO()
        print_summary(Console(file=stream, width=110, color_system=None), summary)
        assert stream.getvalue().splitlines()[0] == f"made: {word}, 200 of 300 trials pending"


def test_finished_and_running_runs_give_the_same_figures(tmp_path: Path) -> None:
    trials, manifest = made_trials(), made_manifest()
    finished = load_run(save(tmp_path / "v0001", trials, manifest))
    running = tmp_path / "v0002"
    lines = save_running(running, trials, manifest)
    segments = running / "segments"
    (segments / "0000-1.jsonl").write_text("\n".join(lines[:100]) + "\n")
    (segments / "0001-2.jsonl").write_text("\n".join(lines[100:]) + '\n{"key": "k')
    first, second = summarise(finished), summarise(load_run(running))
    assert first["contrasts"] == second["contrasts"] and first["gates"] == second["gates"]
    (segments / "0001-2.jsonl").unlink()
    assert summarise(load_run(running))["counts"]["pending"] == 200
    assert first["unfinished"] is None and second["unfinished"] is None
    (segments / "0000-1.jsonl").write_text(lines[0] + "\n{torn\n" + lines[1] + "\n")
    with pytest.raises(TableError, match=r"0000-1\.jsonl:2: expected one JSON object a line"):
        load_run(running)


def test_a_failed_trial_gives_way_to_a_later_result(tmp_path: Path) -> None:
    lines = save_running(tmp_path / "v0001", made_trials(), made_manifest())
    failed = json.loads(lines[0]) | {"status": "failed", "reason": "out of memory"}
    (tmp_path / "v0001" / "segments" / "0000-1.jsonl").write_text(json.dumps(failed) + "\n")
    assert load_run(tmp_path / "v0001").trials["status"].to_list().count("failed") == 1
    (tmp_path / "v0001" / "segments" / "0001-1.jsonl").write_text(lines[0] + "\n")
    assert load_run(tmp_path / "v0001").trials["status"].to_list().count("failed") == 0


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="expected the folder of a run"):
        load_run(tmp_path / "none")
    folder = tmp_path / "v0001"
    folder.mkdir()
    with pytest.raises(TableError, match=r"manifest\.json"):
        load_run(folder)
    (folder / "manifest.json").write_text('{"schema": 2}')
    with pytest.raises(TableError, match="schema: expected 1, got 2"):
        load_run(folder)
    (folder / "manifest.json").write_text('{"schema": 1}')
    with pytest.raises(TableError, match="found neither"):
        load_run(folder)
    pd.DataFrame({"item": ["0000"]}).to_parquet(folder / "trials.parquet")
    with pytest.raises(TableError, match="missing: stage, condition, repeat, status"):
        load_run(folder)
