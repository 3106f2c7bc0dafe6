"""Where a probe reads a prompt: a number, or a word that each prompt resolves on its own; and accuracy."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from backends.measures import Probe, ScoreRow
from backends.rows import Row, Sampling
from runner import run, status
from runner.config.readouts.positions import one_position
from runner.keys import Setting, canonical_probe, result_key
from runner.plan_gates import plan_gates
from runner.prepare import Prepared, prepare
from tests.configuring import design, faults
from tests.test_readouts import mine

FEW = ("quiet=true", "report=false", "backend.threads=1")
BRIDGE = "role:hop_1.last"
TARGETS = """
prompts:
  name: two_hop
  kind: pairs
  donors: {bank: two_hop, groups: [composed], split: extract}
  targets: {bank: two_hop, groups: [composed], split: test}
  roles: {other: {bank: plain, groups: all}}
"""
READOUTS = (
    "{it: {kind: accuracy, tokens: fact:answer}, place: {kind: rank, tokens: fact:answer}, "
    f"lens: {{kind: lens, tokens: fact:bridge, position: '{BRIDGE}', layers: [2, 5]}}, "
    f"drift: {{kind: kl, position: '{BRIDGE}'}}}}"
)
NAMES = "[it, place, lens, drift]"
AFTER = "  after: {w: {site: resid_pre, layers: 1, op: zero, positions: 'index:-1'}}\n"
AT = f"  at: {{w: {{site: resid_pre, layers: 3, value: donor, positions: '{BRIDGE}'}}}}\n"


ONE: Mapping[int | str | None, tuple[int, str]] = {
    None: (-1, ""),
    -3: (-3, ""),
    "index:-3": (-3, ""),
    "index:2": (2, ""),
    "last:1": (-1, ""),
    "first:1": (0, ""),
    "role:e1.last": (-1, "role:e1.last"),
    "role:e1.first": (-1, "role:e1.first"),
    "token:'of'": (-1, "token:'of'"),
    'token:"of"': (-1, "token:'of'"),
}


def test_a_word_names_one_position(tmp_path: Path) -> None:
    assert {word: one_position(word) for word in ONE} == ONE
    readouts = {f"r{i}": {"kind": "kl", "position": word} for i, word in enumerate(ONE)}
    folder = mine(tmp_path, json.dumps(readouts), json.dumps([*readouts]), rest=TARGETS)
    found = design("+experiment=mine", folder=folder).measured
    assert [(each.probe.position, each.probe.at) for each in found if each.probe] == [*ONE.values()]
    assert [each.described()["position"] for each in found] == [at or index for index, at in ONE.values()]


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("all", r"one position of the prompt \(a number, index:-2, .*\), got 'all', which may be several"),
        ("last:3", "got 'last:3', which may be several"),
        ("first:25%", "may be several"),
        ("post_instruction", "may be several"),
        ("role:e1", "may be several; did you mean role:e1.last?"),
        ("-2", "got '-2'; did you mean index:-2?"),
        ("token:of", "did you mean token:'of'?"),
        ("role:E 1", "expected one position"),
        (
            "role:e2.last",
            r"none of the \d+ targets .* marks the role 'e2'; they mark e1, hop_1, r1, r2",
        ),
        ("token:'xyz'", r"position: none of the \d+ targets .* contains 'xyz'"),
    ],
)
def test_words_of_no_position_or_several_are_refused_at_the_door(
    tmp_path: Path, word: str, told: str
) -> None:
    readout = f'{{it: {{kind: kl, position: "{word}"}}}}'
    said = faults("+experiment=mine", folder=mine(tmp_path, readout, "[it]", rest=TARGETS))
    assert len(said.splitlines()) == 1
    assert "readout.it.position: " in said and re.search(told, said), said


def test_the_prompt_that_a_condition_runs_is_the_one_that_must_have_the_part(tmp_path: Path) -> None:
    other = "  other: {prompt: 'donor:other'}\n  cell: {prompt: 'donor:other+target'}\n"
    folder = mine(tmp_path, f"{{it: {{kind: kl, position: '{BRIDGE}'}}}}", "[it]", other, rest=TARGETS)
    said = faults("+experiment=mine", folder=folder)
    assert "readout.it.position: in other: " in said and "donors of other" in said
    assert "in cell" not in said and len(said.splitlines()) == 1


def test_what_reads_no_position_refuses_one(tmp_path: Path) -> None:
    folder = mine(tmp_path, "{it: {kind: cross_entropy, position: 'role:e1.last'}}", "[it]", rest=TARGETS)
    assert "nothing reads position" in faults("+experiment=mine", folder=folder)


def planned(folder: Path, *overrides: str) -> Prepared:
    return prepare(design("+experiment=mine", "backend.threads=1", *overrides, folder=folder), folder)


def test_each_trial_has_the_position_of_its_own_prompt(tmp_path: Path) -> None:
    """That of the donor where the donor is run, moved on where another prompt comes first."""
    more = "  donor: {prompt: donor}\n  behind: {prompt: donor+target}\n"
    readout = f"{{it: {{kind: kl, position: '{BRIDGE}'}}, of: {{kind: kl, position: \"token:'of'\"}}}}"
    prepared = planned(mine(tmp_path, readout, "[it, of]", more, rest=TARGETS))
    tokenizer = prepared.tokenizer
    for trial in prepared.plan.trials:
        item = next(each for each in prepared.items if each.item_id == trial.item)
        prompt = item.donor if trial.condition == "donor" else item.target
        assert trial.invalid is None
        assert trial.positions.keys() == {BRIDGE, "token:'of'"}
        start, end = prompt.spans["hop_1"]
        (last,) = tokenizer.encode(prompt.text[start:end].split()[-1])[-1:]
        assert trial.row.ids[trial.positions[BRIDGE]] == last
        # What is read there follows the whole part, which ends where it does in the text.
        rest = len(tokenizer.encode(prompt.text)) - len(tokenizer.encode(prompt.text[:end]))
        assert trial.positions[BRIDGE] == len(trial.row.ids) - 1 - rest
        assert tokenizer.tokens(trial.row.ids[trial.positions["token:'of'"] :][:1]) == ["of"]


def test_a_prompt_without_the_part_is_an_invalid_trial_that_says_so(tmp_path: Path) -> None:
    bank = [
        {"id": "a", "group": "g", "text": "the mentor of ada is", "roles": {"e1": [14, 17]}},
        {"id": "b", "group": "g", "text": "the rival of ada is"},
    ]
    path = tmp_path / "mixed.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in bank))
    rest = TARGETS.replace("bank: two_hop, groups: [composed], split: test", f"bank: {path}")
    folder = mine(tmp_path, "{it: {kind: kl, position: 'role:e1.last'}}", "[it]", rest=rest)
    plan = planned(folder, "experiment.n=8").plan
    reasons = {trial.target: trial.invalid for trial in plan.trials}
    assert reasons == {"a": None, "b": "the prompt has no role 'e1' (its roles: none)"}


def test_named_positions_are_part_of_what_a_result_is() -> None:
    """One prompt whose part is marked at two places is two results; without words the key is what it was."""
    setting = Setting("torch", "m", "t", "float32", "sdpa", (canonical_probe(Probe("kl", "k", at="w")),), 1)
    row = Row((0, 5, 6), Sampling(0.0, 1))
    bare, first, second = (
        result_key(setting, row, 0, 0, positions=each) for each in ({}, {"w": 1}, {"w": 2})
    )
    assert bare == result_key(setting, row, 0, 0)
    assert len({bare, first, second}) == 3


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that reads at a role, with a write there and one after it."""
    folder = mine(tmp_path_factory.mktemp("ran"), READOUTS, NAMES, AT + AFTER, "{primary: it}", rest=TARGETS)
    found = run(["+experiment=mine", *FEW, f"output_root={folder / 'o'}"], config_dir=folder)
    assert found.status == status.DONE and found.folder is not None
    return found.folder


def test_values_are_those_of_the_position_as_a_number(ran: Path) -> None:
    """Each trial alone, with the number in place of the word."""
    folder = ran.parent.parent.parent
    prepared = planned(folder)
    table = pd.read_parquet(ran / "trials.parquet").set_index("key")
    for trial in prepared.plan.trials:
        probes = [
            replace(probe, at="", position=trial.positions[BRIDGE])
            for probe in prepared.design.probes
            if probe.at
        ]
        (alone,) = prepared.backend.score([ScoreRow(trial.row, (), trial.tokens)], probes)
        found = table.loc[trial.key]
        assert found["drift"] == pytest.approx(alone.values["drift"], rel=1e-3, abs=1e-6)
        assert list(found["lens.prob"]) == pytest.approx(alone.values["lens.prob"], rel=1e-3, abs=1e-6)


def test_accuracy_is_rank_0(ran: Path) -> None:
    table = pd.read_parquet(ran / "trials.parquet")
    assert ((table["place"] == 0).astype(float) == table["it"]).all()
    assert set(table["it"]) == {0.0, 1.0}
    readout = json.loads((ran / "manifest.json").read_text())["readout"]
    assert readout["it"] == {
        "kind": "accuracy",
        "version": 1,
        "columns": {"it": "number"},
        "tokens": "fact:answer",
        "position": -1,
    }
    assert readout["drift"]["position"] == BRIDGE


def test_a_write_after_the_position_that_is_read_is_out_of_its_reach(ran: Path) -> None:
    table = pd.read_parquet(ran / "trials.parquet").set_index("condition")
    assert table.loc["after"]["drift"].max() < 1e-9 < table.loc["at"]["drift"].min()
    told = {gate["sentence"] for gate in json.loads((ran / "manifest.json").read_text())["plan_gates"]}
    (blind,) = [each for each in told if each.startswith("drift cannot show")]
    assert "the writes of after do" in blind


def test_a_readout_of_what_was_written_at_its_own_position_is_a_tautology(tmp_path: Path) -> None:
    write = f"{{site: resid_post, layers: 5, value: donor, positions: '{BRIDGE}'}}"
    readout = f"{{it: {{kind: lens, tokens: fact:bridge, position: '{BRIDGE}', layers: [5]}}}}"
    elsewhere = write.replace(BRIDGE, "role:r2.first")
    lines = f"  same: {{w: {write}}}\n  elsewhere: {{w: {elsewhere}}}\n"
    folder = mine(tmp_path, readout, "[it]", lines, rest=TARGETS)
    prepared = planned(folder)
    found = [gate for gate in plan_gates(prepared.design, prepared.plan) if gate["gate"] == "tautology"]
    assert [(gate["condition"], gate["verdict"]) for gate in found] == [("same", "fail")]
