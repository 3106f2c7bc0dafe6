"""What must come out on the embedded model of the experiments on function vectors; and on a model whose
weights are set by hand, that the stages find the one head that there is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from safetensors.numpy import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import runner
from backends.conformance import planted
from runner.config.check import check_experiment
from runner.config.compose import compose
from runner.job import RunResult
from tests.ran import Ran, choice, finding, folder_of, runs

NAMES = ("function_vectors", "function_vectors_layer")
MODELS = (
    "organism",
    "llama_3_2_3b_instruct",
    pytest.param("gemma_2_2b_it", marks=pytest.mark.slow),
)
LAYERS = range(9)
TASKS = 4  # maps of the same words: what can be had without a demonstration is one in so many


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """An experiment, run once for all tests that look at it."""
    return runs(tmp_path_factory)


def means(result: RunResult, stage: str, readout: str) -> Mapping[str, float]:
    """The mean of a readout over the valid trials of each condition of a stage."""
    found = pd.read_parquet(folder_of(result) / "trials.parquet")
    found = found[found["stage"] == stage]
    assert len(found) and (found["status"] == "ok").all()
    told: Mapping[str, float] = found.groupby("condition")[readout].mean().to_dict()
    return told


def along(found: Mapping[str, float], grid: str) -> list[float]:
    return [found[f"{grid}[add.layers={layer}]"] for layer in LAYERS]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", NAMES)
def test_it_passes_the_door_for_every_model_and_asks_something(name: str, model: str) -> None:
    composed = compose([f"+experiment={name}", f"model={model}"])
    assert check_experiment(composed).spec.experiment.name == name
    assert str(composed.mapping["experiment"]["question"]).endswith("?")


# --- heads


def test_the_tasks_are_learned_from_demonstrations_and_unknown_without(ran: Ran) -> None:
    first = means(ran("function_vectors"), "shots", "first")
    assert first["ten_shot"] == 1 and first["baseline"] <= 1 / TASKS + 0.05
    # The maps share no answer, so that dealt-out answers tell the map: no prompt to look for heads in.
    assert first["permuted"] == 1


def test_a_few_heads_give_the_task_back_and_the_others_do_not(ran: Ran) -> None:
    result = ran("function_vectors")
    rows = choice(result, "heads")["table"]
    assert len(rows) == 36
    effects = sorted((abs(row["head - baseline: p"]) for row in rows), reverse=True)
    assert effects[4] > 0.1 and effects[6] < 0.02
    chosen = choice(result, "heads")["chosen"]
    assert len(chosen) == 5
    assert not {tuple(cell.values()) for cell in chosen} & {
        tuple(cell.values()) for cell in choice(result, "other_heads")["chosen"]
    }


def test_the_vector_gives_the_task_to_new_words_more_than_the_layer_average_and_the_floor(ran: Ran) -> None:
    result = ran("function_vectors")
    first = means(result, "at_layer", "first")
    assert first["baseline"] <= 1 / TASKS + 0.05
    assert first["vector"] >= 0.95
    assert first["vector"] - first["average"] >= 0.5
    assert max(first["other_heads"], first["random"]) <= first["baseline"] + 0.1
    for name in ("vector", "over_average", "over_other_heads"):
        assert finding(result, name)["low"] > 0
    assert finding(result, "vector")["by"], "one figure for each task"
    assert all(part["value"] > 0.3 for part in finding(result, "vector")["by"])


def test_early_on_the_vector_does_what_the_layer_average_cannot_and_late_both_do(ran: Ran) -> None:
    first = means(ran("function_vectors"), "zero_shot", "first")
    assert min(along(first, "vector")) >= 0.95
    average = along(first, "average")
    assert max(average[:4]) <= 0.4 and min(average[6:]) >= 0.95
    assert max(along(first, "other_heads")) <= 0.4 and max(along(first, "random")) <= 0.4


def test_heads_and_layer_are_chosen_on_words_that_are_in_no_test(ran: Ran) -> None:
    found = pd.read_parquet(folder_of(ran("function_vectors")) / "trials.parquet")
    targets = found.groupby("stage")["target"].agg(set)
    for stage in ("zero_shot", "at_layer", "permuted", "natural"):
        assert not targets[stage] & (targets["effects"] | targets["layers"])
    assert (choice(ran("function_vectors"), "layer")["chosen"]) == [{"add.layers": 3}]


# --- layers


def test_the_difference_of_layer_means_carries_the_task_late_and_not_early(ran: Ran) -> None:
    result = ran("function_vectors_layer")
    first = means(result, "zero_shot", "first")
    for form in ("v1", "v2"):
        assert max(along(first, form)[:4]) <= 0.4 and min(along(first, form)[6:]) >= 0.95
    # Without the groups apart it is no task, but ten demonstrations.
    assert max(along(first, "all_tasks")) <= 0.4
    assert means(result, "best", "first")["best"] >= 0.95


def test_the_largest_norm_is_at_the_last_layer(ran: Ran) -> None:
    result = ran("function_vectors_layer")
    assert choice(result, "largest")["chosen"] == [{"layer": 8}]
    norms = [row["norm"] for row in choice(result, "largest")["table"]]
    assert norms[-1] == max(norms) and norms[0] == min(norms)


# --- a model whose truth is set by hand


def planted_folder(folder: Path) -> Path:
    """The planted model with a tokenizer of its words: p1 to p12 plain, m1 to m12 the same with the
    direction, `reader` whose output reads the head."""
    folder.mkdir()
    planted.plant(folder)
    config = (
        folder / "config.json"
    )  # its 128 positions are fewer than the tokens that are generated by default
    config.write_text(
        config.read_text().replace('"max_position_embeddings": 128', '"max_position_embeddings": 256')
    )
    words = ["<end>", *(f"p{i}" for i in range(1, 13)), *(f"m{i}" for i in range(1, 13)), "reader"]
    assert len(words) == planted.VOCABULARY
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<end>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>").save_pretrained(folder)
    return folder


def planted_experiment(folder: Path) -> Path:
    """A user's folder with an experiment that looks for the head, and its bank."""
    drawn = np.random.default_rng(4)
    lines = []
    for split in ("extract", "validate"):
        for number in range(12):
            text = " ".join(f"p{i}" for i in drawn.integers(1, 13, 6))
            lines.append(
                {"id": f"{split}_{number}", "group": "marked", "text": text, "split": split,
                 "facts": {"marked": text.replace("p", "m")}}
            )  # fmt: skip
    bank = folder / "prompts" / "banks" / "organism" / "marks.jsonl"
    bank.parent.mkdir(parents=True)
    bank.write_text("".join(json.dumps(line) + "\n" for line in lines))
    every_head = {"z.layers": "all", "z.heads": "all"}
    head = {"site": "head_z", "value": "artefact:means", "positions": "index:-1"}
    prompts = {
        "name": "marks",
        "kind": "items",
        "language": "${model.language}",
        "targets": {"bank": "marks", "groups": "all", "split": "validate"},
        "roles": {"marked": {"of": "target", "template": "marked"}},
        "templates": {"marked": {"query": "{marked}"}},
        "seed": 1,
    }
    (folder / "prompts" / "marks.yaml").write_text(yaml.safe_dump(prompts))
    stages = {
        "means": {"kind": "extract", "split": "extract", "of": "donor:marked", "site": "head_z",
                  "positions": "index:-1"},
        "direction": {"kind": "extract", "split": "extract", "of": "donor:marked", "minus": "target",
                      "site": "resid_pre", "layers": 0, "positions": "all"},
        "effects": {
            "kind": "measure",
            "conditions": {"baseline": {}, "head": {"grid": every_head, "z": head}},
            "readouts": ["reader"],
            "contrasts": {"family": "none", "primary": "reader"},
        },
        "head": {"kind": "select", "from": "effects", "over": ["z.layers", "z.heads"],
                 "highest": {"of": "head", "minus": "baseline", "readout": "reader", "absolute": True}},
        "vector": {"kind": "extract", "from": "means", "heads": "choice:head", "through": "o_proj"},
    }  # fmt: skip
    experiment = {
        "defaults": ["_self_", {"override /prompts": "marks"}],
        "experiment": {"name": "find_head", "question": "Which head is it?", "n": "all"},
        "readout": {"reader": {"kind": "log_odds", "tokens": "reader"}},
        "stages": stages,
    }
    path = folder / "experiment" / "find_head.yaml"
    path.parent.mkdir()
    path.write_text("# @package _global_\n" + yaml.safe_dump(experiment, sort_keys=False))
    return folder


def test_the_stages_find_the_planted_head_what_it_writes_and_the_direction_that_it_reads(
    tmp_path: Path,
) -> None:
    model = planted_folder(tmp_path / "model")
    result = runner.run(
        ["+experiment=find_head", f"model.path={model}", "model.name=planted", "quiet=true", "report=false",
         "backend.threads=1", f"output_root={tmp_path / 'out'}"],
        planted_experiment(tmp_path / "conf"),
    )  # fmt: skip
    found = choice(result, "head")
    assert found["chosen"] == [{"z.layers": planted.LAYER, "z.heads": f"q{planted.HEAD}"}]
    effects = {(row["z.layers"], row["z.heads"]): row["head - baseline: reader"] for row in found["table"]}
    there = effects.pop((planted.LAYER, f"q{planted.HEAD}"))
    assert len(effects) == planted.LAYERS * planted.HEADS - 1
    assert abs(there) > 0.1 and max(map(abs, effects.values())) == 0
    truth = planted.truth()
    for name, direction in (("vector", truth.written), ("direction", truth.direction)):
        vector = load_file(folder_of(result) / "artefacts" / f"{name}.safetensors")["vectors"].ravel()
        assert len(vector) == planted.WIDTH
        assert abs(vector @ direction) / np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
