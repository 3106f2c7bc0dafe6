"""Every experiment that comes with the program composes, says what it would run, and runs to its end on the
embedded model; and each does what its head comment says."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import combinations, pairwise
from pathlib import Path

import pandas as pd
import pytest
import yaml

import runner
from backends.writes import Write
from runner import status
from runner.config.folders import conf_dir
from runner.config.resolve import Design
from runner.job import RunResult
from tests.configuring import design

# Those of one stage: experiments with several, or over several, have tests of their own.
EXPERIMENTS = sorted(
    path.stem
    for path in (conf_dir() / "experiment").glob("*.yaml")
    if not {"stages", "sweep"} & set(yaml.safe_load(path.read_text(encoding="utf-8")))
)
MODELS = ("organism", "mistral_7b_instruct_v0_2")
FEW = ("limit=6", "sampling.max_new_tokens=20", "quiet=true", "report=false", "backend.threads=1")
LAYERS = (5, 18, 25, 27)
Ran = Callable[[str], RunResult]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """An experiment run with few items and tokens, once for all tests that look at it."""
    done: dict[str, RunResult] = {}

    def run(name: str) -> RunResult:
        if name not in done:
            root = tmp_path_factory.mktemp(name)
            done[name] = runner.run([f"+experiment={name}", *FEW, f"output_root={root}"])
        return done[name]

    return run


def trials(result: RunResult) -> pd.DataFrame:
    assert result.folder is not None
    return pd.read_parquet(result.folder / "trials.parquet")


def texts(found: pd.DataFrame) -> pd.DataFrame:
    return found.pivot(index="item", columns="condition", values="text")


def cells(name: str, axis: str, values: tuple[object, ...]) -> list[str]:
    return [f"{name}[{axis}={value}]" for value in values]


# --- all of them


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_it_composes_for_every_model_and_says_what_it_asks(name: str) -> None:
    small, large = (design(f"+experiment={name}", f"model={model}") for model in MODELS)
    assert small.name == large.name == name and small.question.endswith("?")
    assert small.names == large.names and small.conditions[0].name == "baseline"
    for condition in (*small.conditions, *large.conditions):
        assert condition.words and condition.label
        assert condition.name in ("baseline", "random") or condition.label != condition.name
    head = (conf_dir() / "experiment" / f"{name}.yaml").read_text().partition("defaults:")[0]
    assert f"python -m runner +experiment={name}\n" in head
    assert "?" in head.splitlines()[1]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_it_runs_to_its_end_with_its_gates_as_designed(ran: Ran, name: str) -> None:
    result = ran(name)
    assert result.status == status.DONE
    found, told = trials(result), result.summary
    planned = design(f"+experiment={name}", *FEW)
    assert tuple(told["conditions"]) == planned.names
    assert len(found) == 6 * len(planned.conditions) * planned.repeats
    # No window is longer than a prompt that it is asked of, and no donor is missing.
    assert (found["status"] == "ok").all(), found["reason"].dropna().unique()
    judged = {(gate["gate"], gate["verdict"]) for gate in told["gates"]}
    # Twenty tokens of six items are alike in many conditions, which the gate `identical` rightly says.
    assert {gate for gate, verdict in judged if verdict == "fail"} <= {"identical"}
    inert = {
        f"{write} in {condition.name}"
        for condition in planned.conditions
        for write, expected in condition.expects.items()
        if expected == "inert"
    }
    sentences = [g["sentence"] for g in told["gates"] if (g["gate"], g["verdict"]) == ("inert", "expected")]
    assert {sentence.partition(" never fired")[0] for sentence in sentences} == inert


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_its_dry_run_tells_every_condition_and_writes_nothing(cli, tmp_path: Path, name: str) -> None:
    said = cli(f"+experiment={name}", *FEW, "limit=2", "dry_run=true")
    assert said.status == status.DONE, said.err
    names = {line.partition("  ")[0] for line in said.out.splitlines()}
    assert set(design(f"+experiment={name}").names) <= names
    assert not (tmp_path / "outputs").exists()


# --- each of them


def write_of(found: Design, condition: str, name: str) -> Write:
    return next(write for write in found.condition(condition).writes if write.name == name)


def test_layer_specificity_has_four_layers_with_and_without_kv_in_one_run() -> None:
    found = design("+experiment=layer_specificity")
    expected = ["baseline", "kv_only"]
    expected += cells("transfer", "v_proj.layers", LAYERS) + cells("transfer_kv", "v_proj.layers", LAYERS)
    assert list(found.names) == expected and found.n == 300
    for name in ("transfer", "transfer_kv"):
        layers = [write_of(found, cell, "v_proj").layers for cell in cells(name, "v_proj.layers", LAYERS)]
        assert layers == [(1,), (5,), (6,), (7,)]
    assert {len(found.condition(c).writes) for c in cells("transfer", "v_proj.layers", LAYERS)} == {1}


def test_layer_specificity_swept_from_the_command_line(cli, tmp_path: Path) -> None:
    line = "conditions.transfer.v_proj.layers=5,18,25,27"
    said = cli("-m", "+experiment=layer_specificity", line, *FEW, "limit=3", "sampling.max_new_tokens=8")
    assert said.status == status.DONE, said.err
    folders = sorted((tmp_path / "outputs" / "layer_specificity").glob("v*"))
    layers, kept = [], set(cells("transfer_kv", "v_proj.layers", LAYERS))
    for folder in folders:
        manifest = json.loads((folder / "manifest.json").read_text())
        assert set(manifest["conditions"]) == {"baseline", "kv_only", "transfer", *kept}
        layers.append(manifest["conditions"]["transfer"]["writes"]["v_proj"]["layers"])
    assert layers == [[1], [5], [6], [7]]
    assert all(cell in said.out.partition("mean score by")[2] for cell in kept)
    # What the jobs share is computed once.
    last = pd.read_parquet(folders[-1] / "trials.parquet")
    assert last.loc[last["condition"] != "transfer", "origin"].notna().all()
    assert last.loc[last["condition"] == "transfer", "origin"].isna().all()


def test_the_pilot_as_published_is_one_condition_and_its_corrected_writes_act(ran: Ran) -> None:
    result = ran("pilot_strategies")
    found = trials(result)
    wide = texts(found)
    names = [name for name in wide.columns if f"published_{name}" in wide.columns and name != "baseline"]
    assert len(names) == 8
    for name in names:
        assert (wide[f"published_{name}"] == wide["published_kv"]).all()
        rows = found[found["condition"] == name]
        for write in (w.name for w in design("+experiment=pilot_strategies").condition(name).writes):
            assert rows[f"{write}.relative_change"].mean() > 1e-3, (name, write)
        assert (rows["v_proj.positions_decode"] == rows["v_proj.asked_decode"]).all()
    # What is written below a residual stream that is replaced whole does not reach the output.
    below = [name for name in names if "resid25" in name]
    assert len(below) == 4 and (wide[below].nunique(axis=1) == 1).all()
    assert not (wide["resid25_v27"] == wide["v27"]).all()
    assert result.folder is not None
    text = (result.folder / "summary.md").read_text()
    assert "| `published_v27` | score of one text | 11 | it has none | - |" in text


def test_the_aggressive_strategies_as_published_acted_in_the_prompt_alone(ran: Ran) -> None:
    found = trials(ran("aggressive_strategies"))
    length = found["target_ids"].map(len)
    published = found["condition"].isin(["published_persistent", "published_multi_layer"])
    assert (found.loc[published, "v_proj.positions_prefill"] == 16).all()
    assert (found.loc[published, "v_proj_decode.positions_decode"] == 0).all()
    assert (found.loc[published, "v_proj_decode.asked_decode"] > 0).any()
    left_out = found["condition"] == "published_multi_layer"
    assert (found.loc[left_out, "no_mlp.positions_prefill"] == length[left_out]).all()
    corrected = found[found["condition"].isin(["persistent", "multi_layer"])]
    assert (corrected["v_proj.positions_decode"] == corrected["v_proj.asked_decode"]).all()
    quarter = found["condition"] == "first_quarter"
    assert (found.loc[quarter, "kv.positions_prefill"] / length[quarter]).between(0.2, 0.3).all()


def test_true_kv_has_every_published_row_as_published_and_corrected(ran: Ran) -> None:
    result = ran("true_kv")
    found = trials(result)
    rows = {row["condition"] for row in result.summary["published"]["rows"]}
    assert len(rows) == 9 and rows <= set(result.summary["conditions"])
    assert {name.removeprefix("published_") for name in rows} <= set(result.summary["conditions"])
    windows = found[found["grid.kv.positions"].notna()]
    asked = windows["grid.kv.positions"].str.partition(":")[2].astype(int)
    assert (windows["kv.positions_prefill"] == asked).all() and set(asked) == {16, 32}


def test_minimal_kv_covers_every_layer_of_the_organism_once() -> None:
    found = design("+experiment=minimal_kv")
    single = [c.writes[0].layers for c in found.conditions if c.name.startswith("single[")]
    assert single == [(layer,) for layer in range(9)]
    bottom = [set(c.writes[0].layers) for c in found.conditions if c.name.startswith("from_bottom[")]
    top = [set(c.writes[0].layers) for c in found.conditions if c.name.startswith("from_top[")]
    for grown in (bottom, top):
        assert all(small < large for small, large in pairwise(grown))
    assert all(0 in layers for layers in bottom) and all(8 in layers for layers in top)


def test_a_window_of_slots_is_whole_in_every_item_of_minimal_kv(ran: Ran) -> None:
    found = trials(ran("minimal_kv"))
    windows = found[found["grid.kv.positions"].notna()]
    asked = windows["grid.kv.positions"].str.partition(":")[2].astype(int)
    assert (windows["kv.positions_prefill"] == asked).all() and len(windows) == 6 * 8
    wide = found.pivot(index="item", columns="condition", values="kv.positions_prefill")
    assert (wide["without_sink"] == wide["kv_only"] - 1).all()


def test_the_behaviour_grows_with_the_dose(tmp_path: Path) -> None:
    words = ["+experiment=dose_response", *FEW, "limit=40", "sampling.max_new_tokens=50"]
    result = runner.run([*words, f"output_root={tmp_path}"])
    (trend,) = result.summary["trends"]
    assert trend["doses"] == [1, 2, 3, 4, 5] and trend["n"] == 40 and trend["ci_low"] > 0
    assert trend["means"][4] > trend["means"][0] + 0.7
    # A dose has donors of its own, by which the slope is clustered, rather than by the item's donor.
    found = trials(result)
    used = {
        role: {
            tuple(dict(ids)[role])
            for ids in found.loc[found["grid.kv.value"] == f"donor:{role}", "donor_ids"]
        }
        for role in ("l1", "l2", "l3", "l4", "l5")
    }
    assert all(not a & b for a, b in combinations(used.values(), 2))
    assert trend["clusters"]["donor"] == sum(map(len, used.values()))


def test_ten_seeds_are_ten_draws_of_the_same_items(ran: Ran) -> None:
    result = ran("replicate_10_seeds")
    found = trials(result)
    assert (found.groupby(["condition", "item"])["repeat"].nunique() == 10).all()
    assert (found[found["condition"] == "baseline"].groupby("item")["text"].nunique() > 3).mean() > 0.5
    (table,) = [
        each
        for each in result.summary["repeats"]
        if (each["condition"], each["against"]) == ("kv_only", "baseline")
    ]
    assert [row["repeat"] for row in table["rows"]] == list(range(10)) and table["of"] == 10
    assert sum(row["difference"] > 0 for row in table["rows"]) >= 7


def test_every_hold_is_an_intervention_of_its_own(ran: Ran) -> None:
    found = trials(ran("hold_semantics"))
    change = found.groupby("condition")["v_proj.relative_change"].mean()
    holds = cells("v", "v_proj.hold", ("last", "cycle", "mean", "lockstep"))
    assert all(abs(change[a] - change[b]) > 1e-4 for a, b in combinations(holds, 2))
    wide = texts(found)
    assert (wide["recompute_baseline"] == wide["baseline"]).mean() > 0.8
    assert (wide["guarded"] == wide["baseline"]).all()
    assert abs(change["recompute_v"] - change["v[v_proj.hold=cycle]"]) > 1e-6
    # A sliding write changes the whole window at each step, the others the newest token alone.
    by_name = found.groupby("condition")[["v_proj.positions_decode", "n_new"]].sum()
    assert by_name.loc["sliding", "v_proj.positions_decode"] > 5 * by_name.loc["sliding", "n_new"]
    assert by_name.loc["recompute_v", "v_proj.positions_decode"] < by_name.loc["recompute_v", "n_new"]
    before = found[found["condition"] == "prefill_only"]
    assert (before["v_proj.positions_prefill"] > 0).all() and (before["v_proj.positions_decode"] == 0).all()


# --- readouts of tensors


def test_geometry_compares_groups_of_prompts_item_by_item_without_generating(ran: Ran) -> None:
    found = trials(ran("geometry"))
    assert (found["n_new"] == 0).all() and (found["text"] == "").all()
    lengths = found.pivot(index="item", columns="condition", values="n_prompt")
    assert (lengths["length_matched"] - lengths["recursive"]).abs().max() <= 2
    assert (lengths["baseline"] > lengths["recursive"]).all()
    for column in ("r_v", "r_v.early", "r_v.late", "r_v.w8", "r_v.w12", "r_v.w24"):
        assert found[column].notna().all(), column
    adjusted = [each["adjusted"] for each in ran("geometry").summary["contrasts"]]
    assert len(adjusted) == 7 and all(each["covariates"] == ["n_prompt"] for each in adjusted)


def test_teacher_forcing_gives_all_conditions_of_the_controls_the_same_two_texts(ran: Ran) -> None:
    controls, fixed = design("+experiment=n300_controls"), design("+experiment=n300_teacher_forced")
    assert fixed.names == controls.names and not fixed.decodes
    found = trials(ran("n300_teacher_forced"))
    assert (found["n_new"] == 0).all()
    for column in ("logp_self", "logp_plain"):
        assert found[f"{column}.tokens"].map(len).nunique() == 1
        assert found[column].to_numpy() == pytest.approx(found[f"{column}.tokens"].map(sum).to_numpy())
    own = found.pivot(index="item", columns="condition", values="logp_self")
    assert own["kv_self"].to_numpy() == pytest.approx(own["baseline"].to_numpy(), abs=1e-3)
    steps = found[found["condition"] == "v_only_l5"]["v_proj.positions_decode"]
    assert steps.nunique() == 1 and steps.iloc[0] > 0  # decode writes act on the fixed tokens


def test_the_default_columns_are_those_of_before() -> None:
    assert design("+experiment=n300_kv_only").readouts == ("behaviour", "perplexity")
    assert design("+experiment=n300_controls").readouts == ("behaviour", "perplexity")
