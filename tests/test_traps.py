"""Traps that show in a run of the organism as a whole; others stand with the module that they concern."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pandas as pd
import pytest

from backends.contract import Device
from backends.rows import Row
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


def folder(root: Path, name: str) -> Path:
    return root / "outputs" / name / "v0001"


def gates(root: Path, name: str) -> list[dict]:
    return json.loads((folder(root, name) / "summary.json").read_text())["gates"]


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
