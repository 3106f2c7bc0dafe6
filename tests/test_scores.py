"""Scores of the generated text, and readouts that follow from others: their values, what YAML may say of
them, and that both are taken again without the model."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from backends.measures import Probe
from organisms.grammar.languages import LANGUAGES
from organisms.grammar.refusal import requests
from runner.config.folders import conf_dir
from runner.config.readouts.derivation import Derivation, Entry
from runner.config.readouts.readout import Readout, Source, leaves
from runner.plan import Trial
from runner.prepare import prepare
from runner.prompts.asked import Asked, Asker
from runner.prompts.banks import Prompt
from runner.prompts.pairing import Item
from runner.results.resume import Rescoring
from runner.scores.contains import contains, labels_that_count
from runner.scores.degenerate import degenerate
from runner.scores.derived import difference, entry, holds, onset
from runner.scores.scoring import Scorer
from tests.configuring import design, faults
from tests.models import write
from tests.test_reach import found as plan_gates_of

WORDS = st.lists(st.sampled_from(["red", "door", "the", "is", "open."]), max_size=40)
TWO_HOP = """
prompts:
  name: two_hop
  kind: pairs
  donors: {bank: donors, groups: all}
  targets: {bank: two_hop, groups: [composed], split: test}
  roles: {other: {bank: two_hop, groups: [composed], split: extract}}
"""
LENS = "lens: {kind: lens, tokens: 'fact:answer', layers: all}"
BRIDGE = "bridge: {kind: lens, tokens: 'fact:bridge', layers: all}"
FIRST = "a: {kind: onset, of: lens.rank, within: 3}, b: {kind: onset, of: bridge.rank, within: 3}"
ONSETS = f"{LENS}, {BRIDGE}, {FIRST}"
GAP = "gap: {kind: difference, of: a, minus: b}, late: {kind: holds, of: gap, above: 0}"


def mine(folder: Path, readout: str, names: str, contrasts: str = "{family: none}", more: str = "") -> Path:
    """A user's folder with one experiment of the readouts given (YAML)."""
    (folder / "experiment").mkdir(exist_ok=True)
    (folder / "experiment" / "mine.yaml").write_text(
        "# @package _global_\n# ?\nexperiment: {name: mine, n: 3}\n"
        "sampling: {temperature: 0, max_new_tokens: 6}\n"
        f"readout: {{{readout}}}\nreadouts: {names}\ncontrasts: {contrasts}\nconditions:\n  baseline: {{}}\n"
        f"{more}{TWO_HOP}",
        encoding="utf-8",
    )
    return folder


def told(folder: Path, readout: str, names: str = "[it]") -> list[str]:
    return faults("+experiment=mine", folder=mine(folder, readout, names)).splitlines()


# --- contains


def test_a_text_contains_a_label_in_any_case_and_within_a_word() -> None:
    assert contains("The capital is PARIS.", ["Paris"]) == 1.0
    assert contains("the start", ["art"]) == 1.0  # a substring, as published
    assert contains("Strasse", ["straße"]) == 1.0
    assert contains("The capital is Rome.", ["Paris", "Lutetia"]) == 0.0
    assert contains("", ["Paris"]) == 0.0


def test_labels_of_one_character_do_not_count() -> None:
    assert contains("a b c", ["a"]) == 0.0
    assert contains("a b c", [" b "]) == 0.0
    assert contains("a bc", ["a", "bc"]) == 1.0
    assert labels_that_count([" Paris ", "Paris", "P", ""]) == ("Paris",)


@given(st.text(max_size=40), st.text(max_size=10), st.lists(st.text(max_size=4), max_size=4))
def test_more_text_and_more_labels_never_lose_a_hit(text: str, more: str, labels: list[str]) -> None:
    found = contains(text, labels)
    assert found in (0.0, 1.0)
    assert contains(text + more, labels) >= found
    assert contains(text, [*labels, more]) >= found
    assert contains(text, labels[::-1]) == found
    assert contains(text.casefold(), labels) == found


def test_the_organism_refuses_in_the_words_of_its_refusals_and_complies_in_none(organism_refusals) -> None:
    assert set(organism_refusals) == {"sorry", *(language.cannot for language in LANGUAGES)}
    seen = {request.harmful: set() for request in requests()}
    for request in requests():
        seen[request.harmful].add(contains(" ".join(request.answer()), organism_refusals))
    assert seen == {True: {1.0}, False: {0.0}}


@pytest.fixture(scope="module")
def organism_refusals() -> tuple[str, ...]:
    return refusals("organism")


def refusals(language: str) -> tuple[str, ...]:
    found = yaml.safe_load((conf_dir() / "readout" / "refuses.yaml").read_text(encoding="utf-8"))
    return tuple(found["tokens"][language])


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ("I'm sorry, but I can't help with that.", 1.0),
        ("I\N{RIGHT SINGLE QUOTATION MARK}m sorry, that is not something I do.", 1.0),
        ("I cannot assist you in this.", 1.0),
        ("Sure! Here are three steps: first, wash the lettuce.", 0.0),
        ("The letter said that nobody was sorry.", 0.0),
    ],
)
def test_english_refusals_open_in_ways_that_are_listed(text: str, refused: float) -> None:
    labels = refusals("english")
    assert contains(text, labels) == refused
    assert len(labels) == len({label.casefold() for label in labels})


# --- degenerate


def test_how_much_a_text_repeats_itself_has_known_answers() -> None:
    def parts(text: str) -> tuple[float | None, int | None]:
        found = degenerate(text)
        return found.repeated, found.run

    assert parts("one two three four five six") == (0.0, 1)
    assert parts("a b c a b c") == (0.25, 1)  # abc bca cab abc
    assert parts("No no NO no") == (0.5, 4)
    assert parts("the red door " * 10) == (1 - 3 / 28, 1)
    assert parts("so so it goes") == (0.0, 2)
    assert parts("") == (None, None)
    assert parts("one") == (None, 1)
    assert parts("no no") == (None, 2)
    assert parts("no no no") == (0.0, 3)  # one trigram, which has not come before


@given(WORDS)
def test_repetition_is_a_share_and_a_loop_has_more_of_it(words: list[str]) -> None:
    found = degenerate(" ".join(words))
    assert (found.repeated is None) == (len(words) < 3)
    assert (found.run is None) == (not words)
    if found.repeated is not None and found.run is not None:
        twice = degenerate(" ".join([*words, *words]))
        assert 0 <= found.repeated < 1 and 1 <= found.run <= len(words)
        assert twice.repeated is not None and twice.repeated > found.repeated
        assert degenerate("\n".join(words).upper()) == found


# --- derived


def test_an_onset_is_the_first_layer_with_a_small_rank() -> None:
    assert onset([90.0, 29.0, 40.0, 0.0], (2, 5, 6, 8), 30) == 5
    assert onset([90.0, 30.0], (2, 5), 30) is None
    assert onset([None, 3.0], (0, 1), 30) == 1
    assert onset([0.0], (7,), 1) == 7
    assert onset(None, (0, 1), 30) is None
    with pytest.raises(ValueError, match="zip"):
        onset([1.0], (0, 1), 30)


@given(st.lists(st.integers(0, 60), min_size=1, max_size=12), st.integers(1, 60))
def test_a_wider_onset_is_never_later(ranks: list[int], within: int) -> None:
    layers = tuple(range(3, 3 + len(ranks)))
    found, wider = (onset([float(rank) for rank in ranks], layers, most) for most in (within, within + 1))
    assert found is None or (wider is not None and wider <= found and ranks[found - 3] < within)
    assert (found is None) == (min(ranks) >= within)


def test_differences_and_bounds_know_what_is_not_there() -> None:
    assert difference(6, 2) == 4
    assert difference(None, 2) is None and difference(2, None) is None
    assert (holds(1, 0, None), holds(0, 0, None), holds(-1, 0, None)) == (1, 0, 0)
    assert (holds(-1, None, 0), holds(0, None, 0)) == (1, 0)
    assert holds(None, 0, None) == 0 and holds(None, None, 0) == 0
    assert (entry([1.0, None], 0), entry([1.0, None], 1), entry([1.0], 3), entry(None, 0)) == (
        1.0,
        None,
        None,
        None,
    )
    assert entry([1.0, 2.0], -1) == 2.0 and entry(5, None) == 5


# --- the scorer


def lens(name: str = "lens") -> Readout:
    columns = {f"{name}.rank": "integers"}
    return Readout(name, "lens", 1, columns, Probe("lens", name, tokens=name, layers=(4, 6, 8)))


def number(name: str, kind: str, how: Derivation | None = None, **more: object) -> Readout:
    return Readout(name, kind, 1, {name: "number"}, derivation=how, **more)  # type: ignore[arg-type]


def first(name: str, of: str, within: int = 5) -> Readout:
    return number(name, "onset", Derivation(Entry(of, of), within=within, layers=(4, 6, 8)))


def gap(name: str, of: str, minus: str) -> Readout:
    return number(name, "difference", Derivation(Entry(of, of), Entry(minus, minus)))


CHAIN = (
    number("later", "holds", Derivation(Entry("gap", "gap"), above=0)),
    gap("gap", "a", "b"),
    first("a", "lens.rank"),
    lens(),
    first("b", "bridge.rank"),
    lens("bridge"),
)


def test_derived_readouts_are_taken_in_the_order_of_what_they_read() -> None:
    scorer = Scorer.of(CHAIN)
    values = {"lens.rank": [9.0, 9.0, 1.0], "bridge.rank": [4.0, 9.0, 9.0], "stale": 3.0, "gap": 77.0}
    assert scorer.scores("", {}, values) == {
        "lens.rank": values["lens.rank"],
        "bridge.rank": values["bridge.rank"],
        "a": 8,
        "b": 4,
        "gap": 4,
        "later": 1,
    }
    never = scorer.scores("", {}, {**values, "bridge.rank": [9.0, 9.0, 9.0]})
    assert "b" not in never and "gap" not in never and never["later"] == 0


def test_readouts_that_read_each_other_have_no_order() -> None:
    with pytest.raises(ValueError, match="x, y"):
        Scorer.of([gap("x", "y", "z"), gap("y", "x", "z"), lens("z")])


def test_a_derived_readout_is_seen_through_what_it_comes_from() -> None:
    one = number("p", "holds", Derivation(Entry("lens.prob[6]", "lens.rank", 1), below=1))
    assert [(leaf.name, layer) for leaf, layer in leaves(CHAIN[0], CHAIN)] == [
        ("lens", None),
        ("bridge", None),
    ]
    assert list(leaves(one, (one, *CHAIN))) == [(lens(), 6)]
    assert list(leaves(lens(), CHAIN)) == [(lens(), None)]


def test_trap_18_a_derived_readout_that_no_write_gets_to_is_told_by_way_of_what_it_reads() -> None:
    seen = Readout("lens", "lens", 1, {"lens.rank": "integers"}, Probe("lens", "lens", layers=(0, 1, 2, 3)))
    early = number("early", "holds", Derivation(Entry("lens.rank[1]", "lens.rank", 1), below=3))
    late = number("late", "holds", Derivation(Entry("lens.rank[3]", "lens.rank", 3), below=3))
    gates = plan_gates_of({"v": [write("v", "v_proj", (2,))]}, [seen, early, late], primary="early")
    (about,) = [gate for gate in gates if "early" in gate[3]]
    assert about[1:3] == ("reach", "fail")
    assert "early reads resid_post of layer 1 (by way of lens), which is computed before v" in about[3]
    assert not any("late" in gate[3] for gate in gates)


def test_stored_results_are_scored_again_as_this_configuration_asks() -> None:
    said = number("said", "contains", labels=Source(("stop",)))
    text = "Stop the bet"
    result = {
        "key": "k",
        "status": "ok",
        "text": text,
        "scores": {"lens.rank": [9.0, 0.0, 0.0], "a": 1, "said": 0.0, "score": 5, "old": 1},
    }
    again, words = Rescoring(Scorer.of([said, first("a", "lens.rank"), lens()])), {"said": ("stop",)}
    scored = again.scored(result, words)
    assert scored["scores"] == {"lens.rank": [9.0, 0.0, 0.0], "said": 1.0, "a": 6}
    assert again.scored(scored, words) == scored
    assert result["scores"]["a"] == 1  # the stored one stays as it is
    invalid = {**result, "status": "invalid", "scores": {}}
    assert again.scored(invalid, words)["scores"] == {}


# --- words of an item


def asked(tokens: str | list[str], facts: dict, donor: dict | None = None) -> Asked:
    from runner.config.readouts.readout import read_source

    readout = number("it", "contains", labels=read_source(tokens, "organism"))
    target = Prompt("t1", "g", "the capital is", facts=facts)
    item = Item("0000", Prompt("d1", "g", "go to", facts=donor or {}), target, {}, None, 0)
    return Asker(None, [readout]).of(item, target.text)  # type: ignore[arg-type]  # no word becomes a token


def test_words_that_a_text_is_searched_for_are_texts_of_any_length_and_no_tokens() -> None:
    found = asked("fact:answer", {"answer": ("New York City", "N", "NYC")})
    assert found.words == {"it": ("New York City", "NYC")} and not found.tokens and found.fault is None
    assert asked("fact:donor/answer", {}, {"answer": "Rome"}).words == {"it": ("Rome",)}
    assert asked(["sorry", "no way"], {}).words == {"it": ("sorry", "no way")}
    assert asked("fact:year", {"year": 1989}).words == {"it": ("1989",)}


@pytest.mark.parametrize(
    ("tokens", "facts", "why"),
    [
        ("fact:answr", {"answer": "Rome"}, "states no fact 'answr' (answer); did you mean 'answer'?"),
        ("fact:answer", {"answer": ("A", "B")}, "fact:answer is 'A', 'B', of one character"),
        ("fact:right", {"right": True}, "is true or false, not a word"),
    ],
)
def test_an_item_without_a_word_to_search_for_says_why(tokens, facts, why) -> None:
    fault = asked(tokens, facts).fault
    assert fault is not None and fault.startswith("readout it, tokens: ") and why in fault


# --- what YAML may say


def test_the_kinds_resolve_to_columns_and_read_no_tensor(tmp_path) -> None:
    texts = "said: {kind: contains, tokens: {organism: [stop, bet]}}, loops: {kind: degenerate}"
    readout = f"{ONSETS}, {GAP}, {texts}"
    found = design(
        "+experiment=mine", folder=mine(tmp_path, readout, "[late, gap, a, b, lens, bridge, said, loops]")
    )
    by_name = {each.name: each for each in found.measured}
    assert found.decodes and {probe.name for probe in found.probes} == {"lens", "bridge"}
    assert found.columns.keys() >= {"late", "gap", "a", "b", "said", "loops", "loops.run"}
    assert {found.columns[name] for name in ("late", "gap", "a", "b", "said", "loops", "loops.run")} == {
        "number"
    }
    assert by_name["a"].described() == {
        "kind": "onset",
        "version": 1,
        "columns": {"a": "number"},
        "of": "lens.rank",
        "within": 3,
        "layers": list(range(9)),
    }
    assert by_name["gap"].described()["minus"] == "b" and by_name["late"].described()["above"] == 0
    assert by_name["said"].described()["tokens"] == "stop, bet"


def test_probes_and_what_follows_from_them_generate_nothing(tmp_path) -> None:
    found = design("+experiment=mine", folder=mine(tmp_path, f"{ONSETS}, {GAP}", "[lens, bridge, a, b, gap]"))
    assert not found.decodes
    assert all(not readout.of_output for readout in found.measured)


def test_entries_of_lists_can_be_read_by_their_layer(tmp_path) -> None:
    readout = f"{LENS}, it: {{kind: difference, of: 'lens.prob[last]', minus: 'lens.prob[4]'}}"
    found = design("+experiment=mine", folder=mine(tmp_path, readout, "[it, lens]"))
    how = found.measured[0].derivation
    assert how is not None and how.minus is not None
    assert (how.of.column, how.of.at, how.minus.at) == ("lens.prob", -1, 4)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("{kind: contains}", "readout.it.tokens: missing: .* contains needs tokens"),
        ("{kind: contains, tokens: [stop, a]}", "readout.it.tokens: .* longer than one character .* got 'a'"),
        ("{kind: contains, tokens: {english: [stop]}}", "language 'organism', got them for english"),
        ("{kind: contains, tokens: 'fact:anser'}", "states the fact 'anser'.*did you mean 'answer'"),
        ("{kind: contains, tokens: 'fact:othr/answer'}", "got 'othr'; did you mean 'other'"),
        (
            "{kind: contains, tokens: stop, position: -1}",
            "contains reads kind, version, tokens; nothing reads",
        ),
        ("{kind: degenerate, tokens: stop}", "nothing reads tokens"),
        ("{kind: onset, of: lens.rank}", "readout.it.within: missing"),
        (
            "{kind: onset, of: lens.rnk, within: 3}",
            r"readout.it.of: .*\(lens.rank\).*did you mean 'lens.rank'",
        ),
        ("{kind: onset, of: lens.prob, within: 3}", "readout.it.of: expected ranks by layer"),
        ("{kind: onset, of: 'lens.rank[3]', within: 3}", "readout.it.of: expected ranks by layer"),
        ("{kind: onset, of: lens.rank, within: 0}", "readout.it.within: expected more than 0"),
        ("{kind: onset, of: other.rank, within: 3}", "column of readout 'other', which is not in readouts"),
        ("{kind: difference, of: kl}", "readout.it.minus: missing"),
        ("{kind: difference, of: kl, minus: kll}", "readout.it.minus: .*got 'kll'; did you mean 'kl'"),
        ("{kind: difference, of: kl, minus: kl}", "readout.it.minus: .* 0 by construction"),
        ("{kind: difference, of: kl, minus: lens.prob}", "lens.prob is a list; say which entry"),
        ("{kind: difference, of: kl, minus: 'lens.prob[40]'}", "expected a layer from 0 to 8"),
        ("{kind: difference, of: it, minus: kl}", "readout.it.of: expected another readout's column"),
        ("{kind: holds, of: kl}", "readout.it.above: expected one bound: above or below"),
        ("{kind: holds, of: kl, above: 0, below: 1}", "readout.it.above: expected one bound"),
        ("{kind: holds, of: kl, above: .inf}", "readout.it.above: "),
        ("{kind: holds, of: kl, above: 0, minus: lens.prob}", "holds reads .*; nothing reads minus"),
        ("{kind: hold, of: kl, above: 0}", "did you mean 'holds'"),
        ("{kind: degenerate, version: 2}", "readout.it.version: expected 1, got 2"),
    ],
)
def test_what_they_cannot_mean_is_said_at_the_door(tmp_path, words, said) -> None:
    lines = told(
        tmp_path,
        f"kl: {{kind: kl}}, {LENS}, other: {{kind: lens, tokens: stop}}, it: {words}",
        "[kl, lens, it]",
    )
    assert len(lines) == 1, lines
    assert re.search(said, lines[0]), lines[0]


def test_circles_are_told_once_each_with_their_way(tmp_path) -> None:
    readout = (
        "kl: {kind: kl}, x: {kind: difference, of: y, minus: kl}, y: {kind: difference, of: z, minus: kl}, "
        "z: {kind: difference, of: x, minus: kl}, apart: {kind: holds, of: x, above: 0}"
    )
    lines = told(tmp_path, readout, "[kl, x, y, z, apart]")
    assert len(lines) == 1 and "readout.x.of" in lines[0]
    assert "'x' of 'y' of 'z' of 'x'" in lines[0]


def test_all_their_mistakes_are_told_at_once(tmp_path) -> None:
    readout = (
        "kl: {kind: kl}, a: {kind: onset, of: kl, within: 3}, b: {kind: holds, of: nil}, c: {kind: contains}"
    )
    lines = told(tmp_path, readout, "[kl, a, b, c]")
    assert len(lines) == 4, lines


def test_a_derived_readout_can_be_primary_a_covariate_and_in_a_check(tmp_path) -> None:
    contrasts = (
        "{primary: gap, covariates: [late], "
        "checks: {it: {of: baseline, readout: a, expect: higher, value: -1}}}"
    )
    kv = "  kv: {kv: {site: kv_cache, layers: all, op: replace, value: donor}}\n"
    names = "[lens, bridge, a, b, gap, late]"
    found = design("+experiment=mine", folder=mine(tmp_path, f"{ONSETS}, {GAP}", names, contrasts, kv))
    assert found.contrasts.primary == "gap" and found.checks[0].column == "a"


# --- what a run leaves


@pytest.fixture(scope="module")
def scored(tmp_path_factory) -> Path:
    """A run that measures, generates, scores and derives."""
    import runner

    folder = tmp_path_factory.mktemp("scored")
    readout = (
        f"{ONSETS}, {GAP}, hop: {{kind: contains, tokens: 'fact:bridge'}}, other: {{kind: contains, "
        "tokens: 'fact:other/answer'}"
    )
    names = "[late, answered, degenerate, hop, other, lens, bridge, a, b, gap]"
    found = runner.run(
        ["+experiment=mine", *FEW, f"output_root={folder / 'outputs'}"],
        config_dir=mine(folder, readout, names),
    )
    assert found.status == 0 and found.folder is not None
    return found.folder


FEW = ("quiet=true", "report=false", "backend.threads=1")


def test_the_table_has_scores_and_derived_values_that_agree_with_what_they_come_from(scored) -> None:
    trials = pd.read_parquet(scored / "trials.parquet")
    manifest = json.loads((scored / "manifest.json").read_text())
    facts = answers()
    layers = manifest["readout"]["a"]["layers"]
    for row in trials.to_dict(orient="records"):
        answer = facts[row["target"]]
        assert row["answered"] == float(answer in row["text"])
        assert row["hop"] in (0.0, 1.0)
        near = [layer for layer, rank in zip(layers, row["lens.rank"], strict=True) if rank < 3]
        assert row["a"] == near[0] if near else np.isnan(row["a"])
        assert row["late"] == float(row["gap"] > 0)
        if not np.isnan(row["gap"]):
            assert row["gap"] == row["a"] - row["b"]
        assert row["degenerate.run"] >= 1
    assert (trials["answered"] == 1).all()  # the organism knows them
    assert manifest["readout"]["answered"]["tokens"] == "fact:answer"


def answers() -> dict[str, str]:
    path = conf_dir() / "prompts" / "banks" / "organism" / "two_hop.jsonl"
    lines = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return {line["id"]: line["facts"]["answer"][0] for line in lines}


def test_other_scores_and_other_bounds_need_no_model(scored, monkeypatch) -> None:
    import runner
    from backends.torch.backend import TorchBackend

    def no(*_: object, **__: object) -> None:
        raise AssertionError("the model is not asked")

    monkeypatch.setattr(TorchBackend, "decode", no)
    monkeypatch.setattr(TorchBackend, "score", no)
    folder = scored.parents[2]
    found = runner.run(
        [
            "+experiment=mine",
            *FEW,
            f"output_root={folder / 'outputs'}",
            "readout.a.within=900",
            "readout.hop.tokens=zzz",
            "readouts=[late,gap,a,b,lens,bridge,hop,degenerate,refuses]",
        ],
        config_dir=folder,
    )
    assert found.status == 0
    before, after = (pd.read_parquet(each / "trials.parquet") for each in (scored, found.folder))
    assert after["origin"].eq("mine/v0001").all() and (after["text"] == before["text"]).all()
    assert after["a"].eq(0).all() and not before["a"].eq(0).all()
    assert (after["gap"].dropna() == -after["b"].dropna()).all()
    assert after["hop"].eq(0).all() and after["refuses"].eq(0).all()
    assert "answered" not in after.columns and after["degenerate"].equals(before["degenerate"])


def test_one_prompt_with_two_answers_gives_two_results(tmp_path) -> None:
    """A result holds its scores, so that trials of one computation with other words are kept apart."""
    folder = mine(tmp_path, "said: {kind: contains, tokens: 'fact:answer'}", "[said]")
    bank = tmp_path / "bank.jsonl"
    lines = [
        {"id": name, "group": "g", "text": "the coach of the baker of olga is", "facts": {"answer": answer}}
        for name, answer in (("one", "simon"), ("two", "rosa"), ("three", "simon"))
    ]
    bank.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = design(
        "+experiment=mine",
        f"prompts.targets.bank={bank}",
        "prompts.targets.groups=all",
        "prompts.targets.split=all",
        f"prompts.donors.bank={bank}",
        "experiment.n=40",
        folder=folder,
    )
    trials = prepare(found, folder).plan.trials
    by_key: dict[str, list[Trial]] = {}
    for trial in trials:
        by_key.setdefault(trial.key, []).append(trial)
    assert all(len({trial.words["said"] for trial in same}) == 1 for same in by_key.values())
    computed = {(trial.row.ids, trial.row.stream) for trial in trials}
    assert len(computed) < len(by_key) < len(trials)
    fewer = prepare(replace(found, n=20), folder).plan.trials
    assert [trial.key for trial in fewer] == [trial.key for trial in trials[:20]]


def test_words_and_bounds_are_no_part_of_a_key(tmp_path) -> None:
    def keys(*changes: str) -> list[str]:
        readout = (
            f"{LENS}, a: {{kind: onset, of: lens.rank, within: 3}}, said: {{kind: contains, tokens: stop}}"
        )
        folder = mine(tmp_path, readout, "[lens, a, said]")
        return [
            trial.key
            for trial in prepare(design("+experiment=mine", *changes, folder=folder), folder).plan.trials
        ]

    plain = keys()
    assert (
        keys("readout.a.within=5") == keys("readout.said.tokens=bet") == keys("readouts=[lens,said]") == plain
    )
    assert not set(keys("readout.lens.tokens=stop")) & set(plain)
