"""Stored texts scored again: new columns, values that change, what stays, and what is refused."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

import runner
from runner.config.resolve import config_hash
from runner.scores.behaviour import MARKERS, VERSION, behaviour
from runner.scores.contains import contains
from runner.scores.degenerate import degenerate
from tests.conftest import Said
from tests.ran import Ran, folder_of, runs
from tests.staging import staged

QUICK = ("sampling.max_new_tokens=24", "report=false", "limit=4")
WORDS = ["the", "itself"]
Cli = Callable[..., Said]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    return runs(tmp_path_factory, *QUICK)


@pytest.fixture
def copied(ran: Ran, tmp_path: Path) -> Path:
    """A run of six conditions and four items in a folder of the test's own."""
    source = folder_of(ran("n300_kv_only"))
    return Path(shutil.copytree(source, tmp_path / "outputs" / "n300_kv_only" / "v0001"))


def trials(folder: Path) -> pd.DataFrame:
    return pd.read_parquet(folder / "trials.parquet")


def manifest(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return found


def mine(folder: Path, name: str = "mine", **body: Any) -> Path:
    """A user's folder with a readout of their own."""
    (folder / "conf" / "readout").mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump({"kind": "contains", "version": 1, **body})
    (folder / "conf" / "readout" / f"{name}.yaml").write_text(text)
    return folder / "conf"


def test_new_columns_are_added_and_all_else_stays(copied: Path, cli: Cli) -> None:
    before = {p.name: p.read_bytes() for p in copied.iterdir() if p.is_file()}
    said = cli("rescore", "n300_kv_only/v0001", "readout=degenerate", "report=false")
    assert said.status == 0, said.err
    assert {p.name: p.read_bytes() for p in copied.iterdir() if p.is_file()} == before
    old, new = trials(copied), trials(copied.with_name("v0002"))
    for row in new.itertuples():
        expected = degenerate(row.text)
        undefined = expected.repeated is None and math.isnan(row.degenerate)
        assert undefined or row.degenerate == expected.repeated
        assert new.loc[row.Index, "degenerate.run"] == expected.run
    assert set(new["origin"]) == {"n300_kv_only/v0001"}
    kept = [name for name in old.columns if name != "origin"]
    pd.testing.assert_frame_equal(new[kept], old[kept])
    place = list(new.columns).index("degenerate")
    assert place < list(new.columns).index("kv.positions_prefill") < list(new.columns).index("origin")
    told = manifest(copied.with_name("v0002"))
    assert told["rescored_from"]["run"] == "n300_kv_only/v0001"
    assert told["readouts"] == ["behaviour", "perplexity", "degenerate"] and told["status"] == "done"
    assert told["readout"]["degenerate"]["kind"] == "degenerate"
    assert told["config_hash"] == config_hash(told["config"]) != manifest(copied)["config_hash"]
    summary = json.loads((copied.with_name("v0002") / "summary.json").read_text())
    assert "degenerate" in summary["conditions"]["kv_only"]["readouts"]
    assert "rescore" in told["command"] and told["rescored_from"]["command"] == manifest(copied)["command"]


def test_a_run_with_that_readout_takes_every_result_over(copied: Path, cli: Cli) -> None:
    """The new version is what a run with that readout would have written: the same keys, the same values."""
    cli("rescore", "n300_kv_only/v0001", "readout=degenerate", "report=false")
    words = ["+experiment=n300_kv_only", *QUICK, "readouts=[behaviour,perplexity,degenerate]", "quiet=true"]
    result = runner.run([*words, f"output_root={copied.parent.parent}"])
    found = trials(folder_of(result))
    assert found["origin"].notna().all()
    columns = ["key", "condition", "item", "score", "perplexity", "degenerate", "degenerate.run"]
    pd.testing.assert_frame_equal(found[columns], trials(copied.with_name("v0002"))[columns])
    assert manifest(folder_of(result))["readout"] == manifest(copied.with_name("v0002"))["readout"]


def test_scores_that_were_otherwise_are_replaced_counted_and_their_markers_recorded(
    copied: Path, cli: Cli
) -> None:
    old = trials(copied)
    wrong = old.assign(score=old["score"].where(old.index != 3, 99.0))
    table = pd.DataFrame(wrong)
    _write(copied, table)
    told = manifest(copied)
    told["markers"] = {"list": ["other"], "version": 0}
    (copied / "manifest.json").write_text(json.dumps(told))
    said = cli("rescore", "n300_kv_only", "readout=behaviour", "report=false")
    new = trials(copied.with_name("v0002"))
    assert new["score"].tolist() == [behaviour(text).score for text in new["text"]]
    assert "score: 1 of 24 values" in said.out and "markers: 0 of 24 values" in said.out
    found = manifest(copied.with_name("v0002"))
    assert found["markers"] == {"list": list(MARKERS), "version": VERSION}
    assert found["rescored_from"]["markers"] == {"list": ["other"], "version": 0}
    assert found["rescored_from"]["changed"]["score"] == {"changed": 1, "of": 24}
    # What the model measured is not taken again.
    pd.testing.assert_series_equal(new["perplexity"], old["perplexity"])


def _write(folder: Path, table: pd.DataFrame) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / "trials.parquet"
    pq.write_table(pa.Table.from_pandas(table, schema=pq.read_schema(path), preserve_index=False), path)


def test_trials_that_are_not_valid_get_no_score(copied: Path, cli: Cli) -> None:
    table = trials(copied)
    table.loc[[0, 5], "status"] = ["invalid", "failed"]
    _write(copied, table)
    cli("rescore", "n300_kv_only", "readout=degenerate", "report=false")
    new = trials(copied.with_name("v0002"))
    assert new["degenerate.run"].isna().tolist() == [place in (0, 5) for place in range(len(new))]


def test_a_readout_of_ones_own_searches_for_its_words(copied: Path, tmp_path: Path, cli: Cli) -> None:
    home = mine(tmp_path, tokens=WORDS)
    said = cli("rescore", "n300_kv_only", "readout=mine", f"config_dir={home}", "report=false")
    assert said.status == 0, said.err
    new = trials(copied.with_name("v0002"))
    assert new["mine"].tolist() == [contains(text, WORDS) for text in new["text"]]
    assert new["mine"].nunique() == 2
    assert manifest(copied.with_name("v0002"))["readout"]["mine"]["tokens"] == "the, itself"


def test_what_needs_the_model_and_what_does_not_exist_is_refused_at_once(copied: Path, cli: Cli) -> None:
    said = cli("rescore", "n300_kv_only", "readout=perplexity,kl,degenrate")
    assert said.status == 2 and "3 mistakes" in said.err
    assert "'perplexity' (perplexity) is measured on the model" in said.err and "'kl' (kl)" in said.err
    assert "did you mean 'degenerate'?" in said.err
    assert cli("rescore", "n300_kv_only").status == 2
    assert [p.name for p in copied.parent.iterdir()] == ["v0001"]


def test_facts_that_the_prompts_do_not_state_are_told_and_a_changed_bank_is_refused(
    copied: Path, tmp_path: Path, cli: Cli
) -> None:
    home = mine(tmp_path, tokens="fact:answer")
    said = cli("rescore", "n300_kv_only", "readout=mine", f"config_dir={home}", "report=false")
    assert said.status == 0 and trials(copied.with_name("v0002"))["mine"].isna().all()
    told = manifest(copied)
    for bank in told["prompts"]["banks"].values():
        bank["sha256"] = "other"
    (copied / "manifest.json").write_text(json.dumps(told))
    said = cli("rescore", "n300_kv_only/v0001", "readout=mine", f"config_dir={home}")
    assert said.status == 2 and "the bank has changed since the run" in said.err
    home = mine(tmp_path, tokens="fact:length_matched/answer")
    said = cli("rescore", "n300_kv_only/v0001", "readout=mine", f"config_dir={home}")
    assert said.status == 2 and "does not tell by id who is in the role 'length_matched'" in said.err


@pytest.mark.slow
def test_facts_are_those_of_the_items_own_prompts_and_a_report_is_written(tmp_path: Path, cli: Cli) -> None:
    words = ["+experiment=two_hop", "limit=6", "quiet=true", "report=false", "backend.threads=1"]
    folder = folder_of(runner.run([*words, f"output_root={tmp_path / 'outputs'}"]))
    before = trials(folder)
    answered = before["answered"].notna()
    assert answered.any()
    table = before.assign(answered=before["answered"].where(~answered, 0.5))
    _write(folder, table)
    assert cli("rescore", "two_hop", "readout=answered").status == 0
    assert (folder.with_name("v0002") / "report.html").is_file()
    pd.testing.assert_series_equal(trials(folder.with_name("v0002"))["answered"], before["answered"])


def test_a_run_with_stages_keeps_its_choices_and_artefacts(tmp_path: Path, cli: Cli) -> None:
    changes = {"stages/evaluate/readouts": ["refusal", "refuses"]}
    words = ["+experiment=mine", "limit=4", "quiet=true", "report=false", "backend.threads=1"]
    result = runner.run([*words, f"output_root={tmp_path / 'outputs'}"], staged(tmp_path, changes))
    folder = folder_of(result)
    said = cli("rescore", "mine", "readout=degenerate", f"config_dir={tmp_path}", "report=false")
    assert said.status == 0, said.err
    new = folder.with_name("v0002")
    table = trials(new)
    scored = table["degenerate.run"].notna()
    assert set(table.loc[scored, "stage"]) == {"evaluate"} and scored.any()
    told = manifest(new)["stages"]
    assert "degenerate" in told["evaluate"]["readouts"] and "degenerate" not in told["screen"]["readouts"]
    for part in ("choices", "artefacts"):
        assert {p.name for p in (new / part).iterdir()} == {p.name for p in (folder / part).iterdir()}
    findings = [json.loads((f / "summary.json").read_text())["findings"] for f in (folder, new)]
    assert findings[0] == findings[1]


def test_runs_that_have_not_ended_or_have_no_texts_are_refused(copied: Path, cli: Cli) -> None:
    told = manifest(copied)
    (copied / "manifest.json").write_text(json.dumps(told | {"status": "interrupted"}))
    said = cli("rescore", "n300_kv_only", "readout=degenerate")
    assert said.status == 2 and "resume=true" in said.err
    (copied / "manifest.json").write_text(json.dumps(told))
    _write(copied, trials(copied).assign(n_new=0, text=""))
    said = cli("rescore", "n300_kv_only", "readout=degenerate")
    assert said.status == 2 and "no generated texts" in said.err


def test_neither_torch_nor_the_model_is_loaded(copied: Path) -> None:
    root = f"output_root={copied.parent.parent}"
    words = ["rescore", "n300_kv_only", "readout=degenerate", "report=false", root]
    code = (
        "import sys; from runner.command import dispatch; "
        f"status = dispatch({words!r}); "
        "sys.exit(50 if {'torch', 'transformers'} & set(sys.modules) else status)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (copied.with_name("v0002") / "summary.md").is_file()
