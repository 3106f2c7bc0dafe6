"""Experiments with stages: what flows from one to the next, what is computed again, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file, save_file

from runner import status
from runner.config.check import check_experiment
from runner.config.compose import compose
from runner.config.errors import ConfigurationError
from runner.config.stages.artefact_files import read_artefact
from tests.staging import PROJECTED, staged

MINE = "+experiment=mine"


def told(folder: Path) -> str:
    with pytest.raises(ConfigurationError) as caught:
        check_experiment(compose([MINE], folder))
    return str(caught.value)


def run(cli, tmp_path, *words: str):
    return cli(MINE, "--config-dir", str(tmp_path), "quiet=true", "report=false", *words)


def read(folder: Path, name: str):
    return json.loads((folder / name).read_text())


@pytest.fixture
def done(cli, tmp_path) -> Path:
    said = run(cli, staged(tmp_path))
    assert said.status == status.DONE, said.out + said.err
    return tmp_path / "outputs" / "mine" / "v0001"


def test_one_command_extracts_selects_and_measures(cli, tmp_path, done):
    trials = pd.read_parquet(done / "trials.parquet")
    assert list(trials["stage"].unique()) == ["screen", "candidates", "evaluate"]
    assert trials.groupby("stage")["item"].nunique().to_dict() == {
        "screen": 8,
        "candidates": 8,
        "evaluate": 8,
    }
    assert trials.groupby("stage")["split"].unique().map(list).to_dict() == {
        "screen": ["extract"],
        "candidates": ["validate"],
        "evaluate": ["test"],
    }
    choice = read(done, "choices/best.json")
    assert choice["n_cells"] == 6 and len(choice["table"]) == 6
    best = choice["chosen"][0]
    means = trials[trials["stage"] == "candidates"].groupby("condition")["refusal"].mean().dropna()
    cells = means[[name.startswith("ablate[") for name in means.index]]
    layer, position = best["dir.from_layer"], best["dir.from_positions"]
    assert cells.idxmin() == f"ablate[dir.from_layer={layer},dir.from_positions={position}]"
    written = read(done, "manifest.json")["stages"]["evaluate"]["conditions"]["ablated"]["writes"]["dir"]
    assert f"layer {layer}" in written["value"]["constant"]["name"]
    evaluated = trials[trials["stage"] == "evaluate"].groupby("condition")["refusal"].mean()
    assert evaluated["ablated"] < evaluated["baseline"] - 5
    found = {each["name"]: each for each in read(done, "summary.json")["findings"]}
    assert found["layer"]["value"] == layer
    assert found["effect"]["value"] == pytest.approx(evaluated["ablated"] - evaluated["baseline"], abs=1e-6)


def test_an_artefact_is_the_difference_of_means_and_says_where_it_is_from(done):
    artefact = read_artefact(done / "artefacts" / "direction.safetensors")
    manifest = read(done, "manifest.json")
    assert artefact.dims == ("position", "layer", "width") and artefact.positions == (-2, -1)
    assert (artefact.site, artefact.layers, artefact.units) == ("resid_pre", tuple(range(9)), "activation")
    assert artefact.model_fingerprint == manifest["model"]["fingerprint"]
    assert artefact.dtype == "float32" and len(artefact.sources["prompts"]) == 8
    from tests.extracting import means_by_hand

    expected = means_by_hand(artefact.sources["prompts"], (-2, -1))
    np.testing.assert_allclose(artefact.vectors, expected, atol=1e-5)
    table = pd.DataFrame(read(done, "artefacts/direction.json")["table"])
    norms = np.linalg.norm(artefact.vectors, axis=-1)
    last = table[table["position"] == "index:-1"].sort_values("layer")
    np.testing.assert_allclose(last["norm"], norms[1], rtol=1e-5)
    assert last["consistency"].iloc[8] > 0.9 and last["separation"].iloc[8] > 3
    assert last["consistency"].isna().iloc[0], "the same token at layer 0: no direction, so no cosine"


def test_a_second_run_computes_nothing_again(cli, tmp_path, done):
    said = run(cli, tmp_path)
    again = tmp_path / "outputs" / "mine" / "v0002"
    assert "direction is taken over from mine/v0001" in said.out
    counts = read(again, "manifest.json")["counts"]
    assert counts["reused"] == counts["done"] > 0
    for name in ("choices/best.json", "choices/agreed.json"):
        assert read(again, name) == read(done, name)
    one, other = (load_file(f / "artefacts" / "direction.safetensors") for f in (done, again))
    np.testing.assert_array_equal(one["vectors"], other["vectors"])


def test_only_what_depends_on_a_change_runs_again(cli, tmp_path, done):
    staged(tmp_path, {"stages/evaluate/conditions/baseline": {"prompt": "target"}})
    run(cli, tmp_path)
    trials = pd.read_parquet(tmp_path / "outputs" / "mine" / "v0002" / "trials.parquet")
    new = trials[(trials["status"] == "ok") & trials["origin"].isna()]
    assert set(zip(new["stage"], new["condition"], strict=True)) == {("evaluate", "baseline")}
    staged(tmp_path, {"stages/direction/positions": "last:3"})
    said = run(cli, tmp_path)
    assert "direction is taken over" not in said.out
    trials = pd.read_parquet(tmp_path / "outputs" / "mine" / "v0003" / "trials.parquet")
    assert trials[trials["stage"] == "screen"]["origin"].notna().all()


def test_an_interrupted_stage_resumes_where_it_stopped(cli, tmp_path, monkeypatch):
    from runner.execute import Executor

    staged(tmp_path)
    original, calls = Executor.run_batches, []

    def stop(self, batches):
        calls.append(len(batches))
        if len(calls) == 2:
            (first, *_) = batches
            original(self, [replace(first, trials=first.trials[: len(first.trials) // 2])])
            raise KeyboardInterrupt
        original(self, batches)

    monkeypatch.setattr(Executor, "run_batches", stop)
    said = run(cli, tmp_path)
    assert said.status == status.INTERRUPTED and "resume=true" in said.out
    folder = tmp_path / "outputs" / "mine" / "v0001"
    stages = read(folder, "manifest.json")["stages"]
    assert (stages["direction"]["status"], stages["evaluate"]["status"]) == ("done", "pending")
    monkeypatch.setattr(Executor, "run_batches", original)
    said = run(cli, tmp_path, "resume=true")
    assert said.status == status.DONE, said.out + said.err
    assert "direction was already here" in said.out and "results were already here" in said.out
    assert not (tmp_path / "outputs" / "mine" / "v0002").exists()
    whole = pd.read_parquet(folder / "trials.parquet")
    run(cli, tmp_path, "output_root=clean")
    clean = pd.read_parquet(tmp_path / "clean" / "mine" / "v0001" / "trials.parquet")
    kept = ["stage", "condition", "item", "status", "refusal"]
    pd.testing.assert_frame_equal(whole[kept], clean[kept], atol=1e-4)


def test_trap_30_a_stage_does_not_evaluate_on_what_it_was_selected_on_in_silence(cli, tmp_path):
    staged(tmp_path, {"stages/evaluate/split": "validate"})
    sentence = told(tmp_path)
    assert "stages.evaluate: it reads" in sentence and "chosen on (stage 'candidates')" in sentence
    staged(tmp_path, {"stages/candidates/split": "extract"})
    assert "extracted from (stage 'direction')" in told(tmp_path)
    staged(tmp_path, {"stages/evaluate/split": "validate", "stages/evaluate/in_sample": True})
    said = run(cli, tmp_path)
    assert said.status == status.DONE, said.out + said.err
    folder = tmp_path / "outputs" / "mine" / "v0001"
    assert "chosen on" in read(folder, "manifest.json")["stages"]["evaluate"]["in_sample"]
    summary = read(folder, "summary.json")
    gates = [gate for gate in summary["gates"] if gate["gate"] == "in_sample"]
    assert gates and gates[0]["verdict"] == "warn"
    effect = next(each for each in summary["findings"] if each["name"] == "effect")
    assert "chosen on" in json.dumps(effect)
    assert "chosen on" in (folder / "summary.md").read_text()


def test_trap_30_items_that_were_kept_for_what_is_measured_are_in_sample(tmp_path):
    staged(
        tmp_path,
        {
            "stages/evaluate/split": "extract",
            "stages/evaluate/items": "choice:agreed",
            "stages/evaluate/conditions/ablated": None,
            "findings": {},
        },
    )
    assert "stages.evaluate: it reads" in told(tmp_path)


def test_an_empty_choice_is_a_result(cli, tmp_path):
    staged(
        tmp_path,
        {"stages/best/where": [{"of": "ablate", "readout": "refusal", "below": -1000}]},
    )
    said = run(cli, tmp_path)
    assert said.status == status.DONE, said.out + said.err
    assert "stage evaluate is left out: 'best' has chosen nothing" in said.out
    folder = tmp_path / "outputs" / "mine" / "v0001"
    assert read(folder, "manifest.json")["stages"]["evaluate"]["status"] == "left_out"
    assert read(folder, "choices/best.json")["chosen"] == []
    summary = read(folder, "summary.json")
    assert [gate["gate"] for gate in summary["gates"]].count("empty_selection") == 1
    assert {each["name"]: each["value"] for each in summary["findings"]} == {"layer": None, "effect": None}


def test_trap_16_a_candidate_without_a_direction_is_invalid_and_the_others_go_on(done):
    trials = pd.read_parquet(done / "trials.parquet")
    at_0 = trials[trials["condition"] == "ablate[dir.from_layer=0,dir.from_positions=index:-1]"]
    assert set(at_0["status"]) == {"invalid"} and "is zero, which is no direction" in at_0["reason"].iloc[0]
    row = next(
        r
        for r in read(done, "choices/best.json")["table"]
        if (r["dir.from_layer"], r["dir.from_positions"]) == (0, "index:-1")
    )
    assert not row["passes"] and row["why"]
    assert read(done, "manifest.json")["exit_status"] == status.DONE


def test_trap_16_outside_a_grid_it_is_an_error(cli, tmp_path):
    fixed = {**PROJECTED, "from_layer": 0, "from_positions": "index:-1"}
    staged(tmp_path, {"stages/evaluate/conditions/ablated/dir": fixed})
    said = run(cli, tmp_path)
    assert said.status == status.CONFIGURATION
    assert "layer 0 is zero, which is no direction" in said.err


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"stages/best/from": "candidate"},
            "stages.best.from: expected an earlier stage (screen, agreed, direction, candidates), got "
            "'candidate'; did you mean 'candidates'?",
        ),
        ({"stages/agreed/from": "candidates"}, "it stands later in the file"),
        (
            {"stages/best/over": ["dir.layer"]},
            "stages.best.over.0: expected an axis of a grid in 'candidates' (dir.from_layer, "
            "dir.from_positions)",
        ),
        (
            {"stages/best/lowest": {"of": "ablat", "readout": "refusal"}},
            "stages.best.lowest.of: expected a condition or grid of 'candidates' (baseline, ablate), got "
            "'ablat'"
            "; did you mean 'ablate'?",
        ),
        (
            {"stages/best/lowest": {"of": "ablate", "readout": "kl"}},
            "stages.best.lowest.readout: expected a column with one number a trial (refusal), got 'kl'",
        ),
        ({"stages/best/highest": {"of": "ablate", "readout": "refusal"}}, "got lowest, highest"),
        ({"stages/best/where": [{"axis": "dir.from_layer"}]}, "stages.best.where.0: expected one bound"),
        (
            {"stages/candidates/conditions/ablate/dir/value": "artefact:directon"},
            "expected an artefact of an earlier stage (direction), or the path of one (.safetensors), got "
            "'directon'; did you mean 'direction'?",
        ),
        (
            {"stages/evaluate/conditions/ablated/dir/from_layer": "choice:bst"},
            "stages.evaluate.conditions.ablated.dir.from_layer: expected a choice of an earlier stage "
            "(agreed, "
            "best), got 'bst'; did you mean 'best'?",
        ),
        (
            {"stages/evaluate/conditions/ablated/dir/from_layer": "choice:best/heads"},
            "expected one axis of the choice 'best' (dir.from_layer, dir.from_positions), got 'heads'",
        ),
        (
            {"stages/evaluate/conditions/ablated/dir/from_positions": "index:-7"},
            "expected a position of the artefact 'direction' (index:-2, index:-1), got index:-7",
        ),
        (
            {"stages/evaluate/conditions/ablated/dir/site": "v_proj"},
            "the artefact 'direction' is of resid_pre, whose rows are no rows of v_proj",
        ),
        (
            {"stages/evaluate/conditions/ablated/dir/from_layer": 12},
            "from_layer: expected a layer from 0 to 8",
        ),
        ({"stages/direction/layers": 3}, "is of layers 3 and not of 0"),
        ({"stages/direction/site": "kv_cache"}, "stages.direction.site: expected a site with a row"),
        ({"stages/direction/items": "agreed"}, "stages.direction.items: expected choice:NAME"),
        ({"stages/direction/items": "choice:best"}, "it stands later in the file"),
        ({"stages/direction/positions": "lst:2"}, "stages.direction.positions: "),
        ({"stages/direction/of": "donor:nobody"}, "stages.direction.of: "),
        (
            {"stages/screen/split": "train"},
            "stages.screen.split: expected one of all, extract, validate, test",
        ),
        ({"stages/screen/reads": 1}, "stages.screen.reads: unknown key"),
        (
            {"stages/direction/heads": "choice:agreed"},
            "stages.direction.heads: nothing reads it without `from`",
        ),
        ({"stages/evaluate/in_sample": True}, "nothing was chosen or extracted on the prompts of this stage"),
        (
            {"findings/effect/readout": "kl"},
            "findings.effect.readout: expected a column with one number a trial (refusal), got 'kl'",
        ),
        ({"findings/layer/axis": "heads"}, "findings.layer.axis: expected an axis of the choice 'best'"),
        ({"findings/effect/stage": "evalute"}, "did you mean 'evaluate'?"),
    ],
)
def test_what_does_not_fit_is_told_at_its_key(tmp_path, changes, expected):
    assert expected in told(staged(tmp_path, changes))


def test_every_mistake_is_told_at_once(tmp_path):
    sentence = told(
        staged(
            tmp_path,
            {
                "stages/screen/split": "train",
                "stages/best/over": ["dir.layer"],
                "stages/evaluate/conditions/ablated/dir/layers": 99,
                "stages/evaluate/readouts": ["refusals"],
            },
        )
    )
    for expected in (
        "screen.split",
        "best.over.0",
        "evaluate.conditions.ablated.dir.layers",
        "evaluate.readouts",
    ):
        assert f"stages.{expected}" in sentence
    assert sentence.count("mine.yaml") == len([line for line in sentence.splitlines() if "mine.yaml" in line])


def flat(folder: Path, path: Path, **write: object) -> Path:
    """An experiment in the flat form that writes an artefact of another run."""
    body = {"site": "resid_pre", "layers": 5, "op": "add", "value": f"artefact:{path}", **write}
    lines = json.dumps({"baseline": {}, "steer": {"v": body}})
    (folder / "experiment").mkdir(exist_ok=True)
    (folder / "experiment" / "flat.yaml").write_text(
        "# @package _global_\ndefaults: [_self_, {override /prompts: refusal}]\n"
        "experiment: {name: flat, n: 4}\nmodel: {chat_template: true}\nreadouts: [refusal]\n"
        f"contrasts: {{primary: refusal}}\nconditions: {lines}\n",
        encoding="utf-8",
    )
    return folder


def test_an_artefact_of_another_run_is_read_by_its_path(cli, tmp_path, done):
    path = done / "artefacts" / "direction.safetensors"
    flat(tmp_path, path, from_positions="index:-1")
    said = cli("+experiment=flat", "--config-dir", str(tmp_path), "quiet=true", "report=false")
    assert said.status == status.DONE, said.out + said.err
    trials = pd.read_parquet(tmp_path / "outputs" / "flat" / "v0001" / "trials.parquet")
    change = trials.groupby("condition")["refusal"].mean()
    assert change["steer"] > change["baseline"] + 1
    said = cli(
        "+experiment=flat",
        "--config-dir",
        str(tmp_path),
        "quiet=true",
        "report=false",
        "model=organism_midway",
    )
    assert said.status == status.CONFIGURATION
    assert "was extracted from organism (weights" in said.err and "extract it anew" in said.err


def test_an_artefact_of_another_width_layer_or_unit_is_refused(cli, tmp_path, done):
    source = done / "artefacts" / "direction.safetensors"
    artefact = read_artefact(source)

    def changed(name: str, **changes: object) -> Path:
        from dataclasses import replace

        from runner.config.stages.artefact_files import as_bytes

        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(as_bytes(replace(artefact, **changes)))
        return path

    def said(path: Path, **write: object) -> str:
        flat(tmp_path, path, from_positions="index:-1", **write)
        found = cli("+experiment=flat", "--config-dir", str(tmp_path), "quiet=true", "report=false")
        assert found.status == status.CONFIGURATION
        return found.err

    narrow = changed("narrow", vectors=artefact.vectors[..., :32])
    assert "expected vectors of 64 numbers for resid_pre, the artefact 'direction'" in said(narrow)
    few = changed("few", vectors=artefact.vectors[:, :3], layers=(0, 1, 2))
    assert "is of layers 0, 1, 2 and not of 5" in said(few)
    unit = changed("unit", units="unit")
    assert "are directions and no activations to replace others by" in said(unit, op="replace")
    plain = tmp_path / "plain.safetensors"
    save_file({"vectors": artefact.vectors}, plain)
    assert "without its description; a plain vector is file:PATH" in said(plain)
    assert "found no" in said(tmp_path / "nothing.safetensors")


def test_graph_draws_what_flows_where(cli, tmp_path):
    said = cli("graph", "mine", "--config-dir", str(staged(tmp_path)))
    assert said.status == status.DONE
    lines = [line for line in said.out.splitlines() if "●" in line]
    assert [line.lstrip("│├╰─●┤╯┼┴ ").split()[0] for line in lines] == [
        "screen",
        "agreed",
        "direction",
        "candidates",
        "best",
        "evaluate",
    ]
    assert "╰─●─╯" in lines[-1], "evaluate takes the direction and the choice, and nothing takes it"
    said = cli("graph", "mine", "--config-dir", str(tmp_path), "format=mermaid")
    arrows = {line.strip() for line in said.out.splitlines() if "-->" in line}
    assert arrows == {
        "screen --> agreed",
        "agreed --> direction",
        "direction --> candidates",
        "candidates --> best",
        "direction --> evaluate",
        "best --> evaluate",
    }
    assert cli("graph", "mne", "--config-dir", str(tmp_path)).status == status.CONFIGURATION


def test_show_and_dry_run_tell_every_stage(cli, tmp_path):
    staged(tmp_path)
    shown = cli("show", "mine", "--config-dir", str(tmp_path)).out
    assert "stage best (select): lowest refusal of ablate less that of baseline" in shown
    assert "shown with the first candidate in the place of what best will choose" in shown
    planned = run(cli, tmp_path, "dry_run=true")
    assert planned.status == status.DONE and "stage evaluate: measure" in planned.out
    assert not (tmp_path / "outputs").exists()


def test_an_axis_of_whole_numbers_and_fractions_is_a_column_of_numbers(cli, tmp_path):
    steps = {
        "kind": "measure",
        "split": "test",
        "conditions": {
            "baseline": {},
            "steer": {
                "grid": {"dir.alpha": [-1, 0.5]},
                "dir": {"site": "resid_pre", "layers": 5, "op": "add", "value": "random"},
            },
        },
        "readouts": ["refusal"],
        "contrasts": {"primary": "refusal"},
    }
    whole = {**steps, "conditions": {**steps["conditions"]}}
    whole["conditions"]["steer"] = {**steps["conditions"]["steer"], "grid": {"dir.alpha": [1, 2]}}
    staged(tmp_path, stages={"fractions": steps, "whole": whole}, findings={})
    said = run(cli, tmp_path)
    assert said.status == status.DONE, said.out + said.err
    trials = pd.read_parquet(tmp_path / "outputs" / "mine" / "v0001" / "trials.parquet")
    assert sorted(trials["grid.dir.alpha"].dropna().unique()) == [-1.0, 0.5, 1.0, 2.0]


def test_a_stage_may_ask_items_where_the_others_have_pairs(cli, tmp_path):
    words = {"kind": "items", "targets": {"bank": "in_context", "split": "test"}}
    step = {
        "kind": "measure",
        "prompts": words,
        "n": 4,
        "conditions": {"baseline": {}},
        "readouts": ["top"],
        "contrasts": {"family": "none", "primary": ""},
    }
    staged(tmp_path, {"stages/words": step})
    said = run(cli, tmp_path)
    assert said.status == status.DONE, said.out + said.err
    trials = pd.read_parquet(tmp_path / "outputs" / "mine" / "v0001" / "trials.parquet")
    words_only = trials[trials["stage"] == "words"]
    assert len(words_only) == 4 and (words_only["donor"] == words_only["target"]).all()


@pytest.mark.parametrize("columns", ["60", "80", "200"])
def test_the_lines_of_a_graph_never_break_however_narrow_the_screen(cli, tmp_path, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    said = cli("graph", "mine", "--config-dir", str(staged(tmp_path, findings={})))
    drawn = said.out.splitlines()[1:]
    last = max(at for at, line in enumerate(drawn) if "●" in line)
    assert all(line[:1] in "●│├╰" or line[2:3] in "●│" for line in drawn[: last + 1]), said.out


def test_items_that_were_kept_of_other_prompts_are_left_out_and_said(cli, tmp_path):
    staged(tmp_path, {"stages/evaluate/items": "choice:agreed"})
    said = run(cli, tmp_path)
    assert said.status == status.DONE, said.out + said.err
    sentence = "stage evaluate is left out: none of its items is one that choice:agreed has kept"
    assert sentence in said.out
    folder = tmp_path / "outputs" / "mine" / "v0001"
    assert read(folder, "manifest.json")["stages"]["evaluate"]["status"] == "left_out"
