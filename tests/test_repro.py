"""A sample of a stored run's trials, run again: what comes out the same, what does not, what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import runner
from runner.repeated import NEAR
from tests.conftest import Said
from tests.ran import Ran, folder_of, runs
from tests.staging import staged

QUICK = ("sampling.max_new_tokens=12", "report=false")
STAMP = "repro-*.json"


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    return runs(tmp_path_factory, *QUICK)


@pytest.fixture
def copied(ran: Ran, tmp_path: Path) -> Path:
    """A run of six conditions and five items in a folder of the test's own."""
    source = folder_of(ran("n300_kv_only", "limit=5"))
    return Path(shutil.copytree(source, tmp_path / "outputs" / "n300_kv_only" / "v0001"))


def changed(folder: Path, change: Callable[[pd.DataFrame], None]) -> None:
    """The run as if other results had been recorded."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / "trials.parquet"
    schema = pq.read_schema(path)
    trials = pd.read_parquet(path)
    change(trials)
    pq.write_table(pa.Table.from_pandas(trials, schema=schema, preserve_index=False), path)


def stored(folder: Path) -> dict[str, Any]:
    (path,) = folder.glob(STAMP)
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_run_comes_out_as_it_did_and_only_the_answer_is_added(
    copied: Path, cli: Callable[..., Said]
) -> None:
    before = contents(copied)
    said = cli("repro", "n300_kv_only", "sample=12")
    assert said.status == 0 and "12 of 12 trials of n300_kv_only/v0001 gave the same tokens" in said.out
    answer = stored(copied)
    after = contents(copied)
    assert {name for name in after if name not in before} == {p.name for p in copied.glob(STAMP)}
    assert all(after[name] == before[name] for name in before)
    assert answer["counts"] == {"same": 12, "near_tie": 0, "differs": 0, "failed": 0}
    # Two of each of the six conditions.
    assert pd.Series([each["condition"] for each in answer["repeated"]]).value_counts().eq(2).all()
    assert not answer["uncovered"] and not answer["gone"]


def test_an_answer_is_never_written_over(copied: Path, cli: Callable[..., Said]) -> None:
    assert cli("repro", "n300_kv_only", "sample=1").status == 0
    assert cli("repro", "n300_kv_only", "sample=1", "seed=5").status == 0
    answers = [json.loads(path.read_text()) for path in copied.glob(STAMP)]
    assert sorted(each["seed"] for each in answers) == [0, 5]
    drawn = {each["repeated"][0]["key"] for each in answers}
    assert len(drawn) == 2
    assert all(len(each["uncovered"]) == 5 for each in answers)


def with_other_tokens(margin: float) -> Callable[[pd.DataFrame], None]:
    """From the third token on, with this smallest margin."""

    def change(trials: pd.DataFrame) -> None:
        trials["output_ids"] = [
            [*ids[:2], *(int(each) + 1 for each in ids[2:])] for ids in trials["output_ids"]
        ]
        trials["min_margin"] = margin

    return change


def test_other_tokens_differ_from_the_step_at_which_they_do(copied: Path, cli: Callable[..., Said]) -> None:
    changed(copied, with_other_tokens(5.0))
    # What is recorded now may itself be a near-tie, which would excuse the difference.
    said = cli("repro", "n300_kv_only", "sample=30", "format=json")
    answer = json.loads(said.out)
    assert {each["step"] for each in answer["repeated"]} == {2}
    near = {each["key"]: each["margin"][1] < NEAR["float32"] for each in answer["repeated"]}
    expected = {key: "near_tie" if tie else "differs" for key, tie in near.items()}
    assert {each["key"]: each["verdict"] for each in answer["repeated"]} == expected
    assert "differs" in expected.values()
    assert said.status == 4 and answer["sound"] is False


def test_a_difference_at_a_recorded_near_tie_is_accepted(copied: Path, cli: Callable[..., Said]) -> None:
    changed(copied, with_other_tokens(NEAR["float32"] / 2))
    said = cli("repro", "n300_kv_only", "sample=6")
    assert said.status == 0 and "6 took another token at a near-tie" in said.out
    assert "step 2 on (a near-tie" in said.out


def test_scores_and_receipts_that_differ_are_told_with_both_values(
    copied: Path, cli: Callable[..., Said]
) -> None:
    def change(trials: pd.DataFrame) -> None:
        trials["markers"] += 1
        trials["kv.positions_prefill"] -= 2

    changed(copied, change)
    said = cli("repro", "n300_kv_only", "sample=6")
    (kv,) = [each for each in stored(copied)["repeated"] if each["condition"] == "kv_only"]
    assert said.status == 4 and kv["verdict"] == "differs" and kv["step"] is None
    assert kv["scores"]["markers"][0] == kv["scores"]["markers"][1] + 1 and set(kv["scores"]) == {"markers"}
    assert kv["receipts"]["kv.positions_prefill"][0] == kv["receipts"]["kv.positions_prefill"][1] - 2
    assert "kv.positions_prefill was" in said.out


def test_results_that_this_code_would_not_compute_are_counted_or_refused_with_the_reason(
    copied: Path, cli: Callable[..., Said]
) -> None:
    def half(trials: pd.DataFrame) -> None:
        gone = trials["item"] == "0000"
        trials.loc[gone, "key"] = [f"{number:032x}" for number in range(int(gone.sum()))]

    changed(copied, half)
    assert cli("repro", "n300_kv_only", "sample=40").status == 0
    answer = stored(copied)
    assert answer["gone"] == 6 and len(answer["repeated"]) == 24

    def all_of_them(trials: pd.DataFrame) -> None:
        trials["key"] = [f"{number:032x}" for number in range(len(trials))]

    changed(copied, all_of_them)
    manifest = json.loads((copied / "manifest.json").read_text())
    manifest["model"]["fingerprint"] = "another"
    (copied / "manifest.json").write_text(json.dumps(manifest))
    said = cli("repro", "n300_kv_only")
    assert said.status == 2 and "weights was another" in said.out and len(list(copied.glob(STAMP))) == 1


def test_what_is_different_now_is_listed(copied: Path, cli: Callable[..., Said]) -> None:
    manifest = json.loads((copied / "manifest.json").read_text())
    manifest["packages"]["torch"] = "1.0"
    manifest["hardware"]["cores"] = 0
    (copied / "manifest.json").write_text(json.dumps(manifest))
    cli("repro", "n300_kv_only", "sample=1")
    found = {(each["of"], each["key"]): each["first"] for each in stored(copied)["differences"]}
    assert found["packages", "torch"] == "1.0" and found["machine", "cores"] == 0


def test_trap_44_low_precision_is_run_again_in_the_batches_that_it_had(
    ran: Ran, tmp_path: Path, cli: Callable[..., Said]
) -> None:
    source = folder_of(ran("n300_kv_only", "limit=2", "backend.dtype=bfloat16", "backend.max_rows=5"))
    folder = Path(shutil.copytree(source, tmp_path / "outputs" / "n300_kv_only" / "v0001"))
    assert cli("repro", "n300_kv_only", "sample=4").status == 0
    answer = stored(folder)
    assert answer["counts"]["same"] == 4 and all(each["same_shape"] for each in answer["repeated"])
    # Recorded in other batches, none can be made again: the rows run alone, and that is told.
    changed(folder, lambda trials: trials.__setitem__("batch_rows", 3))
    said = cli("repro", "n300_kv_only", "sample=4", "format=json")
    assert not any(each["same_shape"] for each in json.loads(said.out)["repeated"])


def test_a_run_with_stages_takes_its_own_choices_and_artefacts(
    tmp_path: Path, cli: Callable[..., Said]
) -> None:
    words = ["+experiment=mine", "limit=4", "quiet=true", "report=false", "backend.threads=1"]
    result = runner.run([*words, f"output_root={tmp_path / 'outputs'}"], staged(tmp_path))
    folder = folder_of(result)
    said = cli("repro", "mine", "sample=12", f"config_dir={tmp_path}")
    assert said.status == 0, said.err
    seen = {each["stage"] for each in stored(folder)["repeated"]}
    assert seen == {"screen", "candidates", "evaluate"}
    shutil.rmtree(folder / "artefacts")
    said = cli("repro", "mine", "sample=12", f"config_dir={tmp_path}")
    assert "Stage evaluate is left out: the run's folder lacks direction" in said.out


def test_a_folder_of_ones_own_files_that_is_gone_is_asked_for(copied: Path, cli: Callable[..., Said]) -> None:
    manifest = json.loads((copied / "manifest.json").read_text())
    manifest["command"] = ["python", "-m", "runner", "--config-dir", "/not/there", "+experiment=n300_kv_only"]
    (copied / "manifest.json").write_text(json.dumps(manifest))
    said = cli("repro", "n300_kv_only")
    assert said.status == 2 and "config_dir=DIR" in said.err
    assert cli("repro", "n300_kv_only", "sample=0").status == 2
