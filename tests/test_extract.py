"""Artefacts by group, of heads, and of heads through their output projection."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from runner import status
from runner.config.stages.artefact_files import read_artefact
from tests.extracting import organism

HEADS = [f"q{head}" for head in range(4)]
BODY = {
    "defaults": ["_self_", {"override /prompts": "in_context"}],
    "experiment": {"name": "heads", "n": 12},
    "stages": {
        "head_means": {
            "kind": "extract",
            "split": "extract",
            "of": "target",
            "site": "head_z",
            "by": "group",
        },
        "outputs": {
            "kind": "extract",
            "split": "extract",
            "of": "target",
            "site": "attn_out",
            "layers": 5,
            "by": "group",
        },
        "mediation": {
            "kind": "measure",
            "split": "validate",
            "conditions": {
                "baseline": {"prompt": "donor:zero_shot"},
                "patched": {
                    "prompt": "donor:zero_shot",
                    "grid": {"head.layers": [5, 6], "head.heads": "all"},
                    "head": {
                        "site": "head_z",
                        "positions": "index:-1",
                        "layers": 5,
                        "value": "artefact:head_means",
                    },
                },
            },
            "readouts": ["p"],
            "contrasts": {"primary": "p"},
        },
        "layer_5": {
            "kind": "select",
            "from": "mediation",
            "over": ["head.layers", "head.heads"],
            "where": [{"axis": "head.layers", "equals": 5}],
            "highest": {"of": "patched", "minus": "baseline", "readout": "p"},
            "top": 4,
        },
        "at_random": {
            "kind": "select",
            "from": "mediation",
            "over": ["head.layers", "head.heads"],
            "draw": 3,
            "but": "layer_5",
        },
        "function": {
            "kind": "extract",
            "from": "artefact:head_means",
            "heads": "choice:layer_5",
            "through": "o_proj",
        },
        "apply": {
            "kind": "measure",
            "split": "test",
            "conditions": {
                "baseline": {"prompt": "donor:zero_shot"},
                "steered": {
                    "prompt": "donor:zero_shot",
                    "v": {
                        "site": "resid_post",
                        "layers": 5,
                        "positions": "index:-1",
                        "op": "add",
                        "value": "artefact:function",
                    },
                },
            },
            "readouts": ["p"],
            "contrasts": {"primary": "p"},
        },
    },
    "readout": {"p": {"kind": "next_token", "tokens": "fact:answer"}},
}


@pytest.fixture
def done(cli, tmp_path) -> Path:
    (tmp_path / "experiment").mkdir()
    text = yaml.safe_dump(BODY, sort_keys=False)
    (tmp_path / "experiment" / "heads.yaml").write_text(f"# @package _global_\n{text}", encoding="utf-8")
    said = cli("+experiment=heads", "--config-dir", str(tmp_path), "quiet=true", "report=false")
    assert said.status == status.DONE, said.out + said.err
    return tmp_path / "outputs" / "heads" / "v0001"


def test_heads_through_their_projection_are_what_attention_writes(done):
    backend, _ = organism()
    found = {path.stem: read_artefact(path) for path in (done / "artefacts").glob("*.safetensors")}
    means, function, outputs = found["head_means"], found["function"], found["outputs"]
    assert means.dims == ("group", "layer", "width") and means.width == 64
    assert function.dims == ("group", "width") and function.site == "attn_out"
    assert function.groups == means.groups == outputs.groups and len(means.groups) > 1
    weight = backend.weight("o_proj", 5)
    by_hand = means.vectors[:, 5].astype(np.float64) @ weight
    np.testing.assert_allclose(function.vectors, by_hand, atol=1e-5)
    # All four heads of layer 5 together are its attention block's whole output.
    assert outputs.dims == ("group", "layer", "width") and outputs.layers == (5,)
    np.testing.assert_allclose(function.vectors, outputs.vectors[:, 0], atol=1e-4)


def test_every_item_gets_the_vector_of_its_own_group(done):
    trials = pd.read_parquet(done / "trials.parquet")
    steered = trials[trials["condition"] == "steered"]
    assert (steered["status"] == "ok").all() and steered["group"].nunique() > 1
    assert (steered["v.relative_change"] > 0).all()
    baseline = trials[(trials["stage"] == "apply") & (trials["condition"] == "baseline")]
    merged = steered.merge(baseline, on="item", suffixes=("", "_base"))
    assert merged["p"].mean() > merged["p_base"].mean() + 0.2


def test_heads_are_chosen_and_others_drawn_as_a_control(done):
    best = json.loads((done / "choices" / "layer_5.json").read_text())
    assert sorted(cell["head.heads"] for cell in best["chosen"]) == HEADS
    assert {cell["head.layers"] for cell in best["chosen"]} == {5}
    drawn = json.loads((done / "choices" / "at_random.json").read_text())
    assert len(drawn["chosen"]) == 3
    chosen = [tuple(cell.values()) for cell in best["chosen"]]
    assert not set(chosen) & {tuple(cell.values()) for cell in drawn["chosen"]}


def test_a_choice_that_names_no_heads_is_refused(cli, tmp_path):
    body = json.loads(json.dumps(BODY))
    body["stages"]["layer_5"]["over"] = ["head.layers"]
    body["stages"]["layer_5"]["top"] = 1
    del body["stages"]["at_random"]
    (tmp_path / "experiment").mkdir()
    text = yaml.safe_dump(body, sort_keys=False)
    (tmp_path / "experiment" / "heads.yaml").write_text(f"# @package _global_\n{text}", encoding="utf-8")
    said = cli("+experiment=heads", "--config-dir", str(tmp_path), "quiet=true", "report=false")
    assert said.status == status.CONFIGURATION
    assert "expected a choice over layers and heads" in said.err
