"""What an experiment sweeps over: its jobs, what takes the place of a key, and the combined table."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest

import runner
from analyses.summary.sweeps import SweepJob, concatenated, print_sweep, sweep_rows
from runner import status
from runner.command import new_console
from runner.config.errors import ConfigurationError
from runner.config.resolve import config_hash
from runner.config.sweeps import Sweep, plan_jobs
from tests.configuring import body

WRITES = "v: {v: {site: v_proj, value: donor, positions: last:4, layers: 3}}"
TWO = "sweep: {model: [organism, organism_midway], sampling.temperature: [0, 0.8]}"
QUICK = (
    "limit=2", "quiet=true", "report=false", "backend.threads=1", "readouts=[behaviour]",
    "sampling.max_new_tokens=4",
)  # fmt: skip


def folder_of(tmp_path: Path, name: str = "mine", sweep: str = TWO, writes: str = WRITES) -> Path:
    home = tmp_path / "conf"
    home.mkdir(exist_ok=True)
    return body(writes, home, name, rest=f"contrasts: {{family: none}}\n{sweep}")


def over(tmp_path: Path, text: str, name: str = "all_of_them") -> Path:
    """A file that sweeps over experiments."""
    home = tmp_path / "conf"
    (home / "experiment").mkdir(parents=True, exist_ok=True)
    (home / "experiment" / f"{name}.yaml").write_text(f"# @package _global_\n{text}\n", encoding="utf-8")
    return home


def plan(home: Path, *words: str, name: str = "mine", multirun: bool = False) -> Sweep:
    return plan_jobs((f"+experiment={name}", *words), multirun, home)


def swept(sweep: Sweep) -> list[dict[str, str]]:
    return [dict(job.swept) for job in sweep.jobs]


def told(home: Path, *words: str, name: str = "mine") -> str:
    with pytest.raises(ConfigurationError) as caught:
        plan(home, *words, name=name)
    return str(caught.value)


def test_every_combination_is_a_job_and_no_job_knows_of_the_sweep(tmp_path: Path) -> None:
    found = plan(folder_of(tmp_path), "limit=3")
    assert swept(found) == [
        {"model": model, "sampling.temperature": temperature}
        for model in ("organism", "organism_midway")
        for temperature in ("0", "0.8")
    ]
    assert found.declared and found.folder == Path("outputs/mine")
    third = found.jobs[2]
    assert third.overrides == (
        "+experiment=mine",
        "limit=3",
        "model=organism_midway",
        "sampling.temperature=0",
    )
    assert third.composed is not None and "sweep" not in third.composed.mapping
    assert third.composed.mapping["model"]["name"] == "organism_midway"
    # It is the same run as that of its own command line, or of an experiment that does not sweep.
    alone = plan(folder_of(tmp_path, "mine", sweep=""), *third.overrides[1:]).jobs[0].composed
    assert alone is not None and config_hash(alone.mapping) == config_hash(third.composed.mapping)


def test_what_the_command_line_says_takes_the_place_of_a_key(tmp_path: Path) -> None:
    home = folder_of(tmp_path)
    assert swept(plan(home, "model=organism")) == [
        {"model": "organism", "sampling.temperature": temperature} for temperature in ("0", "0.8")
    ]
    (one,) = plan(home, "model=organism", "sampling={temperature: 0.5}").jobs
    assert one.composed is not None and one.composed.mapping["sampling"]["temperature"] == 0.5
    assert one.swept["model"] == "organism" and set(one.swept) == {"model", "sampling.temperature"}
    assert len(plan(home, "sampling.seed=1").jobs) == 4
    path = plan(home, "+model.path=/nowhere", "sampling.temperature=0")
    assert swept(path) == [{"model": "/nowhere", "sampling.temperature": "0"}]
    # The values themselves can be given too.
    assert len(plan(home, "sweep.model=[organism]").jobs) == 2
    none = plan(home, "~sweep")
    assert not none.declared and len(none.jobs) == 1


def test_both_kinds_of_sweep_multiply(tmp_path: Path) -> None:
    found = plan(folder_of(tmp_path), "sampling.seed=1,2", "model=organism", multirun=True)
    assert swept(found) == [
        {"sampling.seed": seed, "model": "organism", "sampling.temperature": temperature}
        for seed in ("1", "2")
        for temperature in ("0", "0.8")
    ]
    plain = plan(folder_of(tmp_path, sweep=""), "sampling.seed=1,2", multirun=True)
    assert plain.declared and swept(plain) == [{"sampling.seed": "1"}, {"sampling.seed": "2"}]
    assert not plan(folder_of(tmp_path, sweep="")).declared


@pytest.mark.parametrize(
    "value", ["a, b", "it's", "true", "12", "x: {y}", "back\\", "it\\'s", "role:e1.last"]
)
def test_a_text_arrives_as_it_stands_in_the_file(tmp_path: Path, value: str) -> None:
    home = folder_of(tmp_path, sweep=f"sweep: {{experiment.question: [{json.dumps(value)}, other]}}")
    first = plan(home).jobs[0].composed
    assert first is not None and first.mapping["experiment"]["question"] == value


def test_a_key_that_the_configuration_lacks_is_added(tmp_path: Path) -> None:
    home = folder_of(tmp_path, sweep="sweep: {conditions.v.v.alpha: [1, 2], quiet_word: [1]}")
    assert "sweep.quiet_word: unknown key 'quiet_word'" in told(home)
    home = folder_of(tmp_path, sweep="sweep: {conditions.v.v.alpha: [1, 2]}")
    found = [job.composed.mapping["conditions"]["v"]["v"]["alpha"] for job in plan(home).jobs if job.composed]
    assert found == [1, 2]


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ("3", "sweep: expected a mapping {override: [values]}"),
        ("{model: organism}", "sweep.model: expected a list of values, got 'organism'"),
        ("{model: []}", "sweep.model: expected a list of values, got []"),
        ("{modle: [organism]}", "sweep.modle: unknown key 'modle'; did you mean 'model'?"),
        ("{model: [organsim]}", "got 'organsim'; did you mean 'organism'?"),
        ("{sampling.seed: [1, 1]}", "sweep.sampling.seed: expected values that differ"),
        ("{readouts: [[behaviour]]}", "sweep.readouts: expected plain values, got ['behaviour']"),
        ("{sampling: {seed: [1, 2]}}", "a key further in is written sampling.seed: [...]"),
        ("{output_root: [a, b]}", "sweep.output_root: 'output_root' cannot be swept"),
    ],
)
def test_what_cannot_be_swept_is_told_in_its_file(tmp_path: Path, sweep: str, message: str) -> None:
    found = told(folder_of(tmp_path, sweep=f"sweep: {sweep}"))
    assert message in found and "mine.yaml: sweep" in found


def test_all_mistakes_of_a_sweep_are_told_at_once(tmp_path: Path) -> None:
    found = told(folder_of(tmp_path, sweep="sweep: {model: [nobody], sampling.seed: 3}"))
    assert "sweep.model" in found and "sweep.sampling.seed" in found


def test_experiments_take_the_place_of_the_one_that_sweeps_over_them(tmp_path: Path) -> None:
    folder_of(tmp_path, "one", sweep="")
    folder_of(tmp_path, "two", sweep="sweep: {sampling.seed: [1, 2], model: [organism_midway]}")
    home = over(tmp_path, "experiment: {name: both}\nsweep: {experiment: [one, two], model: [organism]}")
    found = plan(home, "limit=1", name="all_of_them")
    # What the outer sweep says takes the place of the inner one's key.
    assert swept(found) == [
        {"experiment": "one", "model": "organism"},
        {"experiment": "two", "model": "organism", "sampling.seed": "1"},
        {"experiment": "two", "model": "organism", "sampling.seed": "2"},
    ]
    assert found.folder == Path("outputs/both")
    names = [job.composed.mapping["experiment"]["name"] for job in found.jobs if job.composed]
    assert names == ["one", "two", "two"] and found.jobs[0].overrides[:2] == ("+experiment=one", "limit=1")
    assert len(plan(home, "sweep.experiment=[one]", name="all_of_them").jobs) == 1
    unnamed = over(tmp_path, "sweep: {experiment: [one]}", "unnamed")
    assert plan(unnamed, name="unnamed").folder == Path("outputs/unnamed")


def test_a_key_that_would_reach_no_experiment_is_refused(tmp_path: Path) -> None:
    folder_of(tmp_path, "one", sweep="")
    home = over(tmp_path, "experiment: {name: both, n: 5}\nsampling: {seed: 1}\nsweep: {experiment: [one]}")
    found = told(home, name="all_of_them")
    assert "all_of_them.yaml: sampling: a sweep over experiments" in found
    assert "all_of_them.yaml: experiment.n: a sweep over experiments" in found


def test_sweeps_over_experiments_do_not_nest(tmp_path: Path) -> None:
    folder_of(tmp_path, "one", sweep="")
    over(tmp_path, "sweep: {experiment: [one]}", "inner")
    home = over(tmp_path, "experiment: {name: outer}\nsweep: {experiment: [one, inner]}", "outer")
    first, second = plan(home, name="outer").jobs
    assert first.composed is not None and second.composed is None
    assert "no further sweep over experiments inside the one of outer" in str(second.error)


def test_a_job_that_does_not_compose_leaves_the_others(tmp_path: Path) -> None:
    folder_of(tmp_path, "one", sweep="")
    folder_of(tmp_path, "two", sweep="sweep: {nothing: [1]}")
    home = over(tmp_path, "sweep: {experiment: [two, one]}")
    first, second = plan(home, name="all_of_them").jobs
    assert "unknown key 'nothing'" in str(first.error) and second.composed is not None


# --- Run ----------------------------------------------------------------------------------------------------


def test_a_sweep_runs_its_jobs_and_writes_one_table(cli, tmp_path: Path) -> None:
    folder_of(tmp_path, "one", sweep="")
    more = "w: {w: {site: k_proj, value: donor, positions: last:4}, grid: {w.layers: [1, 2]}}"
    folder_of(tmp_path, "two", sweep="", writes=more)
    home = over(tmp_path, "experiment: {name: both}\nsweep: {experiment: [one, two], model: [organism]}")
    words = ("--config-dir", str(home), "+experiment=all_of_them", *QUICK)
    said = cli(*words)
    assert said.status == status.DONE, said.err
    table = tmp_path / "outputs" / "both" / "sweeps" / "s0001"
    summary = json.loads((table / "summary.json").read_text())
    assert [job["swept"] for job in summary["jobs"]] == [
        {"experiment": name, "model": "organism"} for name in ("one", "two")
    ]
    assert {row["sweep.experiment"] for row in summary["table"]} == {"one", "two"}
    assert all(row["layers"] == 9 and row["model"] == "organism" for row in summary["table"])
    assert len(pd.read_csv(table / "table.csv")) == len(summary["table"]) == 2 + 3
    assert set(pd.read_parquet(table / "trials_two.parquet")["sweep.experiment"]) == {"two"}
    assert "one: v" in said.out and "two: w[w.layers=1]" in said.out
    manifest = json.loads((tmp_path / "outputs" / "two" / "v0001" / "manifest.json").read_text())
    assert "sweep" not in manifest["config"]
    assert "+experiment=two" in manifest["command"] and "model=organism" in manifest["command"]
    # Again: what is finished stays, and the table is made anew.
    again = cli(*words, "resume=true")
    assert again.status == status.DONE and again.out.count("is finished: nothing to do") == 2
    assert (tmp_path / "outputs" / "both" / "sweeps" / "s0002" / "table.csv").is_file()


def test_a_dry_run_of_a_sweep_tells_every_job_and_writes_nothing(cli, tmp_path: Path) -> None:
    home = folder_of(tmp_path, sweep="sweep: {sampling.seed: [1, 2]}")
    said = cli("--config-dir", str(home), "+experiment=mine", *QUICK, "dry_run=true")
    assert said.status == status.DONE, said.err
    assert "job 1 of 2: sampling.seed=1" in said.out and "job 2 of 2: sampling.seed=2" in said.out
    assert not (tmp_path / "outputs").exists()


def test_one_combination_is_one_job_with_its_table(tmp_path: Path) -> None:
    home = folder_of(tmp_path, sweep="sweep: {model: [organism]}")
    ended = runner.run(["+experiment=mine", *QUICK, f"output_root={tmp_path / 'out'}"], home)
    assert ended.status == status.DONE and ended.folder == tmp_path / "out" / "mine" / "sweeps" / "s0001"
    assert set(pd.read_csv(ended.folder / "table.csv")["sweep.model"]) == {"organism"}
    assert (ended.folder / "trials.parquet").is_file()


def test_show_says_what_is_swept_and_try_asks_for_one(cli, tmp_path: Path) -> None:
    folder_of(tmp_path, "one", sweep="sweep: {model: [organism, organism_midway]}")
    home = over(tmp_path, "sweep: {experiment: [one], sampling.seed: [1, 2]}")
    said = cli("show", "one", "--config-dir", str(home))
    assert "Swept, in 2 runs one after the other:" in said.out and "  model=organism_midway" in said.out
    said = cli("show", "all_of_them", "--config-dir", str(home))
    assert "sweep: {experiment: [one]" in said.out and "Swept, in 4 runs" in said.out
    said = cli("try", "+experiment=all_of_them", "--config-dir", str(home))
    assert said.status == status.CONFIGURATION and "expected one of them: one" in said.err


# --- The table ----------------------------------------------------------------------------------------------


def job(experiment: str, model: str, findings: list[dict[str, object]]) -> SweepJob:
    summary = {"model": {"name": model, "layers": 9}, "findings": findings}
    return SweepJob({"experiment": experiment, "model": model}, 0, Path(f"out/{experiment}/v0001"), summary)


JOBS = [
    job("a", "small", [{"name": "layer", "value": 4, "depth": {"layer": 4, "share": 0.44}}]),
    job("a", "large", [{"name": "layer", "value": 20, "depth": {"layer": 20, "share": 0.62}}]),
    job("b", "small", [{"name": "rate", "value": 0.5, "low": 0.4, "high": 0.6, "published": [1, 2]}]),
    SweepJob({"experiment": "b", "model": "large"}, 2),
]


def test_findings_are_a_row_for_each_job() -> None:
    rows = sweep_rows(JOBS)
    assert [(row["experiment"], row["model"], row["finding"], row["value"]) for row in rows] == [
        ("a", "small", "layer", 4),
        ("a", "large", "layer", 20),
        ("b", "small", "rate", 0.5),
    ]
    assert rows[1]["sweep.model"] == "large" and rows[1]["depth"]["share"] == 0.62 and rows[1]["layers"] == 9


def test_the_terminal_has_experiments_below_and_models_beside_each_other(capsys) -> None:
    print_sweep(sweep_rows(JOBS), new_console())
    lines = capsys.readouterr().out.splitlines()
    (head,) = (line for line in lines if "small" in line and "large" in line)
    (layer,) = (line for line in lines if "a: layer" in line)
    (rate,) = (line for line in lines if "b: rate" in line)
    assert head.index("small") < head.index("large") and layer.split()[-4:] == ["4", "(44%)", "20", "(62%)"]
    assert "0.50 [0.40, 0.60]" in rate and rate.split()[-1] == "-"


def test_many_jobs_have_a_line_each(capsys) -> None:
    values = [{"name": "layer", "value": n, "low": None, "high": None} for n in range(9)]
    jobs = [job("a", f"model_{n}", [value]) for n, value in enumerate(values)]
    print_sweep(sweep_rows(jobs), new_console())
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if "model_" in line]
    assert [line[-3:] for line in lines] == [[f"model_{n},", "v0001", str(n)] for n in range(9)]


def test_a_large_grid_is_one_line(capsys) -> None:
    readouts = [{"score": {"mean": mean, "sd": 0.1}} for mean in range(13)]
    conditions = {
        f"{name}[x={n}]": {"label": "", "n": 5, "readouts": readout}
        for name, cells in (("large", 13), ("small", 2))
        for n, readout in enumerate(readouts[:cells])
    }
    summary = {"model": {}, "primary": "score", "conditions": conditions}
    rows = sweep_rows([SweepJob({"model": "m"}, 0, Path("out/a/v0001"), summary)])
    assert len(rows) == 15
    print_sweep(rows, new_console())
    lines = [line.strip() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert [line.split("  ")[0] for line in lines[-3:]] == ["large (13 cells)", "small[x=0]", "small[x=1]"]
    assert lines[-3].endswith("0.00 to 12.00") and lines[-1].endswith("1.00")


def test_columns_of_kinds_that_do_not_go_together_become_text() -> None:
    one = pa.table({"x": [1, 2], "axis": [3, 4], "own": [0.5, None]})
    two = pa.table({"x": [0.5], "axis": ["84%"]})
    three = pa.table({"x": [7], "axis": [[1, 2]]})
    found = concatenated([one, two, three]).to_pydict()
    assert found["x"] == [1.0, 2.0, 0.5, 7.0] and found["own"] == [0.5, None, None, None]
    assert found["axis"] == ["3", "4", "84%", "[1, 2]"]
