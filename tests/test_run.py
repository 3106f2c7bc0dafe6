"""Whole runs of the organism: from a command line to a table, and what interrupts them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

import runner
from backends.contract import OutOfMemory
from backends.noise import stream_of
from backends.rows import Row
from backends.torch.backend import TorchBackend
from runner import status
from tests.conftest import SMALL, table

KV_ONLY = "+experiment=n300_kv_only"
AS_PUBLISHED = "+experiment=n300_as_published"
HOME = Path(runner.__file__).resolve().parent.parent


def version(root: Path, name: str, number: int = 1) -> Path:
    return root / "outputs" / name / f"v{number:04d}"


def summary(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


def manifest(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text())


def test_a_run_leaves_a_whole_folder(cli, tmp_path):
    said = cli(KV_ONLY, *SMALL)
    assert said.status == status.DONE, said.err
    folder = version(tmp_path, "n300_kv_only")
    names = {p.name for p in folder.iterdir()}
    assert {"config.yaml", "manifest.json", "trials.parquet", "summary.json", "summary.md"} <= names
    assert not {"segments", "plan.parquet"} & names
    found = pd.read_parquet(folder / "trials.parquet")
    required = [
        "key",
        "experiment",
        "stage",
        "condition",
        "item",
        "donor",
        "target",
        "group",
        "split",
        "repeat",
        "seed",
        "status",
        "reason",
        "target_ids",
        "donor_ids",
        "output_ids",
        "text",
        "n_new",
        "finish",
        "score",
        "markers",
        "bonus",
        "strict",
        "perplexity",
        "kv.positions_prefill",
        "kv.positions_decode",
        "kv.relative_change",
        "origin",
        "batch_rows",
        "batch_length",
        "min_margin",
    ]
    assert [c for c in required if c not in found.columns] == []
    assert len(found) == 6 * 6 and (found["status"] == "ok").all()
    assert found["key"].nunique() == 36
    record = manifest(folder)
    assert record["counts"] == {"planned": 36, "done": 36, "reused": 0, "failed": 0, "invalid": 0}
    assert record["status"] == "done" and record["exit_status"] == 0
    assert record["packages"]["torch"] and record["model"]["fingerprint"] and record["config_hash"]
    assert record["conditions"]["kv_only"]["words"]
    assert yaml.safe_load((folder / "config.yaml").read_text())["experiment"]["name"] == "n300_kv_only"
    assert {"conditions", "contrasts", "gates", "published", "counts"} <= set(summary(folder))
    assert runner.load(folder).trials.shape == found.shape


def test_an_outsider_can_replay_a_trial_from_its_row(cli, tmp_path):
    cli(KV_ONLY, *SMALL, "+conditions.kv_only.sampling={temperature: 0.0}")
    found = pd.read_parquet(version(tmp_path, "n300_kv_only") / "trials.parquet")
    row = found[found["condition"] == "kv_only"].iloc[0]
    from transformers import AutoModelForCausalLM

    from backends.rows import Sampling
    from organisms import weights_dir
    from tests.models import write
    from tests.plain_reference import generate

    model = AutoModelForCausalLM.from_pretrained(weights_dir()).eval()
    donors = {role: tuple(ids) for role, ids in row["donor_ids"]}
    again = Row(
        tuple(row["target_ids"]), Sampling(0.0, 20), (write("kv", "kv_cache", tuple(range(9))),), donors
    )
    eos = model.generation_config.eos_token_id
    assert generate(model, again, (eos,)) == list(row["output_ids"])


def test_donor_kv_moves_the_style_and_own_kv_is_a_noop(cli, tmp_path):
    said = cli(KV_ONLY, "limit=30", "quiet=true", "report=false")
    assert said.status == status.DONE
    found = pd.read_parquet(version(tmp_path, "n300_kv_only") / "trials.parquet")
    means = found.groupby("condition")["score"].mean()
    assert means["kv_only"] > means["baseline"] + 1.5
    assert abs(means["kv_plain"] - means["baseline"]) < 1.5
    texts = found.pivot(index="item", columns="condition", values="text")
    assert (texts["kv_self"] == texts["baseline"]).all()
    markers = found.groupby("condition")["markers"].mean()
    assert markers["kv_only"] > 4 * max(markers["baseline"], markers["kv_plain"])
    assert "kv_only raises score by" in said.out


def test_trap_01_inert_writes_are_reported_and_end_with_3_unless_expected(cli, tmp_path):
    said = cli(AS_PUBLISHED, *SMALL)
    assert said.status == status.DONE
    gates = summary(version(tmp_path, "n300_as_published"))["gates"]
    inert = [g for g in gates if g["gate"] == "inert"]
    assert {g["condition"] for g in inert} == {"transfer_l27", "wrong_layer_l5", "random"}
    assert all(g["verdict"] == "expected" and "0 of" in g["sentence"] for g in inert)
    assert "never fired in decode" in said.out
    assert "never fired in decode" in (version(tmp_path, "n300_as_published") / "summary.md").read_text()
    assert cli(AS_PUBLISHED, *SMALL, "allow_inert=false").status == status.INERT
    changes = [
        f"conditions.{name}.v_proj.expect=null" for name in ("transfer_l27", "wrong_layer_l5", "random")
    ]
    said = cli(AS_PUBLISHED, *SMALL, *changes)
    assert said.status == status.INERT
    assert manifest(version(tmp_path, "n300_as_published", 3))["exit_status"] == status.INERT
    assert cli(AS_PUBLISHED, *SMALL, *changes, "allow_inert=true").status == status.DONE


def test_trap_47_a_shadowed_write_is_reported(cli, tmp_path):
    shadowed = "{site: v_proj, layers: 27, value: donor, positions: 'first:3', during: prefill}"
    short = "prompts.targets.groups=[factual]"  # targets that every donor covers
    said = cli(KV_ONLY, *SMALL, short, f"+conditions.kv_only.v_proj={shadowed}")
    assert said.status == status.INERT, said.out
    gates = [g for g in summary(version(tmp_path, "n300_kv_only"))["gates"] if g["gate"] == "shadowed"]
    assert gates and gates[0]["verdict"] == "fail" and "shadowed" in said.out + gates[0]["sentence"]


def test_a_new_control_runs_only_its_own_trials(cli, tmp_path):
    assert cli(KV_ONLY, *SMALL).status == status.DONE
    mine = tmp_path / "mine" / "experiment"
    mine.mkdir(parents=True)
    (mine / "with_random.yaml").write_text(
        "# @package _global_\n"
        "defaults: [n300_kv_only, /intervention@conditions.kv_random: kv_random, _self_]\n"
        "contrasts: {extra: [[kv_only, kv_random]]}\n"
    )
    said = cli("+experiment=with_random", "--config-dir", str(tmp_path / "mine"), *SMALL)
    assert said.status == status.DONE, said.err
    record = manifest(version(tmp_path, "n300_kv_only", 2))
    assert record["counts"]["planned"] == 42 and record["counts"]["reused"] == 36
    found = pd.read_parquet(version(tmp_path, "n300_kv_only", 2) / "trials.parquet")
    fresh = found[found["origin"].isna()]
    assert set(fresh["condition"]) == {"kv_random"}
    assert set(found["origin"].dropna()) == {"n300_kv_only/v0001"}
    old = pd.read_parquet(version(tmp_path, "n300_kv_only") / "trials.parquet")
    both = old.merge(found, on=["condition", "item"], suffixes=("", "_new"))
    assert (both["text"] == both["text_new"]).all() and (both["score"] == both["score_new"]).all()


def test_results_do_not_depend_on_batches_or_their_order(cli, tmp_path, monkeypatch):
    cli("+experiment=n300_controls", *SMALL, "output_root=all")
    cli("+experiment=n300_controls", *SMALL, "output_root=few", "backend.max_rows=7")
    mixed = np.random.default_rng(0).permutation
    monkeypatch.setattr("runner.schedule._order", lambda held, rows: mixed(len(rows)))
    cli("+experiment=n300_controls", *SMALL, "output_root=mixed", "backend.max_rows=13")
    tables = [table(tmp_path / root / "n300_controls" / "v0001") for root in ("all", "few", "mixed")]
    pd.testing.assert_frame_equal(tables[0], tables[1])
    pd.testing.assert_frame_equal(tables[0], tables[2])


def start(folder: Path, *words: str) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(HOME), "COLUMNS": "400"}
    command = [sys.executable, "-m", "runner", *words]
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # A shell's background jobs ignore the interrupt, and so would what they start.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )


def wait_for_results(folder: Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if any(p.stat().st_size for p in (folder / "segments").glob("*.jsonl")):
            return
        time.sleep(0.02)
    raise AssertionError(
        f"no results appeared: {process.stdout.read() if process.poll() is not None else ''}"
    )


INTERRUPTIBLE = ("limit=12", "sampling.max_new_tokens=20", "quiet=true", "report=false", "backend.max_rows=4")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> pd.DataFrame:
    folder = tmp_path_factory.mktemp("uninterrupted")
    result = runner.run([KV_ONLY, *INTERRUPTIBLE, f"output_root={folder}"])
    assert result.status == status.DONE and result.folder is not None
    return table(result.folder)


def test_trap_37_killed_and_resumed_is_as_uninterrupted(cli, tmp_path, uninterrupted):
    folder = version(tmp_path, "n300_kv_only")
    for _ in range(2):
        process = start(tmp_path, KV_ONLY, *INTERRUPTIBLE, "resume=true")
        wait_for_results(folder, process)
        process.send_signal(signal.SIGKILL)
        process.wait()
    kept = sum(p.read_bytes().count(b"\n") for p in (folder / "segments").glob("*.jsonl"))
    assert 0 < kept < 72
    running = runner.load(folder).trials
    assert (running["status"] == "ok").sum() == kept and (running["status"] == "pending").any()
    said = cli(KV_ONLY, *INTERRUPTIBLE, "resume=true")
    assert said.status == status.DONE and f"{kept} results were already here" in said.out
    pd.testing.assert_frame_equal(table(folder), uninterrupted)
    said = cli(KV_ONLY, *INTERRUPTIBLE, "resume=true")
    assert said.status == status.DONE and "nothing to do" in said.out


def test_interrupt_ends_cleanly_and_says_how_to_go_on(cli, tmp_path, uninterrupted):
    folder = version(tmp_path, "n300_kv_only")
    process = start(tmp_path, KV_ONLY, *INTERRUPTIBLE)
    wait_for_results(folder, process)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == status.INTERRUPTED, out
    assert "Traceback" not in out
    assert "resume=true" in out and manifest(folder)["status"] == "interrupted"
    assert manifest(folder)["counts"]["planned"] == 72 and manifest(folder)["counts"]["done"] > 0
    said = cli(KV_ONLY, *INTERRUPTIBLE, "sampling.seed=43", "backend.max_rows=9", "resume=true")
    assert said.status == status.CONFIGURATION and "sampling.seed was 42, is 43" in said.out
    assert "max_rows" not in said.out, "how many rows a batch has is no difference"
    assert cli(KV_ONLY, *INTERRUPTIBLE, "resume=true").status == status.DONE
    pd.testing.assert_frame_equal(table(folder), uninterrupted)


def test_an_interrupted_run_lends_its_results_to_a_new_version(cli, tmp_path):
    process = start(tmp_path, KV_ONLY, *INTERRUPTIBLE)
    wait_for_results(version(tmp_path, "n300_kv_only"), process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert cli(KV_ONLY, *INTERRUPTIBLE).status == status.DONE
    assert manifest(version(tmp_path, "n300_kv_only", 2))["counts"]["reused"] > 0


def test_trap_37_a_changed_bank_or_model_under_a_resumed_run_is_refused(cli, tmp_path):
    bank = tmp_path / "targets.jsonl"
    bank.write_text((HOME / "conf/prompts/banks/organism/targets.jsonl").read_text())
    words = (KV_ONLY, *INTERRUPTIBLE, f"prompts.targets.bank={bank}")
    process = start(tmp_path, *words)
    wait_for_results(version(tmp_path, "n300_kv_only"), process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    lines = bank.read_text().splitlines()
    bank.write_text("\n".join(lines[:-1]) + "\n")
    said = cli(*words, "resume=true")
    assert said.status == status.CONFIGURATION
    assert "prompt bank" in said.out and "changed since it began" in said.out


def manifest_status(folder: Path, value: str) -> None:
    record = manifest(folder)
    record["status"], record["exit_status"] = value, None
    (folder / "manifest.json").write_text(json.dumps(record))


def test_killed_after_the_table_before_the_manifest_recomputes_nothing(cli, tmp_path, monkeypatch):
    words = (AS_PUBLISHED, *SMALL, "allow_inert=false")
    assert cli(*words).status == status.INERT
    folder = version(tmp_path, "n300_as_published")
    whole = table(folder)
    manifest_status(folder, "running")
    (folder / "summary.json").unlink()
    monkeypatch.setattr(TorchBackend, "decode", None)  # nothing is left to run
    said = cli(*words, "resume=true")
    assert said.status == status.INERT and "24 results were already here" in said.out
    assert (folder / "summary.json").is_file() and manifest(folder)["exit_status"] == status.INERT
    pd.testing.assert_frame_equal(table(folder), whole)


def test_a_run_is_done_only_with_its_summary_and_also_without_its_pictures(cli, tmp_path, monkeypatch):
    words = (KV_ONLY, "limit=1", "quiet=true", "sampling.max_new_tokens=4")
    folder = version(tmp_path, "n300_kv_only")

    def fault(*args):
        raise RuntimeError("no summary")

    with monkeypatch.context() as broken:
        broken.setattr("runner.job.write_summary", fault)
        said = cli(*words)
    assert said.status == status.CRASH and "stopped: no summary" in said.out
    assert manifest(folder)["status"] == "interrupted"
    assert runner.load(folder).trials["status"].eq("ok").all()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr("runner.job.draw", full)
        said = cli(*words, "resume=true")
    assert said.status == status.CRASH and "No space left on device" in said.out
    assert "patchbay report outputs/n300_kv_only/v0001" in said.out and "Traceback" not in said.err
    assert manifest(folder)["status"] == "done" and (folder / "summary.json").is_file()


def test_something_in_the_way_of_a_version_is_passed_over(cli, tmp_path):
    (tmp_path / "outputs" / "n300_kv_only").mkdir(parents=True)
    (tmp_path / "outputs" / "n300_kv_only" / "v0001").touch()
    (tmp_path / "outputs" / "n300_kv_only" / "v0002").symlink_to(tmp_path / "nowhere")
    assert cli(KV_ONLY, "limit=1", "quiet=true", "report=false").status == status.DONE
    assert version(tmp_path, "n300_kv_only", 3).is_dir()


def test_damaged_earlier_versions_are_noted_and_passed_over(cli, tmp_path):
    for number, text in enumerate(("{", "{}"), start=1):
        folder = version(tmp_path, "n300_kv_only", number)
        (folder / "segments").mkdir(parents=True)
        (folder / "manifest.json").write_text(text)
        (folder / "segments" / "0000-1.jsonl").write_text('{"key": "k", "status": "ok"}\n')
    said = cli(KV_ONLY, *SMALL, "resume=true")
    assert said.status == status.DONE and "expected JSON" in said.out and "config_hash" in said.out
    assert manifest(version(tmp_path, "n300_kv_only", 3))["counts"]["done"] == 36


def test_a_full_disk_ends_with_a_sentence_and_keeps_what_is_stored(cli, tmp_path, monkeypatch):
    from runner.results import store

    real, calls = os.fsync, []

    def fsync(handle: int) -> None:
        calls.append(handle)
        if len(calls) > 10:
            raise OSError(28, "No space left on device")
        real(handle)

    monkeypatch.setattr(store.os, "fsync", fsync)
    said = cli(KV_ONLY, *INTERRUPTIBLE)
    assert said.status == status.CRASH
    assert "No space left on device" in said.err and "resume=true" in said.err and "Traceback" not in said.err
    monkeypatch.undo()
    os.chdir(tmp_path)
    said = cli(KV_ONLY, *INTERRUPTIBLE, "resume=true")
    assert said.status == status.DONE and "results were already here" in said.out


@pytest.fixture
def breaking(monkeypatch):
    """Make decode fail for rows that a function picks."""
    real = TorchBackend.decode

    def install(fails) -> None:
        def decode(self, rows, start=None, together=None):
            fails(rows)
            return real(self, rows, start, together)

        monkeypatch.setattr(TorchBackend, "decode", decode)

    return install


def test_trap_38_a_failed_trial_fails_the_run_and_the_others_go_on(cli, tmp_path, breaking, monkeypatch):
    poisoned = {}

    def fails(rows):
        poisoned.setdefault("stream", rows[-1].stream)
        if any(row.stream == poisoned["stream"] and not row.writes for row in rows):
            raise RuntimeError("a hook that raises")

    breaking(fails)
    said = cli(KV_ONLY, *SMALL)
    assert said.status == status.FAILED_TRIALS
    assert "failed: baseline, item" in said.out and "a hook that raises" in said.out
    folder = version(tmp_path, "n300_kv_only")
    found = pd.read_parquet(folder / "trials.parquet")
    assert (found["status"] == "failed").sum() == 1 and (found["status"] == "ok").sum() == 35
    assert manifest(folder)["counts"]["failed"] == 1 and manifest(folder)["status"] == "failed"
    monkeypatch.undo()
    os.chdir(tmp_path)
    assert cli(KV_ONLY, *SMALL, "resume=true").status == status.DONE
    assert (pd.read_parquet(folder / "trials.parquet")["status"] == "ok").all()


def test_out_of_memory_halves_the_batch_and_remembers(cli, tmp_path, breaking):
    sizes = []

    def fails(rows):
        sizes.append(len(rows))
        if len(rows) > 10:
            raise OutOfMemory("no room")

    breaking(fails)
    said = cli(KV_ONLY, *SMALL)
    assert said.status == status.DONE and "out of memory with 36 rows; going on with 18" in said.out
    assert sizes == [36, 18, 9, 9, 9, 9]
    assert (pd.read_parquet(version(tmp_path, "n300_kv_only") / "trials.parquet")["status"] == "ok").all()


def test_out_of_memory_with_one_row_is_a_failed_trial(cli, breaking):
    def fails(rows):
        raise OutOfMemory("no room at all")

    breaking(fails)
    said = cli(KV_ONLY, "limit=1", "quiet=true", "report=false")
    assert said.status == status.FAILED_TRIALS and "out of memory with a single row" in said.out


def test_a_sweep_loads_once_combines_and_returns_the_worst_status(cli, tmp_path, monkeypatch):
    from backends.torch import loading

    loads = []
    real = loading._load
    monkeypatch.setattr(loading, "_loaded", {})
    monkeypatch.setattr(loading, "_load", lambda *a: loads.append(a) or real(*a))
    said = cli("-m", "+experiment=n300_controls", *SMALL, "conditions.kv_v_l27.v_proj.layers=18,25,99")
    assert said.status == status.CONFIGURATION
    assert len(loads) == 1
    assert "99" in said.err and "job 3 ended with status 2" in said.out
    sweep = tmp_path / "outputs" / "n300_controls" / "sweeps" / "s0001"
    combined = pd.read_parquet(sweep / "trials.parquet")
    assert set(combined["version"]) == {"v0001", "v0002"}
    assert set(combined["sweep.conditions.kv_v_l27.v_proj.layers"]) == {"18", "25"}
    body = json.loads((sweep / "summary.json").read_text())
    assert [job["status"] for job in body["jobs"]] == [0, 0, 2]
    swept = [row for row in body["table"] if row["condition"] == "kv_v_l27"]
    assert len(swept) == 2 and all(row["n"] == 6 for row in swept)


def test_a_resumed_sweep_keeps_its_finished_jobs(cli, tmp_path):
    words = ("-m", "+experiment=n300_controls", *SMALL, "limit=2")
    assert cli(*words, "conditions.kv_v_l27.v_proj.layers=18,99").status == status.CONFIGURATION
    assert cli(*words, "conditions.kv_v_l27.v_proj.layers=18,25", "resume=true").status == status.DONE
    sweep = tmp_path / "outputs" / "n300_controls" / "sweeps" / "s0002"
    assert set(pd.read_parquet(sweep / "trials.parquet")["version"]) == {"v0001", "v0002"}


def test_sampling_noise_is_shared_by_conditions_and_differs_between_repeats(cli, tmp_path):
    said = cli(KV_ONLY, *SMALL, "experiment.repeats=2")
    assert said.status == status.DONE
    found = pd.read_parquet(version(tmp_path, "n300_kv_only") / "trials.parquet")
    baseline = found[found["condition"] == "baseline"].pivot(index="item", columns="repeat", values="text")
    assert (baseline[0] != baseline[1]).mean() > 0.5
    both = found.pivot(index=["item", "repeat"], columns="condition", values="text")
    assert (both["baseline"] == both["kv_self"]).all()
    assert stream_of("a", 1) != stream_of("a1", "")


def test_try_shows_one_item_in_all_conditions(cli, tmp_path):
    said = cli("try", KV_ONLY, "item=3", "sampling.max_new_tokens=20")
    assert said.status == status.DONE
    for name in ("baseline", "kv_only", "kv_plain", "kv_pseudo", "kv_repetitive", "kv_self"):
        assert name in said.out
    assert "prefill" in said.out and not (tmp_path / "outputs").exists()
    assert cli("try", KV_ONLY, "item=300").status == status.CONFIGURATION


def test_dry_run_tells_and_writes_nothing(cli, tmp_path):
    said = cli(KV_ONLY, "dry_run=true")
    assert said.status == status.DONE
    assert "1,800" in said.out and "minimal detectable effect" in said.out and "published" in said.out
    assert "the donor's KV cache (keys and values) replaces" in said.out
    assert not (tmp_path / "outputs").exists()


def test_trap_23_scores_see_the_continuation_only(cli, tmp_path):
    cli(KV_ONLY, *SMALL, "+conditions.ceiling={prompt: donor}")
    found = pd.read_parquet(version(tmp_path, "n300_kv_only") / "trials.parquet")
    from runner.scores.behaviour import behaviour

    assert all(behaviour(row["text"]).score == row["score"] for _, row in found.iterrows())
    assert all(len(row["output_ids"]) == row["n_new"] for _, row in found.iterrows())


def test_python_interface_runs_and_loads(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = runner.run([KV_ONLY, *SMALL])
    assert result.status == status.DONE and result.folder is not None
    assert runner.load("n300_kv_only").folder == Path("outputs/n300_kv_only/v0001")
    assert runner.load("n300_kv_only/v0001").trials.shape[0] == 36
