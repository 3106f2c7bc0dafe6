"""The combined page of a sweep: jobs, what they found, how they differ, gates, links."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from analyses.figures import Drawn
from analyses.report.sweep_page import sweep_page, write_sweep_report
from analyses.summary.summary import write_summary
from analyses.summary.sweeps import SweepJob
from analyses.tables.run import load_run
from runner.config.sweeps import plan_jobs
from runner.sweep import run_sweep
from tests.made_run import EFFECTS, N, made_manifest, made_trials, save
from tests.ran import folder_of

NOTHING = Drawn((), {}, {})


def job(root: Path, number: int, value: str, plus: float = 0.0, report: bool = True) -> SweepJob:
    """A job of a made run whose kv_only is raised by `plus`, with noise of mean 0."""
    trials = made_trials()
    rows = (trials["condition"] == "kv_only").to_numpy()
    if plus:
        trials.loc[rows, "score"] += plus + np.tile([-0.5, 0.0, 0.5], N // 3)
    (root / "made").mkdir(parents=True, exist_ok=True)
    folder = save(root / "made" / f"v{number:04d}", trials, made_manifest())
    summary = write_summary(load_run(folder))
    if report:
        (folder / "report.html").write_text("")
    return SweepJob({"sampling.temperature": value}, 0, folder, summary, ("+experiment=made", f"t={value}"))


@pytest.fixture
def jobs(tmp_path: Path) -> list[SweepJob]:
    found = [job(tmp_path, 1, "0.6"), job(tmp_path, 2, "<0.8>", plus=1.0, report=False)]
    return [*found, SweepJob({"sampling.temperature": "9"}, 2, None)]


def folder(tmp_path: Path) -> Path:
    made = tmp_path / "made" / "sweeps" / "s0001"
    made.mkdir(parents=True)
    return made


def test_the_page_has_jobs_differences_gates_and_links(tmp_path: Path, jobs: list[SweepJob]) -> None:
    path = write_sweep_report(folder(tmp_path), jobs, NOTHING)
    text = path.read_text(encoding="utf-8")
    assert path.name == "report.html" and [p.name for p in path.parent.iterdir()] == ["report.html"]
    assert 'href="../../v0001/report.html"' in text and (path.parent / "../../v0001/report.html").is_file()
    assert 'href="../../v0002/summary.md"' in text  # it has no page
    assert "job 3 ended with status 2" in text
    assert "kv_only has score 1.00 higher in sampling.temperature=&lt;0.8&gt;" in text and "<0.8>" not in text
    assert all(name in text for name in EFFECTS)
    assert "all jobs" in text  # a gate that every job has is told once
    assert text.count("python -m runner +experiment=made") == 2


def test_jobs_of_one_value_are_not_compared(tmp_path: Path, jobs: list[SweepJob]) -> None:
    text = sweep_page(folder(tmp_path), jobs[:1], NOTHING)
    assert "Differences between jobs" not in text and "kv_only" in text


def test_figures_of_the_sweep_are_on_the_page(tmp_path: Path, jobs: list[SweepJob]) -> None:
    drawn = Drawn((), {"depth": "A caption."}, {}, {"depth": "A title"}, {"depth": "<svg id='mine'></svg>"})
    text = sweep_page(folder(tmp_path), jobs, drawn)
    assert "<svg id='mine'></svg>" in text and "A caption." in text and "figures/depth.png" in text


def test_a_job_whose_folder_has_gone_is_said(tmp_path: Path, jobs: list[SweepJob]) -> None:
    third = job(tmp_path, 3, "1.2")
    assert third.folder is not None
    (third.folder / "trials.parquet").unlink()
    text = sweep_page(folder(tmp_path), [*jobs[:2], third], NOTHING)
    assert "expected trials.parquet" in text and "1.00 higher" in text


@pytest.mark.parametrize("report", [pytest.param(True, marks=pytest.mark.slow), False])
def test_a_sweep_writes_its_page_unless_it_is_told_not_to(tmp_path: Path, report: bool) -> None:
    words = ["+experiment=n300_kv_only", "limit=2", "sampling.max_new_tokens=4", "quiet=true"]
    words += [f"output_root={tmp_path}", "backend.threads=1", f"report={str(report).lower()}"]
    result = run_sweep(plan_jobs([*words, "sampling.seed=1,2"], True, None), Console(), None)
    assert (folder_of(result) / "summary.json").is_file()
    assert (folder_of(result) / "report.html").is_file() == report
