"""What would make a result of an experiment with stages wrong without a word: prompts that leak from what was
fitted into what is tested, and results that are taken for others."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from runner import status
from runner.config.check import check_experiment
from runner.config.compose import compose
from runner.config.errors import ConfigurationError
from runner.stages.artefact_table import Sample, summary_table
from runner.stages.extract import _Read
from tests.staging import PROJECTED, STAGES, staged

MINE = "+experiment=mine"
PROBED = {
    "kind": "measure",
    "split": "extract",
    "conditions": {"baseline": {}},
    "readouts": ["refusal"],
    "contrasts": {"family": "none", "primary": "refusal"},
}
ADDED = {"site": "resid_post", "layers": 3, "op": "add", "positions": "index:-1"}
DIRECTION = {"kind": "extract", "split": "extract", "site": "resid_pre", "of": "donor", "minus": "target"}


def only(folder: Path, stages: dict, **root) -> Path:
    """A user's folder with an experiment of these stages alone."""
    gone = {f"stages/{name}": None for name in STAGES}
    return staged(
        folder, gone | {f"stages/{name}": body for name, body in stages.items()}, findings={}, **root
    )


def run(cli, folder: Path, *words: str):
    return cli(MINE, "--config-dir", str(folder), "quiet=true", "report=false", *words)


def told(folder: Path) -> str:
    with pytest.raises(ConfigurationError) as caught:
        check_experiment(compose([MINE], folder))
    return str(caught.value)


def table(folder: Path, version: int = 1) -> pd.DataFrame:
    return pd.read_parquet(folder / "outputs" / "mine" / f"v{version:04d}" / "trials.parquet")


def test_a_result_without_a_text_is_no_result_for_a_readout_of_texts(cli, tmp_path):
    scored = {**PROBED, "conditions": {"baseline": {"prompt": "donor"}}}
    texts = {**scored, "readouts": ["refusal", "refuses"]}
    only(tmp_path, {"probed": scored, "texts": texts})
    said = run(cli, tmp_path)
    assert said.status == status.DONE, said.out + said.err
    trials = table(tmp_path)
    later = trials[trials["stage"] == "texts"]
    assert (later["n_new"] > 0).all() and later["refuses"].mean() > 0.5
    only(tmp_path, {"texts": texts, "probed": scored})
    run(cli, tmp_path)
    again = table(tmp_path, 2)
    assert again["origin"].notna().all(), "each is known from the first run"
    assert (again.groupby("stage")["n_new"].max() > 0).to_dict() == {"texts": True, "probed": False}


def test_an_experiment_that_only_extracts_ends_well(cli, tmp_path):
    said = run(cli, only(tmp_path, {"direction": DIRECTION}))
    assert said.status == status.DONE, said.out + said.err
    assert table(tmp_path).empty and "key" in table(tmp_path)


def test_an_artefact_made_of_another_needs_it(tmp_path):
    heads = {
        "mediation": {
            **PROBED,
            "split": "validate",
            "conditions": {
                "head": {"grid": {"z.layers": [3], "z.heads": "all"}, "z": {"site": "head_z", "op": "zero"}}
            },
        },
        "heads": {
            "kind": "select",
            "from": "mediation",
            "over": ["z.layers", "z.heads"],
            "highest": {"of": "head", "readout": "refusal"},
        },
    }
    means = {"kind": "extract", "split": "extract", "site": "head_z"}
    vector = {"kind": "extract", "from": "means", "heads": "choice:heads", "through": "o_proj"}
    only(tmp_path, {"means": means, **heads, "vector": vector})
    assert check_experiment(compose([MINE], tmp_path)).stage("vector").needs == ("heads", "means")
    tested = {**PROBED, "conditions": {"with": {"add": ADDED | {"value": "artefact:vector"}}}}
    only(tmp_path, {"means": means, **heads, "vector": vector, "tested": tested})
    assert "extracted from (stage 'means')" in told(tmp_path)
    only(tmp_path, {"means": means, **heads, "vector": {**vector, "from": "mean"}})
    assert "stages.vector.from: expected an earlier stage" in told(tmp_path)
    only(tmp_path, {"means": means, **heads, "vector": {**vector, "from": "mediation"}})
    assert "expected a stage that extracts" in told(tmp_path)


def test_a_flat_manifest_has_no_keys_of_an_outline(cli, tmp_path):
    flat = {"conditions": {"baseline": {}}, "readouts": ["refusal"], "contrasts": PROBED["contrasts"]}
    run(cli, only(tmp_path, {}, **flat))
    manifest = json.loads((tmp_path / "outputs" / "mine" / "v0001" / "manifest.json").read_text())
    assert not {"kind", "needs", "in_sample", "question", "stages"} & set(manifest)


# What a stage reads, by whatever word.


def test_trap_30_a_prompt_that_a_write_reads_counts(tmp_path):
    patched = {
        **PROBED,
        "conditions": {
            "baseline": {},
            "patched": {"p": {"site": "resid_pre", "layers": 4, "value": "donor", "positions": "index:-1"}},
            "ablated": {"dir": PROJECTED},
        },
    }
    prompts = {"donors": {"split": "extract"}, "targets": {"split": "test"}}
    only(
        tmp_path,
        {"direction": {**DIRECTION, "minus": None}, "tested": {**patched, "split": None, "prompts": prompts}},
    )
    assert "that what it uses was extracted from (stage 'direction')" in told(tmp_path)
    prompts = {"donors": {"split": "test"}, "targets": {"split": "extract"}}
    only(
        tmp_path,
        {"direction": {**DIRECTION, "minus": None}, "tested": {**patched, "split": None, "prompts": prompts}},
    )
    check_experiment(compose([MINE], tmp_path))  # its targets were not read


def test_trap_30_demonstrations_are_read_too(tmp_path):
    def shown(split: str) -> Path:
        template = {
            "shots": 2,
            "shot": "input {text} output {answer} . ",
            "query": "input {text} output",
            "split": split,
        }
        means = {
            "kind": "extract",
            "prompts": {"targets": {"split": "extract", "template": "few"}},
            "site": "resid_post",
            "layers": 4,
        }
        tested = {
            **PROBED,
            "split": "test",
            "conditions": {"with": {"add": ADDED | {"layers": 4, "value": "artefact:means"}}},
            "readouts": ["p"],
            "contrasts": {"family": "none", "primary": "p"},
        }
        return only(
            tmp_path,
            {"means": means, "tested": tested},
            defaults=["_self_", {"override /prompts": "in_context"}],
            prompts={"templates": {"few": template}},
            readout={"p": {"kind": "next_token", "tokens": "fact:answer"}},
        )

    assert "extracted from (stage 'means')" in told(shown("all"))
    check_experiment(compose([MINE], shown("extract")))


def test_trap_30_an_artefact_of_another_run_knows_its_prompts(cli, tmp_path):
    run(cli, only(tmp_path, {"direction": DIRECTION}))
    path = tmp_path / "outputs" / "mine" / "v0001" / "artefacts" / "direction.safetensors"
    ablated = {"baseline": {}, "ablated": {"dir": {**PROJECTED, "value": f"artefact:{path}"}}}
    only(tmp_path, {"tested": {**PROBED, "conditions": ablated}})
    assert f"extracted from ({path})" in told(tmp_path)
    only(tmp_path, {"tested": {**PROBED, "conditions": ablated, "in_sample": True}})
    assert str(path) in (check_experiment(compose([MINE], tmp_path)).stage("tested").in_sample or "")
    only(tmp_path, {"tested": {**PROBED, "split": "test", "conditions": ablated}})
    check_experiment(compose([MINE], tmp_path))


@pytest.mark.parametrize(
    ("readout", "contrasts"),
    [
        ({}, {"family": "none"}),
        (
            {"refused": {"kind": "holds", "of": "refusal", "above": 0.0}},
            {"family": "none", "primary": "refused"},
        ),
    ],
    ids=["no primary is named", "the primary is derived"],
)
def test_trap_30_items_kept_for_what_the_stage_is_about_count(tmp_path, readout, contrasts):
    kept = {
        "kind": "select",
        "from": "screen",
        "items": [{"of": "baseline", "readout": "refusal", "below": 0}],
    }
    tested = {**PROBED, "items": "choice:kept", "contrasts": contrasts, "readouts": ["refusal", *readout]}
    only(tmp_path, {"screen": PROBED, "kept": kept, "tested": tested}, readout=readout)
    assert "chosen on (stage 'screen')" in told(tmp_path)


# Layers on two scales.


def test_a_depth_is_no_bound_on_layers_of_another_scale(tmp_path):
    where = {"stages/best/where": [{"axis": "dir.from_layer", "below": "80%"}]}
    staged(tmp_path, where, reference_depth=32)
    assert "stages.best.where.0.below: expected a number on the scale of the axis" in told(tmp_path)
    words = {"stages/candidates/conditions/ablate/grid/dir.from_layer": ["0%", "50%"]}
    staged(tmp_path, {**where, **words})
    assert "stages.best.where.0.axis: expected an axis of numbers, 'dir.from_layer' has 0%, 50%" in told(
        tmp_path
    )


def test_a_layer_of_an_artefact_is_not_read_on_another_scale(tmp_path):
    best = {"kind": "select", "from": "direction", "over": ["layer"], "highest": {"readout": "separation"}}
    only(tmp_path, {"direction": DIRECTION, "best": best}, reference_depth=32)
    assert "stages.best.over: an artefact's layers are the model's own" in told(tmp_path)


# Halves of what a vector is taken from.


def reads(prompts: dict[str, list[int]], seed: int = 0) -> list[_Read]:
    """Noise, the same wherever a prompt recurs; a number is a prompt."""
    rng = np.random.default_rng(seed)
    noise = {number: rng.normal(size=(1, 1, 64)).astype(np.float32) for number in range(100)}
    return [
        _Read(f"{item:04d}", "", side, (number,), noise[number])
        for side, numbers in prompts.items()
        for item, number in enumerate(numbers)
    ]


def test_prompts_that_recur_do_not_make_a_vector_of_noise_consistent():
    of, minus = [index // 2 for index in range(24)], [50 + index // 2 for index in range(24)]  # each twice
    sample = Sample.of_reads(reads({"of": of, "minus": minus}), "of", "minus")
    halves = [sample.half(which) for which in (0, 1)]
    assert not {row.tobytes() for row in halves[0].of} & {row.tobytes() for row in halves[1].of}
    (row,) = summary_table([sample], [""], [-1], [0])
    assert abs(row["consistency"]) < 0.5 and abs(row["separation"]) < 2
    vector = sample.vector()[0, 0]
    rows = {
        side: np.stack([r.values for r in reads({"of": of, "minus": minus}) if r.side == side])
        for side in ("of", "minus")
    }
    np.testing.assert_allclose(vector, (rows["of"].mean(0) - rows["minus"].mean(0))[0, 0], atol=1e-6)


def test_one_prompt_has_no_halves():
    sample = Sample.of_reads(reads({"of": [1, 1, 1, 1], "minus": [2, 3, 4, 5]}), "of", "minus")
    (row,) = summary_table([sample], [""], [-1], [0])
    assert row["consistency"] is None and row["separation"] is None and row["norm"] > 0


# Resuming.


def test_trap_37_a_bank_of_a_later_stage_that_changed_stops_a_resumed_run(cli, tmp_path, monkeypatch):
    from runner.execute import Executor

    def line(name: str, text: str, split: str) -> str:
        return json.dumps({"id": name, "group": "g", "text": text, "split": split})

    one, other = tmp_path / "one.jsonl", tmp_path / "other.jsonl"
    one.write_text("\n".join(line(f"a{i}", word, "extract") for i, word in enumerate(("sun", "sky"))))
    other.write_text("\n".join(line(f"b{i}", word, "test") for i, word in enumerate(("the", "a"))))
    prompts = {"name": "words", "kind": "items", "targets": {"groups": "all"}}
    first = {**PROBED, "split": "all", "prompts": {"targets": {"bank": str(one), "groups": "all"}}}
    second = {**PROBED, "split": "all", "prompts": {"targets": {"bank": str(other), "groups": "all"}}}
    only(
        tmp_path,
        {"first": first, "second": second},
        prompts=prompts,
        experiment={"name": "mine", "n": 2},
        defaults=["_self_", {"override /prompts": "requests"}],
    )
    original, calls = Executor.run_batches, []

    def stop(self, batches):
        calls.append(len(batches))
        if len(calls) == 2:
            raise KeyboardInterrupt
        original(self, batches)

    monkeypatch.setattr(Executor, "run_batches", stop)
    said = run(cli, tmp_path)
    assert said.status == status.INTERRUPTED, said.out + said.err
    monkeypatch.setattr(Executor, "run_batches", original)
    kept = other.read_text()
    other.write_text(kept.replace('"the"', '"an"'))
    said = run(cli, tmp_path, "resume=true")
    assert said.status == status.CONFIGURATION and str(other) in said.out.replace("\n", "")
    other.write_text(kept)
    assert run(cli, tmp_path, "resume=true").status == status.DONE
