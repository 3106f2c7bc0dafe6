"""What must come out on the embedded model of the experiments on two-hop questions, and what its checkpoint
on the way shows; with few items, and every choice made anew."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

import runner
from runner import status
from runner.config.check import check_experiment
from runner.config.compose import compose
from runner.config.sweeps import plan_jobs
from runner.job import RunResult
from tests.ran import Ran, choice, finding, folder_of, runs

NAMES = ("logit_lens", "two_hop", "back_patching", "cross_patching", "patchscope", "knockout")
MODELS = (
    "organism",
    "llama_3_2_3b_instruct",
    pytest.param("gemma_2_2b_it", marks=pytest.mark.slow),
)
LAYERS = range(9)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """An experiment, run once for all tests that look at it."""
    return runs(tmp_path_factory)


def trials(result: RunResult, stage: str) -> pd.DataFrame:
    """The valid trials of a stage."""
    found = pd.read_parquet(folder_of(result) / "trials.parquet")
    found = found[found["stage"] == stage]
    assert len(found)
    return found[found["status"] == "ok"]


def by_layer(found: pd.DataFrame, name: str, readout: str) -> list[float]:
    """The mean of a readout at each layer of a grid over `state.layers`."""
    return [float(found[found["condition"] == f"{name}[state.layers={at}]"][readout].mean()) for at in LAYERS]


def repaired(found: pd.DataFrame, grid: str) -> pd.Series:
    """Of each item that the baseline gets wrong: whether any cell of a grid answers it."""
    baseline = found[found["condition"] == "baseline"].set_index("item")["first"]
    cells = found[found["condition"].str.startswith(f"{grid}[") & found["item"].map(baseline).eq(0)]
    return cells.groupby("item")["first"].max()


# --- all of them


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", NAMES)
def test_it_passes_the_door_for_every_model_and_asks_something(name: str, model: str) -> None:
    composed = compose([f"+experiment={name}", f"model={model}"])
    found = check_experiment(composed)
    assert found.spec.experiment.name == name
    assert str(composed.mapping["experiment"]["question"]).endswith("?")
    assert not found.spec.model.chat_template  # a text to go on with


@pytest.mark.parametrize("name", ("back_patching", "cross_patching"))
def test_by_default_the_checkpoint_is_asked_that_still_fails_and_the_command_line_can_ask_another(
    name: str,
) -> None:
    assert check_experiment(compose([f"+experiment={name}"])).spec.model.name == "organism_midway"
    asked = check_experiment(compose([f"+experiment={name}", "model=organism"]))
    assert asked.spec.model.name == "organism"


# --- two_hop


def test_held_out_questions_are_answered_and_those_that_must_fail_are_not(ran: Ran) -> None:
    found = trials(ran("two_hop", "limit=90"), "known")
    asked = found[found["condition"] == "composition"].groupby("group")["first"]
    assert asked.size().min() >= 20
    right = asked.mean()
    assert right["held_out"] == 1 and right["composed"] == 1
    assert right["unseen"] <= 0.2  # guessing the commonest answer of a relation gives 0.11
    # What fails there is neither hop by itself.
    alone = found.groupby(["condition", "group"])[["first", "says_bridge"]].mean()
    assert (alone.loc["hop_1", "says_bridge"] == 1).all() and (alone.loc["hop_2", "first"] == 1).all()
    assert (alone.loc["entity_shortcut", "first"] == 0).all()


def test_items_that_a_shortcut_answers_are_left_out(ran: Ran) -> None:
    result = ran("two_hop", "limit=90")
    found = trials(result, "known")
    short = found[(found["condition"] == "relation_shortcut") & (found["first"] == 1)]
    assert len(short)
    kept = {target for _, target in choice(result, "kept")["items"]}
    assert kept and not kept & set(short["target"])
    assert set(trials(result, "lens")["target"]) == kept


def test_the_answer_follows_the_bridge_that_is_written(ran: Ran) -> None:
    """While the state of the last token is the bridge alone, another question's with the same bridge leaves
    the answer, one with another bridge brings that bridge's answer; later it is the answer itself."""
    found = trials(ran("two_hop", "limit=90"), "swap")
    assert found[found["condition"] == "baseline"]["first"].eq(1).all()
    stays = by_layer(found, "same_bridge", "first")
    assert min(stays[:4]) >= 0.95 and max(stays[6:]) <= 0.1
    donors = by_layer(found, "same_bridge", "same_donors_answer")
    assert max(donors[:4]) <= 0.05 and min(donors[6:]) >= 0.6
    assert min(by_layer(found, "other_bridge", "donors_answer")) >= 0.95
    assert max(by_layer(found, "other_bridge", "first")) <= 0.1
    # The last token of the first hop is read by the first layer, and by none after it.
    read = by_layer(found, "other_bridge_t1", "first")
    assert read[0] <= 0.3 and min(read[1:]) == 1


def test_the_layer_of_the_bridge_is_the_last_whose_state_is_the_bridge_alone(ran: Ran) -> None:
    result = ran("two_hop", "limit=90")
    assert choice(result, "bridge_layer")["chosen"] == [{"state.layers": 4}]
    told = finding(result, "bridge_layer")
    assert told["value"] == 4 and told["depth"]["share"] == pytest.approx(4 / 9)


# --- what the lens, a patchscope and cut edges say


def test_the_lens_shows_the_bridge_before_the_answer_and_no_other_questions(ran: Ran) -> None:
    found = trials(ran("logit_lens", "limit=60"), "lens")
    answered = found[found["group"] != "unseen"]
    assert answered["sequential"].eq(1).all() and answered["gap"].mean() > 4
    assert answered["bridge_onset"].max() <= 3
    probability = {name: answered[f"{name}.prob"].map(lambda each: each[3]).mean() for name in
                   ("bridge", "null_bridge", "answer", "bridge_t1")}  # fmt: skip
    assert probability["bridge"] > 0.5 and max(probability.values()) == probability["bridge"]
    assert max(probability["null_bridge"], probability["answer"], probability["bridge_t1"]) < 0.1


def test_a_patchscope_says_the_bridge_of_the_last_token_and_of_no_other(ran: Ran) -> None:
    found = trials(ran("patchscope", "limit=40"), "read")
    assert found["says_t2"].eq(1).all() and found["says_t2_early"].eq(1).all()
    assert found["says_t1"].eq(0).all() and found["says_null"].mean() < 0.5
    assert found["lens_earlier"].mean() > 0.3  # the lens needs more layers than the patchscope


def test_the_last_token_reads_the_first_hop_early_and_the_second_relation_later(ran: Ran) -> None:
    found = trials(ran("knockout", "limit=24"), "cut")
    p = found.groupby("condition", sort=False)["p"].mean()  # the windows of a grid in order of their centre

    def near(edge: str) -> list[float]:
        windows = [name for name in p.index if name.startswith(f"near_{edge}[")]
        assert len(windows) == len(LAYERS)
        return [float(p[name]) for name in windows]

    for edge in ("e1", "r1"):
        assert max(near(edge)[:2]) < 0.4 and min(near(edge)[2:]) > 0.95
    assert min(near("r2")[:3]) > 0.9 and max(near("r2")[4:7]) < 0.4 and near("r2")[8] > 0.8
    unread = [name for name in p.index if name.startswith(("e1_r1[", "e1_r2[", "r1_r2[", "first_token["))]
    assert len(unread) == 4 * len(LAYERS) and p[unread].min() > 0.95


# --- back-patching and its nulls, on the checkpoint on the way


@pytest.mark.slow
def test_any_cell_of_back_patching_repairs_more_than_another_questions_state_and_less_than_noise(
    ran: Ran,
) -> None:
    result = ran("back_patching", "limit=100")
    found = trials(result, "repair")
    own, null, noise = (repaired(found, grid) for grid in ("t2", "t2_null", "noise"))
    assert len(own) >= 50 and set(own.index) == set(null.index) == set(noise.index)
    told = finding(result, "any_t2")
    assert told["value"] == pytest.approx(own.mean() - null.mean()) and told["low"] > 0
    assert own.mean() > 2 * null.mean()
    # So the rate over any of the cells is no evidence that a later state is what these items lack.
    assert noise.mean() > own.mean()
    assert finding(result, "any_noise")["low"] > 0


@pytest.mark.slow
def test_at_the_last_token_of_the_first_hop_back_patching_repairs_no_more_than_its_null(ran: Ran) -> None:
    found = trials(ran("back_patching", "limit=100"), "repair")
    own, null = repaired(found, "t1"), repaired(found, "t1_null")
    assert own.mean() < 0.1 and abs(own.mean() - null.mean()) < 0.05


@pytest.mark.slow
def test_the_fixed_cell_is_chosen_on_other_items_and_stands_beside_the_rate_over_any(ran: Ran) -> None:
    result = ran("back_patching", "limit=100")
    (cell,) = choice(result, "cell")["chosen"]
    assert cell["state.from_layer"] > cell["state.layers"]
    chosen_on = set(trials(result, "choosing")["target"])
    tested = trials(result, "fixed")
    assert chosen_on and not chosen_on & set(tested["target"])
    assert finding(result, "fixed")["value"] < finding(result, "any_t2")["value"]
    text = finding(result, "any_t2")["sentence"]
    assert "fixed cell" in text


def test_the_state_of_a_one_hop_question_is_as_good_as_its_own_where_the_bridge_is_found(ran: Ran) -> None:
    """On the trained model, at equal layers up to 3; another one-hop question's is not."""
    found = trials(ran("cross_patching", "model=organism", "limit=16"), "alike")
    stays, null = (by_layer(found, grid, "first") for grid in ("hop_1", "hop_1_null"))
    assert min(stays[:4]) >= 0.9 and max(null[:4]) <= 0.25
    assert stays[8] <= 0.25  # there it is the bridge's name


# --- over models


@pytest.mark.slow
def test_the_scaling_study_runs_the_lens_in_each_model_and_compares_them(tmp_path: Path) -> None:
    words = ["+experiment=two_hop_scaling", "limit=24", "quiet=true", "report=false", "backend.threads=1"]
    result = runner.run([*words, f"output_root={tmp_path}"])
    assert result.status == status.DONE
    found = pd.read_csv(tmp_path / "two_hop_scaling" / "sweeps" / "s0001" / "table.csv")
    answered = found[found["finding"] == "sequential"].set_index("model")["value"]
    assert answered["organism"] > answered["organism_midway"]


def test_every_experiment_of_the_localisation_says_a_layer_of_its_own_choice() -> None:
    jobs = plan_jobs(["+experiment=layer_localisation"], False, None).jobs
    assert len(jobs) == 5
    for job in jobs:
        assert job.composed is not None, job.error
        told = job.composed.mapping["findings"].values()
        axes = {str(one.get("axis")).rpartition(".")[2] for one in told if "choice" in one}
        assert axes & {"layer", "layers", "from_layer"}, job.swept
