"""Traps that show in a run of the organism as a whole; others stand with the module that they concern."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM

import runner
from backends.contract import Device
from backends.rows import Row
from backends.sae import Conventions, Sae, save
from backends.tokenizer import Tokenizer
from backends.torch.backend import TorchBackend
from runner import status
from runner.config.check import check
from runner.config.compose import compose
from runner.config.resolve import resolve
from runner.model_source import model_source
from tests.conftest import SMALL
from tests.models import ALL_LAYERS, GREEDY, make_model, prompt, write

KV_ONLY = "+experiment=n300_kv_only"
HOME = Path(runner.__file__).resolve().parent.parent


def folder(root: Path, name: str) -> Path:
    return root / "outputs" / name / "v0001"


def gates(root: Path, name: str) -> list[dict]:
    return json.loads((folder(root, name) / "summary.json").read_text())["gates"]


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_trap_12_captures_are_by_site_and_not_by_the_list_of_hidden_states(tmp_path, family):
    source = make_model(tmp_path, family)
    backend = TorchBackend(source, Device("cpu", "float32"))
    ids = prompt(random.Random(0), 9)
    last = source.layers - 1
    sites = [(site, layer) for layer in range(source.layers) for site in ("resid_pre", "resid_post")]
    (found,) = backend.capture([Row(ids, GREEDY)], sites)
    model = AutoModelForCausalLM.from_pretrained(source.path, attn_implementation="eager").eval()
    with torch.no_grad():
        told = model(torch.tensor([ids]), output_hidden_states=True)
    states = [state[0].numpy() for state in told.hidden_states]
    scale = max(float(np.abs(state).max()) for state in states)

    def apart(one: np.ndarray, other: np.ndarray) -> float:
        return float(np.abs(one - other).max()) / scale

    # An entry is the input of the block of its number; only below the last layer is the next its output.
    kept = found.activations
    assert all(apart(kept["resid_pre", at], states[at]) < 1e-5 for at in range(source.layers))
    assert all(apart(kept["resid_post", at], states[at + 1]) < 1e-5 for at in range(last))
    # The last entry has the final norm behind it: not what the last block gives.
    assert apart(kept["resid_post", last], states[-1]) > 0.05
    logits = told.logits[0].numpy()
    lens = backend.unembed(kept["resid_post", last])
    assert float(np.abs(lens - logits).max()) < 1e-4 * float(np.abs(logits).max())
    assert float(np.abs(backend.unembed(states[-1]) - logits).max()) > 0.01 * float(np.abs(logits).max())


def test_trap_12_nothing_asks_a_model_for_its_list_of_hidden_states():
    files = sorted((HOME / "backends").rglob("*.py"))
    assert len(files) > 20
    assert [f.name for f in files if "output_hidden_states" in f.read_text(encoding="utf-8")] == []


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_trap_16_receipts_stay_finite_in_low_precision(tmp_path, dtype):
    backend = TorchBackend(make_model(tmp_path), Device("cpu", dtype))
    rng = random.Random(0)
    ids, donor = prompt(rng, 12), prompt(rng, 12)
    # Squares of such values overflow float16: the norms of a receipt are taken in float32.
    big = write("r", "resid_pre", (3,), op="add", alpha=2000.0, positions="last:2")
    plain, found = backend.decode([Row(ids, GREEDY), Row(ids, GREEDY, (big,), {"donor": donor})])
    assert plain.invalid is None
    change = found.receipts["r"].relative_change
    assert change is not None and 100 < change < 1e6
    assert all(0 <= value < float("inf") for value in (plain.min_margin, change))


def test_trap_18_a_write_that_the_measurement_cannot_see_is_gated(cli, tmp_path):
    top = "{site: resid_post, layers: 8, value: donor, positions: 'first:3', during: prefill}"
    late = "{site: v_proj, layers: 27, value: donor, positions: 'last:3', during: decode, hold: cycle}"
    cli(KV_ONLY, *SMALL, "reference_depth=null", f"+conditions.top={{r: {top}}}")
    found = [g for g in gates(tmp_path, "n300_kv_only") if g["gate"] == "reach"]
    assert [g["condition"] for g in found] == ["top"] and "no later position reads it" in found[0]["sentence"]
    cli(KV_ONLY, *SMALL, "sampling.max_new_tokens=1", f"+conditions.late={{v: {late}}}", "output_root=one")
    summary = json.loads((tmp_path / "one" / "n300_kv_only" / "v0001" / "summary.json").read_text())
    found = [g for g in summary["gates"] if g["gate"] == "reach"]
    assert [g["condition"] for g in found] == ["late"] and "before any decode step" in found[0]["sentence"]


PROBED = """# @package _global_
experiment: {name: probed, n: 6}
conditions:
  baseline: {}
  same_tensor: {v: {site: v_proj, layers: 7, value: donor, positions: "last:6"}}
  above: {r: {site: resid_post, layers: 8, value: donor, positions: "last:6"}}
  late: {v: {site: v_proj, layers: 3, value: donor, positions: "last:4", during: decode, hold: cycle}}
  cut: {edge: {site: attention_edge, op: mask, layers: all, positions: "index:-1", keys: "first:3"}}
  future:
    edge: {site: attention_edge, op: mask, layers: all, positions: "first:2", keys: "last:2", expect: inert}
  idle: {s: {site: resid_post, op: scale, alpha: 1.0, layers: 4, expect: noop}}
readout:
  r_v: {kind: geometry, layers: [1, 7], windows: [6]}
  lens: {kind: lens, tokens: [I], layers: all}
  drift: {kind: kl}
readouts: [r_v, lens, drift]
contrasts: {primary: r_v}
"""


def test_trap_18_and_19_probes_that_do_not_see_the_write_or_see_nothing_else(cli, tmp_path):
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "probed.yaml").write_text(PROBED, encoding="utf-8")
    said = cli("+experiment=probed", "--config-dir", str(tmp_path / "mine"), "quiet=true", "report=false")
    assert said.status == status.INERT, said.err
    told = [(g["condition"], g["gate"], g["verdict"], g["sentence"]) for g in gates(tmp_path, "probed")]
    assert [g[:3] for g in told if g[1] in ("reach", "tautology")] == [
        ("same_tensor", "tautology", "fail"),
        ("above", "reach", "fail"),
        ("late", "reach", "fail"),
        ("above", "tautology", "warn"),
        ("future", "reach", "expected"),
        ("same_tensor", "reach", "expected"),
    ]
    assert [g[0] for g in told if g[1] == "inert" and g[2] == "fail"] == ["late"]
    (identical,) = [g for g in told if g[1] == "identical"]
    assert identical[:3:2] == ("late", "fail")
    assert "baseline, late, future and idle gave the same values of r_v, lens and drift" in identical[3]
    found = pd.read_parquet(folder(tmp_path, "probed") / "trials.parquet")
    assert (found["n_new"] == 0).all() and (found["status"] == "ok").all()
    # What is said to be out of reach is measured to be, layer by layer; what is in reach moves.
    values = {name: rows.set_index("item").sort_index() for name, rows in found.groupby("condition")}
    lens = {name: np.stack(rows["lens.prob"].to_list()) for name, rows in values.items()}
    for name, first in {"above": 8, "same_tensor": 7, "idle": 9, "late": 9, "future": 9}.items():
        moved = np.abs(lens[name] - lens["baseline"])
        assert moved[:, :first].max() < 1e-6
        assert first == 9 or (moved[:, first] > 1e-6).any()
    r_v = {name: rows["r_v"].to_numpy() for name, rows in values.items()}
    assert np.allclose(r_v["above"], r_v["baseline"], rtol=1e-5)
    assert (np.abs(r_v["cut"] - r_v["baseline"]) > 1e-4).all()
    assert (values["above"]["drift"] > 1e-4).all()


FEATURES = """# @package _global_
experiment: {name: features, n: 4}
conditions:
  baseline: {}
  safe: {f: {site: sae, sae: dictionary, features: [3], op: set_feature, value: 5.0, round_trip: true}}
  risky: {f: {site: sae, sae: dictionary, features: [4], op: set_feature, value: 5.0, round_trip: true}}
  kept: {f: {site: sae, sae: dictionary, features: [3], op: set_feature, value: 0.1}}
  through: {f: {site: sae, sae: dictionary, features: [3], op: scale, alpha: 1, round_trip: true}}
readout:
  drift: {kind: kl}
readouts: [drift]
contrasts: {primary: drift}
"""


def test_trap_13_and_14_round_trips_and_values_that_no_feature_has_are_gated(cli, tmp_path):
    rng = np.random.default_rng(0)
    width = json.loads((HOME / "organisms" / "weights" / "config.json").read_text())["hidden_size"]
    conventions = Conventions("resid_post", 5, None, "jumprelu", None, False, 1.0, "free", "float32")
    shapes = ((width, 8), (8,), (8, width), (width,))
    weights = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    save(tmp_path / "dictionary", Sae(conventions, *weights, np.arange(8, dtype=np.float32)))
    (tmp_path / "experiment").mkdir()
    path = tmp_path / "experiment" / "features.yaml"
    path.write_text(FEATURES, encoding="utf-8")
    said = cli("+experiment=features", "--config-dir", str(tmp_path), "quiet=true", "report=false")
    assert said.status == status.DONE, said.err
    found = gates(tmp_path, "features")
    (trip,) = [g for g in found if g["gate"] == "round_trip"]
    assert (trip["condition"], trip["verdict"]) == ("safe", "warn")
    assert trip["sentence"].startswith("safe and risky pass resid_post of layer 5 through a sparse")
    assert "Compare with through, which goes" in trip["sentence"]
    (value,) = [g for g in found if g["gate"] == "feature_value"]
    assert (value["condition"], value["verdict"]) == ("kept", "warn")
    assert value["sentence"].startswith("f in kept: Feature 3")
    path.write_text(FEATURES.replace("scale, alpha: 1", "scale, alpha: 0.5"), encoding="utf-8")
    cli(
        "+experiment=features",
        "--config-dir",
        str(tmp_path),
        "quiet=true",
        "report=false",
        "output_root=other",
    )
    other = tmp_path / "other" / "features" / "v0001" / "summary.json"
    (trip,) = [g for g in json.loads(other.read_text())["gates"] if g["gate"] == "round_trip"]
    assert trip["verdict"] == "fail" and "(op: scale, alpha: 1)" in trip["sentence"]


def test_trap_22_every_prompt_has_one_bos_and_the_record_shows_it(cli, tmp_path):
    cli("+experiment=n300_controls", *SMALL)
    found = pd.read_parquet(folder(tmp_path, "n300_controls") / "trials.parquet")
    design = resolve(check(compose([KV_ONLY])))
    tokenizer = Tokenizer.load(model_source(design), chat=False)
    bos, pad = tokenizer.bos_id, tokenizer.inner.pad_token_id
    for _, row in found.iterrows():
        prompts = [list(row["target_ids"]), *(list(ids) for _, ids in row["donor_ids"])]
        assert all(ids[0] == bos and ids.count(bos) == 1 and pad not in ids for ids in prompts)
    joined = found[found["condition"] == "one_prompt"].set_index("item")
    alone = found[found["condition"] == "baseline"].set_index("item")
    for item in joined.index:
        donor = list(dict(joined.loc[item, "donor_ids"])["donor"])
        assert list(joined.loc[item, "target_ids"]) == donor + list(alone.loc[item, "target_ids"])[1:]


def test_trap_36_layers_are_absolute_in_record_and_words(cli, tmp_path):
    cli("+experiment=n300_as_published", *SMALL)
    manifest = json.loads((folder(tmp_path, "n300_as_published") / "manifest.json").read_text())
    late, early = (manifest["conditions"][name] for name in ("transfer_l27", "wrong_layer_l5"))
    assert late["writes"]["v_proj"]["layers"] == [7] and early["writes"]["v_proj"]["layers"] == [1]
    assert any("at layer 7" in words for words in late["words"])
    assert manifest["layer_notes"] == ["layer 5 of 32 is layer 1 of 9", "layer 27 of 32 is layer 7 of 9"]


def test_trap_03_a_condition_is_told_from_its_spec(cli, tmp_path):
    cli("+experiment=n300_as_published", *SMALL)
    text = (folder(tmp_path, "n300_as_published") / "summary.md").read_text()
    assert "the prompt's own KV cache (keys and values) replaces what is there" in text


def test_trap_46_disruption_has_its_controls_and_perplexity_stands_beside_the_score(cli, tmp_path):
    said = cli("+experiment=n300_controls", *SMALL)
    assert said.status == status.DONE
    names = set(json.loads((folder(tmp_path, "n300_controls") / "manifest.json").read_text())["conditions"])
    controls = {
        "kv_plain",
        "kv_pseudo",
        "kv_repetitive",
        "kv_other_donor",
        "ceiling",
        "one_prompt",
        "kv_self",
    }
    assert controls <= names
    summary = json.loads((folder(tmp_path, "n300_controls") / "summary.json").read_text())
    assert all("perplexity" in body["readouts"] for body in summary["conditions"].values())
    assert "ppl" in said.out


def test_trap_02_the_same_word_means_the_same_operation_whatever_the_name(cli, tmp_path):
    other = "{persistent: {site: kv_cache, layers: all, value: donor}, label: something else}"
    said = cli(KV_ONLY, *SMALL, f"+conditions.renamed={other}")
    assert said.status == status.CONFIGURATION and "renamed" in said.err and "kv_only" in said.err
    body = "{persistent: {site: kv_cache, layers: all, value: donor}, same_as: kv_only}"
    said = cli(KV_ONLY, *SMALL, f"+conditions.renamed={body}")
    assert said.status == status.DONE
    found = pd.read_parquet(folder(tmp_path, "n300_kv_only") / "trials.parquet")
    keys = found.pivot(index="item", columns="condition", values="key")
    assert (keys["renamed"] == keys["kv_only"]).all()
    renamed, kv_only = (found[found["condition"] == name] for name in ("renamed", "kv_only"))
    told = renamed["persistent.positions_prefill"].to_numpy()
    assert (told == kv_only["kv.positions_prefill"].to_numpy()).all()


def test_a_grid_runs_in_one_run_with_its_axes_as_columns(cli, tmp_path):
    body = "{v: {site: v_proj, value: donor, positions: 'last:4'}, grid: {v.layers: [1, 7], v.part: [both]}}"
    body = "{v: {site: v_proj, layers: 1, value: donor, positions: 'last:4'}, grid: {v.layers: [1, 7]}}"
    said = cli(KV_ONLY, *SMALL, "reference_depth=null", f"+conditions.v={body}")
    assert said.status == status.DONE, said.err
    found = pd.read_parquet(folder(tmp_path, "n300_kv_only") / "trials.parquet")
    axis = [c for c in found.columns if c.startswith("grid.")]
    assert len(axis) == 1
    cells = found.dropna(subset=axis)
    assert sorted(cells[axis[0]].astype(int).unique()) == [1, 7] and len(cells) == 12


def test_writes_in_every_layer_and_phase_are_counted(tmp_path):
    backend = TorchBackend(make_model(tmp_path), Device("cpu", "float32"))
    rng = random.Random(3)
    both = write("v", "v_proj", ALL_LAYERS, during="both", positions="last:4", hold="mean")
    rows = [Row(prompt(rng, n), GREEDY, (both,), {"donor": prompt(rng, 9)}) for n in range(4, 12)]
    for found in backend.decode(rows):
        receipt = found.receipts["v"]
        assert (receipt.positions_prefill, receipt.asked_prefill) == (4, 4)
        assert receipt.positions_decode == receipt.asked_decode == len(found.output_ids) - 1
