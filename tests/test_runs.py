"""Across runs: what there is, SQL over all of it, and a run as data frames for a notebook."""

from __future__ import annotations

import fcntl
import importlib
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from safetensors.numpy import save_file

from analyses.figures import Drawn
from analyses.runs.folders import is_held
from analyses.runs.listing import Row, list_runs
from analyses.runs.query import QueryError, connect, query
from analyses.runs.screen import print_runs
from analyses.summary.summary import write_summary
from analyses.tables.run import TableError, load_run
from runner import load
from runner.commands import ENTRIES
from runner.results.find_run import find_run
from tests.conftest import Said
from tests.made_run import EFFECTS, N, made_manifest, made_trials, save, save_running

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
SUMMARY = {
    "experiment": {"name": "made"},
    "contrasts": [
        {"condition": "kv_only", "against": "baseline", "difference": 3.25, "ci_low": 2.5, "ci_high": 4.0}
    ],
    "gates": [
        {"condition": "kv_only", "gate": "inert", "verdict": "fail", "sentence": "It wrote nothing."},
        {"condition": "all", "gate": "reused_items", "verdict": "warn", "sentence": "12 donors."},
        {"condition": "kv_self", "gate": "expect", "verdict": "expected", "sentence": "As announced."},
    ],
}


def manifest(**changes: Any) -> dict[str, Any]:
    """A finished run's, with what a list shows."""
    times = {"started": "2026-03-01T10:00:00+00:00", "finished": "2026-03-01T11:00:00+00:00", "seconds": {}}
    counts = {"planned": 300, "done": 299, "reused": 60, "failed": 0, "invalid": 1}
    whole = made_manifest() | {"times": times, "counts": counts, "exit_status": 0, "backend": "torch"}
    return whole | {"config": {"sampling": {"seed": 42}}} | changes


def keyed(trials: pd.DataFrame, origin: str | None = None, prefix: str = "k") -> pd.DataFrame:
    """Trials with keys, computed by their own run or by `origin`."""
    keys = [f"{prefix}{number}" for number in range(len(trials))]
    return trials.assign(key=keys, origin=origin, experiment="made")


def write(folder: Path, trials: pd.DataFrame | None = None, /, **changes: Any) -> Path:
    """A finished run, with a summary by hand."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    save(folder, keyed(made_trials()) if trials is None else trials, manifest(**changes))
    (folder / "summary.json").write_text(json.dumps(SUMMARY))
    return folder


def write_running(folder: Path, results: int, **changes: Any) -> Path:
    """A run of 300 trials that goes on, with the first `results` of its results."""
    lines = save_running(folder, made_trials(), manifest(counts={}, **changes))
    told = [line.replace('"status": "ok"', '"status":"ok"') for line in lines]  # as the runner writes it
    (folder / "segments" / "0000-1.jsonl").write_text("\n".join(told[:results]) + "\n")
    return folder


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """The lock of a run, held as its writer holds it."""
    with (folder / "lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def listed(root: Path, **options: Any) -> dict[str, Row]:
    return {row.run: row for row in list_runs(root, now=NOW, **options)}


def answer(sql: str, root: Path) -> list[tuple[Any, ...]]:
    found = query(sql, root)
    rows = [tuple(row.values()) for batch in found.batches for row in batch.to_pylist()]
    assert not found.skipped
    return rows


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output root with one finished run, summarised as the runner does it."""
    root = tmp_path_factory.mktemp("finished")
    folder = write(root / "made" / "v0001")
    write_summary(load_run(folder))
    return root


# The words of commands


def test_every_command_has_a_help(cli: Callable[..., Said]) -> None:
    general = cli("--help").out
    for name, entry in ENTRIES.items():
        module = importlib.import_module(f"runner.commands.{entry.module}")
        assert module.COMMAND.name == name
        said = cli(name, "--help")
        assert said.status == 0
        assert said.out.startswith(f"patchbay {name}")
        assert all(f"{key.name}=" in said.out for key in module.COMMAND.keys)
        assert f"patchbay {entry.usage}" in general
    assert cli("help", "ls").out == cli("ls", "-h").out


def test_all_mistakes_of_a_command_are_told_at_once(cli: Callable[..., Said]) -> None:
    said = cli("ls", "sotr=age", "format=jsn", "--sort=age", "a", "b", "sort=name", "sort=age")
    assert said.status == 2
    assert "5 mistakes" in said.err
    for told in (
        "sotr: no such key (keys of ls: sort, format, output_root); did you mean 'sort'?",
        "format: expected one of table, json, got 'jsn'; did you mean 'json'?",
        "--sort=age: no such option; keys are given as sort=age",
        "ls: expected [PATTERN], got a b",
        "sort: given twice",
    ):
        assert told in said.err
    assert "did you mean 'query'" in cli("qery").err


# ls


def test_a_finished_run_in_the_list(tmp_path: Path) -> None:
    write(tmp_path / "made" / "v0001")
    (row,) = listed(tmp_path).values()
    assert (row.status, row.model, row.planned, row.ok, row.invalid) == ("done", "organism", 300, 299, 1)
    assert (row.gates_failed, row.gates_warned, row.reused) == (1, 1, 60)
    assert row.headline == "kv_only +3.25 (2.50 to 4.00)"
    assert (row.age_seconds, row.seconds, row.note) == (3600, 3600, "")
    assert row.bytes == sum(path.stat().st_size for path in Path(row.folder).rglob("*"))


def test_how_runs_stand(tmp_path: Path) -> None:
    experiment = tmp_path / "made"
    here = {"host": socket.gethostname(), "pid": os.getpid()}
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    running = write_running(experiment / "v0001", 75, **here)
    write_running(experiment / "v0002", 75, **here)  # this process lives, but does not hold its lock
    write_running(experiment / "v0003", 75, **(here | {"pid": gone.pid}))
    write_running(experiment / "v0004", 75, host="elsewhere.example", pid=1)
    write(experiment / "v0005", status="interrupted")
    (experiment / "v0006").mkdir()
    starting = experiment / "v0007"
    starting.mkdir()
    write(experiment / "v0008")
    (experiment / "v0008" / "trials.parquet").unlink()
    for number, text in (
        (9, "{"),
        (10, "[]"),
        (11, '{"schema": 1, "status": 7}'),
        (12, '{"status": "done"}'),
    ):
        (experiment / f"v{number:04d}").mkdir()
        (experiment / f"v{number:04d}" / "manifest.json").write_text(text)
    with held(running), held(starting):
        rows = listed(tmp_path)
        assert is_held(running)
    assert not is_held(running)
    assert [row.status for row in rows.values()] == [
        *("running", "killed", "killed", "elsewhere", "interrupted", "empty", "starting"),
        *("broken",) * 5,
    ]
    assert (rows["made/v0001"].planned, rows["made/v0001"].ok) == (N * len(EFFECTS), 75)
    assert "resume=true" in rows["made/v0003"].note
    assert "elsewhere.example" in rows["made/v0004"].note
    assert "trials.parquet is missing" in rows["made/v0008"].note
    assert "expected JSON" in rows["made/v0009"].note
    assert "expected a JSON object" in rows["made/v0010"].note
    assert "status: expected a word, got 7" in rows["made/v0011"].note


@pytest.mark.parametrize(
    "changes",
    [{"model": "organism"}, {"times": {"started": "yesterday"}}, {"counts": [1]}, {"experiment": 3}],
)
def test_a_manifest_of_another_shape_is_a_broken_row(tmp_path: Path, changes: dict[str, Any]) -> None:
    write(tmp_path / "made" / "v0001", **changes)
    (row,) = listed(tmp_path).values()
    assert row.status == "broken"
    assert "manifest.json" in row.note


def test_a_list_fits_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "an_experiment_with_a_name" / "v0001", model={"name": "a-model-with-a-long-name"})
    write(tmp_path / "made" / "v0002", counts={"planned": 5, "done": 3, "failed": 2, "invalid": 0})
    seen: dict[int, str] = {}
    for width in (80, 100, 160):
        print_runs(list_runs(tmp_path, now=NOW), Console(width=width, highlight=False))
        seen[width] = capsys.readouterr().out
        assert max(map(len, seen[width].splitlines())) <= width
        assert "an_experiment_with_a_name/v0001" in seen[width]  # to be copied as it stands
    assert "SIZE" in seen[160]
    assert "SIZE" not in seen[80]
    head, *lines = seen[160].splitlines()
    assert {line[head.index("MODEL") - 1] for line in lines} == {" "}


def test_patterns_and_orders(tmp_path: Path, cli: Callable[..., Said]) -> None:
    early = (NOW - timedelta(days=3)).isoformat()
    times = {"started": early, "finished": early, "seconds": {"decode": 5.0, "load": 1.0}}
    write(tmp_path / "b_made" / "v0001", times=times)
    write(tmp_path / "b_made" / "v0002")
    write(tmp_path / "a_other" / "v0001")
    assert list(listed(tmp_path)) == ["a_other/v0001", "b_made/v0001", "b_made/v0002"]
    assert list(listed(tmp_path, pattern="made")) == ["b_made/v0001", "b_made/v0002"]
    assert list(listed(tmp_path, pattern="*/v0001")) == ["a_other/v0001", "b_made/v0001"]
    assert list(listed(tmp_path, pattern="b_*")) == ["b_made/v0001", "b_made/v0002"]
    assert list(listed(tmp_path, sort="age"))[-1] == "b_made/v0001"
    assert listed(tmp_path)["b_made/v0001"].seconds == 6
    rows = json.loads(cli("ls", "made", "format=json", f"output_root={tmp_path}").out)
    assert [row["run"] for row in rows] == ["b_made/v0001", "b_made/v0002"]
    assert "it holds a_other, b_made" in cli("ls", "nothing", f"output_root={tmp_path}").out
    assert (cli("ls").status, "is not there" in cli("ls").out) == (0, True)
    assert (
        cli("ls", "output_root=gone").status,
        "gone is not there" in cli("ls", "output_root=gone").err,
    ) == (
        2,
        True,
    )


def test_sweeps_and_findings_in_the_list(tmp_path: Path) -> None:
    folder = write(tmp_path / "made" / "v0001")
    findings = [
        {"name": "layer", "kind": "choice", "value": 8.0},
        {"name": "refuses", "kind": "mean", "value": 0.75, "low": 0.5, "high": 1.0, "unit": "share"},
    ]
    (folder / "summary.json").write_text(json.dumps(SUMMARY | {"findings": findings}))
    sweep = tmp_path / "made" / "sweeps" / "s0001"
    sweep.mkdir(parents=True)
    jobs = [{"swept": {"sampling.seed": "1"}, "status": 0}, {"swept": {"sampling.seed": "2"}, "status": 4}]
    (sweep / "summary.json").write_text(json.dumps({"jobs": jobs}))
    (tmp_path / "made" / "sweeps" / "s0002").mkdir()
    rows = listed(tmp_path)
    assert rows["made/v0001"].headline == "refuses 75% (50% to 100%)"
    told = rows["made/sweeps/s0001"]
    assert (told.status, told.ok, told.planned) == ("failed", 1, 2)
    assert told.headline == "2 jobs over sampling.seed"
    assert rows["made/sweeps/s0002"].status == "empty"


def test_an_older_schema_is_said_and_shown(tmp_path: Path, cli: Callable[..., Said]) -> None:
    root = f"output_root={tmp_path / 'outputs'}"
    for version, schema in (("v0001", {"schema": 0}), ("v0002", {}), ("v0003", {"schema": 2})):
        trials = keyed(made_trials()).drop(columns=["stage", "repeat"])
        folder = write(tmp_path / "outputs" / "made" / version, trials)
        whole = {key: value for key, value in manifest().items() if key != "schema"}
        (folder / "manifest.json").write_text(json.dumps(whole | schema))
    said = cli("ls", root).out
    assert "made/v0001: The manifest is of schema 0, expected 1" in said
    assert "made/v0002: The manifest has no schema, expected 1" in said
    assert "made/v0003: is of schema 2, newer than this patchbay" in said
    for name in ("made/v0001", "made/v0002"):
        run = load(name, tmp_path / "outputs")
        assert "an earlier version of patchbay wrote this run" in run.note
        assert len(run.paired("kv_only", "baseline")) == N
    with pytest.raises(TableError, match="schema: expected 1, got 2"):
        load("made/v0003", tmp_path / "outputs")


# query


def test_trap_39_a_row_that_was_taken_over_counts_once(tmp_path: Path) -> None:
    trials = keyed(made_trials())
    write(tmp_path / "made" / "v0001", trials)
    write(
        tmp_path / "made" / "v0002", pd.concat([trials.assign(origin="made/v0001"), keyed(trials, None, "n")])
    )
    assert answer("SELECT run, count(*) FROM trials GROUP BY ALL ORDER BY ALL", tmp_path) == [
        ("made/v0001", len(trials)),
        ("made/v0002", len(trials)),
    ]
    assert answer("SELECT count(*) FROM trials_all WHERE version = 'v0002'", tmp_path) == [(2 * len(trials),)]


def test_rows_of_a_version_that_is_gone_count_once(tmp_path: Path) -> None:
    trials = keyed(made_trials(), origin="made/v0001")
    # the same_as twin of a condition has its keys, and is a row of its own
    twin = trials[trials["condition"] == "baseline"].assign(condition="twin")
    for version in ("v0009", "v0010"):
        write(tmp_path / "made" / version, pd.concat([trials, twin]))
    counted = answer("SELECT run, count(*) FROM trials GROUP BY ALL", tmp_path)
    assert counted == [("made/v0009", len(trials) + len(twin))]


def test_a_run_that_goes_on_is_in_the_views(tmp_path: Path) -> None:
    write(tmp_path / "made" / "v0001", keyed(made_trials(), prefix="old"))
    write_running(tmp_path / "made" / "v0002", 75)
    torn = tmp_path / "made" / "v0002" / "segments" / "0001-2.jsonl"
    torn.write_text('{"key": "k99", "sta')
    sql = """SELECT status, count(*), round(avg(score), 6) FROM trials WHERE run = 'made/v0002'
             GROUP BY ALL ORDER BY ALL"""
    trials = made_trials()
    assert answer(sql, tmp_path) == [
        ("ok", 75, round(trials["score"][:75].mean(), 6)),
        ("pending", len(trials) - 75, None),
    ]
    assert answer("SELECT status FROM runs ORDER BY run", tmp_path) == [("done",), ("killed",)]


def test_columns_of_runs_that_differ_go_together(tmp_path: Path) -> None:
    first = keyed(made_trials(), prefix="a").assign(kl=1, layer="early")
    second = keyed(made_trials(), prefix="b").assign(kl=0.5, layer=3, tokens=[[1.5]] * len(first))
    for version, trials in (("v0001", first), ("v0002", second)):
        trials["grid.layer"] = trials.pop("layer")
        write(tmp_path / "made" / version, trials)
    sql = 'SELECT run, min(kl), min("grid.layer"), any_value(tokens) FROM trials GROUP BY ALL ORDER BY ALL'
    assert answer(sql, tmp_path) == [("made/v0001", 1.0, "early", None), ("made/v0002", 0.5, "3", [1.5])]
    assert answer("SELECT count(*) FROM trials WHERE origin IS NULL AND reason IS NULL", tmp_path) == [
        (len(first) + len(second),)
    ]


def test_receipts_in_long_form(tmp_path: Path) -> None:
    write(tmp_path / "made" / "v0001")
    sql = """SELECT condition, write, count(*), sum(asked), sum(written), round(avg(relative_change), 6)
             FROM receipts GROUP BY ALL ORDER BY ALL"""
    assert answer(sql, tmp_path) == [
        (name, "kv", N, 10.0 * N, 10.0 * N, 0.0 if name == "kv_self" else 0.7)
        for name in sorted(EFFECTS)
        if name != "baseline"
    ]


def test_runs_contrasts_and_gates_are_views(tmp_path: Path) -> None:
    write(tmp_path / "made" / "v0001")
    sql = "SELECT run, ok, model, config->>'$.sampling.seed' FROM runs"
    assert answer(sql, tmp_path) == [("made/v0001", 299, "organism", "42")]
    assert answer("SELECT condition, difference, ci_low FROM contrasts", tmp_path) == [("kv_only", 3.25, 2.5)]
    assert answer("SELECT gate FROM gates WHERE verdict = 'fail'", tmp_path) == [("inert",)]


def test_pivot_and_repeated_names(tmp_path: Path) -> None:
    write(tmp_path / "made" / "v0001")
    found = query(
        "PIVOT (SELECT run, condition, score FROM trials) ON condition USING count(score)", tmp_path
    )
    assert found.columns == ("run", *sorted(EFFECTS))
    assert query("SELECT a.run, b.run FROM runs a, runs b", tmp_path).columns == ("run", "run_1")


def test_a_query_reads_and_writes_nothing(tmp_path: Path) -> None:
    folder = write(tmp_path / "made" / "v0001")
    table = folder / "trials.parquet"
    before, data = sorted(tmp_path.rglob("*")), table.read_bytes()
    secret = tmp_path / "secret.csv"
    secret.write_text("a\n1\n")
    into = f"TO '{table}' (FORMAT parquet, USE_TMP_FILE false)"
    for sql in (
        f"COPY (SELECT 1) {into}",
        f"EXPLAIN ANALYZE COPY (SELECT 1) {into}",
        f"SELECT * FROM query('COPY (SELECT 1) {into.replace(chr(39), chr(39) * 2)}')",
        f"SELECT * FROM read_csv('{secret}')",
        f"SELECT * FROM '{secret}'",
        f"SELECT * FROM glob('{tmp_path}/*')",
        f"ATTACH '{tmp_path / 'new.db'}'",
        f"SELECT * FROM enable_logging('QueryLog', storage='file', storage_path='{tmp_path}')",
        "SET enable_external_access = true",
        "CREATE TABLE mine AS SELECT 1",
        "DROP VIEW trials",
        "INSTALL httpfs",
        "PRAGMA version",
        "SELECT 1; SELECT 2",
        "",
    ):
        with pytest.raises(QueryError):
            query(sql, tmp_path)
    secret.unlink()
    assert (sorted(tmp_path.rglob("*")), table.read_bytes()) == (before, data)


@pytest.mark.parametrize(
    ("sql", "told"),
    [
        ("SELECT scor FROM trials", "no column 'scor'; did you mean 'score'?"),
        ("SELECT * FROM trial", "no view 'trial' .*did you mean 'trials'?"),
        ("SELCT 1", 'syntax error at or near "SELCT"'),
        ("SELECT max(score) FROM trials WHERE condition > 1", "query: .*"),
        ("SELECT cast(condition AS DOUBLE) FROM trials", "query: .*"),
    ],
)
def test_mistakes_in_sql_are_sentences(tmp_path: Path, cli: Callable[..., Said], sql: str, told: str) -> None:
    write(tmp_path / "made" / "v0001")
    said = cli("query", sql, f"output_root={tmp_path}", "format=csv")
    assert said.status == 2
    assert pd.Series([said.err]).str.contains(told).all()
    assert "Traceback" not in said.err


def test_a_query_over_no_runs(tmp_path: Path, cli: Callable[..., Said]) -> None:
    assert answer("SELECT count(*) FROM trials", tmp_path) == [(0,)]
    assert answer("SELECT count(*) FROM receipts", tmp_path) == [(0,)]
    assert answer("SELECT count(*) FROM runs", tmp_path) == [(0,)]
    assert "is not there" in cli("query", "SELECT 1", "output_root=nowhere").err


def test_a_run_that_cannot_be_read_is_left_out_and_said(tmp_path: Path, cli: Callable[..., Said]) -> None:
    root = tmp_path / "outputs"
    write(root / "made" / "v0001")
    write(root / "made" / "v0002")
    (root / "made" / "v0002" / "trials.parquet").write_bytes(b"PAR1")
    said = cli("query", "SELECT count(*) AS n FROM trials", "format=csv")
    assert said.out == f"n\n{N * len(EFFECTS)}\n"
    assert "left out: made/v0002: " in said.err
    (root / "made" / "v0002" / "trials.parquet").unlink()
    assert "trials.parquet is missing" in cli("query", "SELECT count(*) AS n FROM trials").err


def test_answers_are_written_in_every_form(tmp_path: Path, cli: Callable[..., Said]) -> None:
    write(tmp_path / "outputs" / "made" / "v0001")
    sql = """SELECT condition, count(*) AS n, sum(n_new) AS tokens, [1, 2] AS list, 'a,"b' AS text,
             CAST('nan' AS DOUBLE) AS nothing FROM trials GROUP BY ALL ORDER BY condition LIMIT 2"""
    rows = json.loads(cli("query", sql, "format=json").out)
    expected = {
        "condition": "baseline",
        "n": N,
        "tokens": 2 * N,
        "list": [1, 2],
        "text": 'a,"b',
        "nothing": None,
    }
    assert rows[0] == expected
    lines = cli("query", sql, "format=csv").out.splitlines()
    assert lines[:2] == ["condition,n,tokens,list,text,nothing", f'baseline,{N},{2 * N},"[1,2]","a,""b",']
    shown = cli("query", sql, "rows=1").out
    assert "1 of 2 rows" in shown
    assert "undefined" in shown
    assert cli("query", sql, "parquet=new.parquet").status == 0
    assert pq.read_table("new.parquet")["tokens"].to_pylist() == [2 * N, 2 * N]
    again = cli("query", sql, "parquet=new.parquet")
    assert (again.status, "is there already" in again.err) == (2, True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new.parquet", "outputs"]
    assert cli("query", "SELECT 1 AS a WHERE false", "format=json").out == "[]\n"


def test_a_wide_answer_names_what_does_not_fit(
    tmp_path: Path, cli: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "outputs" / "made" / "v0001")
    monkeypatch.setenv("COLUMNS", "80")
    said = cli("query", "SELECT * FROM trials", "rows=2")
    assert max(map(len, said.out.splitlines())) <= 80
    assert "columns more than fit" in said.out
    listed = cli("query")
    assert "trials: one row for each trial" in listed.out
    assert "WRITE.RECEIPT of kv" in listed.out.replace("\n", " ").replace("  ", " ")
    for line in (line for line in listed.out.splitlines() if line.startswith('  patchbay query "')):
        assert cli("query", line.partition('"')[2][:-1], "format=csv").status == 0


def test_a_connection_for_notebooks(tmp_path: Path) -> None:
    write(tmp_path / "made" / "v0001")
    connection = connect(tmp_path)
    frame = connection.sql("SELECT condition, avg(score) AS mean FROM trials GROUP BY ALL").df()
    expected = made_trials().groupby("condition")["score"].mean()
    assert frame.set_index("condition")["mean"].to_dict() == pytest.approx(expected.to_dict())
    with pytest.raises(duckdb.Error):
        connection.execute("SELECT * FROM read_text('/etc/hostname')")


# load


def test_a_run_as_data_frames(finished: Path) -> None:
    run = load("made", finished)
    assert run.conditions.set_index("condition")["n"].to_dict() == dict.fromkeys(EFFECTS, N)
    trials = made_trials()
    means = trials.groupby("condition")["score"].mean()
    assert run.conditions.set_index("condition")["score.mean"].to_dict() == pytest.approx(means.to_dict())
    assert set(run.contrasts["condition"]) == set(EFFECTS) - {"baseline"}
    assert run.receipts.set_index("condition").loc["kv_only", "written.prefill"] == 10 * N
    assert isinstance(run.exploratory, pd.DataFrame)
    paired = run.paired("kv_only", "baseline")
    wide = trials.pivot_table(index="item", columns="condition", values="score")
    np.testing.assert_array_equal(paired["difference"], wide["kv_only"] - wide["baseline"])
    assert {"donor", "target", "kv_only", "baseline"} <= set(paired.columns)
    assert len(run.paired("kv_only", "baseline", "perplexity")) == N - 1  # one text has none
    assert run.summary == json.loads((run.folder / "summary.json").read_text())
    assert (repr(run), run.note) == ("<run made/v0001: done; trials: 300 ok>", "")


@pytest.mark.parametrize(
    ("ask", "told"),
    [
        (lambda run: run.paired("kv_onyl", "baseline"), "no condition 'kv_onyl'; did you mean 'kv_only'"),
        (lambda run: run.paired("kv_only", "baseline", "scroe"), "no column 'scroe'; did you mean 'score'"),
        (lambda run: run.paired("kv_only", "baseline", "text"), "no column 'text'"),
        (lambda run: run.paired("kv_only", "baseline", "donor"), "holds no numbers"),
        (lambda run: run.paired("kv_only", "baseline", stage="test"), r"no stage 'test' \(stages: measure\)"),
        (lambda run: run.artefact("direction"), "no artefact 'direction'; made/v0001 has no artefacts"),
        (lambda run: run.choice("best"), "no choice 'best'"),
    ],
)
def test_what_a_run_does_not_have(finished: Path, ask: Callable[[Any], object], told: str) -> None:
    with pytest.raises(TableError, match=told):
        ask(load("made", finished))


def test_artefacts_and_choices(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "made" / "v0001"
    shutil.copytree(finished / "made" / "v0001", folder)
    vectors = np.arange(12, dtype=np.float32).reshape(3, 4)
    about = {
        "dims": ["layer", "width"],
        "layers": [2, 5, 7],
        "groups": [],
        "positions": [],
        "site": "resid_pre",
    }
    (folder / "artefacts").mkdir()
    save_file(
        {"vectors": vectors},
        folder / "artefacts" / "direction.safetensors",
        {key: json.dumps(value) for key, value in about.items()},
    )
    (folder / "artefacts" / "torn.safetensors").write_bytes(b"\x00")
    (folder / "choices").mkdir()
    (folder / "choices" / "best.json").write_text('{"chosen": [{"layer": 5}]}')
    run = load(folder)
    found = run.artefact("direction")
    np.testing.assert_array_equal(found.vectors, vectors)
    np.testing.assert_array_equal(np.asarray(found), vectors)
    assert (found.dims, found.layers, found.about["site"]) == (("layer", "width"), (2, 5, 7), "resid_pre")
    assert run.choice("best")["chosen"] == [{"layer": 5}]
    with pytest.raises(TableError, match="expected an artefact"):
        run.artefact("torn")
    with pytest.raises(TableError, match="did you mean 'direction'"):
        run.artefact("directions")


def test_a_run_in_a_notebook_shows_texts_as_texts(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "made" / "v0001"
    shutil.copytree(finished / "made" / "v0001", folder)
    told = json.loads((folder / "manifest.json").read_text())
    told["experiment"]["question"] = "<script>alert(1)</script>"
    (folder / "manifest.json").write_text(json.dumps(told))
    shown = load(folder)._repr_html_()
    assert "<script>" not in shown
    assert "&lt;script&gt;" in shown
    assert load(folder).contrasts["sentence"][0].split("(")[0] in shown


def test_a_run_that_goes_on_as_data_frames(tmp_path: Path) -> None:
    write_running(tmp_path / "made" / "v0001", 150)
    run = load("made", tmp_path)
    assert run.note == run.summary["unfinished"]
    assert "150" in run.note
    assert run.conditions.set_index("condition")["pending"].sum() == N * len(EFFECTS) - 150


# report


def test_a_report_is_written_from_the_folder_alone(
    finished: Path, tmp_path: Path, cli: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "outputs" / "made" / "v0001"
    shutil.copytree(finished / "made" / "v0001", folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    said = cli("report", "made")
    assert said.status == 0
    assert "report: outputs/made/v0001/report.html" in said.out
    page = (folder / "report.html").read_text()
    assert load(folder).contrasts["sentence"][0].split("(")[0].strip() in page
    assert list((folder / "figures").glob("*.png"))
    assert {name: (folder / name).read_bytes() for name in before} == before

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("analyses.figures.draw", full)
    said = cli("report", "made")
    assert (said.status, "the report cannot be written (No space left" in said.err) == (2, True)
    assert (folder / "report.html").read_text() == page
    said = cli("report", "made", "v0001")
    assert (said.status, "report: expected RUN, got made v0001" in said.err) == (2, True)


def test_a_summary_that_is_missing_or_of_an_earlier_version_is_worked_out(
    finished: Path, tmp_path: Path, cli: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "outputs" / "made" / "v0001"
    shutil.copytree(finished / "made" / "v0001", folder)
    path = folder / "summary.json"
    whole = json.loads(path.read_text())
    monkeypatch.setattr("analyses.figures.draw", lambda run, summary: Drawn((), {}, {}))

    for broken in ("", "{", "[]", '{"contrasts": 3}'):
        path.write_text(broken)
        if not broken:
            path.unlink()
        said = cli("report", "made")
        assert (said.status, "summary: outputs/made/v0001/summary.json" in said.out) == (0, True)
        assert json.loads(path.read_text()) == whole

    older = {key: value for key, value in whole.items() if key not in ("exploratory", "analyses")}
    older["contrasts"] = [
        {k: v for k, v in each.items() if k != "cross_checks"} for each in whole["contrasts"]
    ]
    path.write_text(json.dumps(older))
    run = load("made", tmp_path / "outputs")
    assert "earlier version (without analyses, exploratory and cross_checks)" in run.note
    assert dict(run.summary) == whole
    said = cli("report", "made")
    assert (said.status, "is of an earlier version" in said.out) == (0, True)
    assert json.loads(path.read_text()) == older


@pytest.mark.slow
def test_a_report_of_a_run_that_goes_on(tmp_path: Path, cli: Callable[..., Said]) -> None:
    folder = write_running(tmp_path / "outputs" / "made" / "v0001", 150)
    said = cli("report", "made")
    assert said.status == 0
    assert "150 of 300 trials" in said.out
    assert "150 of 300 trials" in (folder / "report.html").read_text()
    assert not (folder / "summary.json").exists()


def test_a_wrong_word_is_told_with_the_nearest_right_one(tmp_path: Path, cli: Callable[..., Said]) -> None:
    write(tmp_path / "outputs" / "made" / "v0001")
    told = cli("query", "SELECT 1", "format=josn").err
    assert "expected one of table, csv, json, got 'josn'; did you mean 'json'?" in told
    told = cli("report", "made/v1").err
    assert "no run 'made/v1': expected made/VERSION; outputs/made holds v0001" in told
    (tmp_path / "outputs" / "made" / "sweeps" / "s0001").mkdir(parents=True)
    assert "'made/sweeps/s0001' is a sweep, not a run" in cli("report", "made/sweeps/s0001").err
    assert "expected a SELECT, got nothing" in cli("query", "").err
    told = cli("query", "SELECT 1 AS one", "parquet=nowhere/one.parquet").err
    assert "nowhere/one.parquet cannot be written (No such file or directory)" in told


def test_which_run_a_word_means(tmp_path: Path) -> None:
    write(tmp_path / "made" / "v0001")
    newest = write(tmp_path / "made" / "v0010")
    (tmp_path / "made" / "v0011").mkdir()
    assert find_run("made/v0001", tmp_path).name == "v0001"
    assert find_run(str(newest), tmp_path) == newest
    for word, told in (
        ("mad", "holds made; did you mean 'made'?"),
        ("made/v0002", "holds v0001, v0010, v0011"),
        ("made/v0011", "has no manifest"),
    ):
        with pytest.raises(TableError, match=told.replace("?", r"\?")):
            find_run(word, tmp_path)
    with pytest.raises(TableError, match="is not there"):
        find_run("made", tmp_path / "none")


def test_trap_42_runs_of_one_second_stay_apart(tmp_path: Path) -> None:
    for version in ("v0001", "v0002"):
        write(tmp_path / "made" / version, keyed(made_trials(), prefix=version))
    assert list(listed(tmp_path)) == ["made/v0001", "made/v0002"]
    rows = answer("SELECT run, count(DISTINCT key) FROM trials GROUP BY ALL ORDER BY ALL", tmp_path)
    assert rows == [("made/v0001", 300), ("made/v0002", 300)]


def test_none_of_this_imports_torch(finished: Path) -> None:
    code = f"""
import sys
from runner import load
from runner.command import dispatch
root = {str(finished)!r}
run = load("made", root)
run.summary, run.contrasts, run.paired("kv_only", "baseline"), run._repr_html_()
for words in (["ls"], ["query", "SELECT count(*) FROM receipts"], ["prune"]):
    assert dispatch([*words, f"output_root={{root}}"]) == 0
assert "torch" not in sys.modules, "torch was imported"
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr


def test_the_schema_of_a_run_that_goes_on_is_that_of_the_table(tmp_path: Path) -> None:
    write_running(tmp_path / "made" / "v0001", 10)
    kinds = dict(answer("SELECT column_name, column_type FROM (DESCRIBE trials)", tmp_path))
    assert kinds["donor_ids"] == "MAP(VARCHAR, INTEGER[])"
    assert (kinds["kv.positions_prefill"], kinds["n_new"], kinds["score"]) == ("BIGINT", "BIGINT", "DOUBLE")
    assert pa.types.is_list(pq.read_table(tmp_path / "made" / "v0001" / "plan.parquet")["target_ids"].type)
