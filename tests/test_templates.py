"""Prompts of kind `items`, templates with shots, and roles that are related to the target."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

from organisms.grammar.in_context import MAPS, query, shots
from runner.config.compose import compose
from runner.config.errors import ConfigurationError
from runner.config.folders import config_folders
from runner.config.prompts.spec import PromptsSpec, TemplateSpec
from runner.plan import Trial
from runner.prepare import prepare
from runner.prompts.banks import Bank, Prompt, read_bank
from runner.prompts.matching import maximum_matching
from runner.prompts.pairing import Item, available, choose, pair, read_banks, summarise
from runner.prompts.relations import Relation
from runner.prompts.templates import Form, TemplateError, dealt_anew
from tests.configuring import design, faults

ICL = {"query": "Q: {text}\nA:", "shot": "Q: {text}\nA: {answer}\n\n"}


def words(text: str) -> int:
    return len(text.split())


def lines(*rows: dict[str, Any]) -> tuple[Prompt, ...]:
    return tuple(
        Prompt(
            row["id"],
            row.get("group", "g"),
            row.get("text", row["id"]),
            split=row.get("split"),
            spans=row.get("roles", {}),
            facts={name: tuple(f) if isinstance(f, list) else f for name, f in row.get("facts", {}).items()},
        )
        for row in rows
    )


def bank(*rows: dict[str, Any]) -> dict[str, Bank]:
    return {"b": Bank("b", Path("b.jsonl"), "0", lines(*rows))}


def maps(size: int = 12) -> dict[str, Bank]:
    """Two groups of words with an answer each, thirds of them in each split."""
    splits = ("extract", "validate", "test")
    return bank(
        *(
            {
                "id": f"{group}{i}",
                "group": group,
                "text": f"{group} word {i}",
                "split": splits[i % 3],
                "facts": {"answer": [f"{group} answer {i}", "or so"]},
            }
            for group in ("up", "down")
            for i in range(size)
        )
    )


def spec(kind: str = "items", **more: Any) -> PromptsSpec:
    given = {"name": "p", "kind": kind, "language": "english", "targets": {"bank": "b"}, **more}
    return PromptsSpec.model_validate(given)


def items(prompts: PromptsSpec, banks: dict[str, Bank], n: int) -> list[Item]:
    return pair(prompts, banks, n, words)


def demonstrations(text: str) -> list[tuple[str, str]]:
    """(query, answer) of each shot of an ICL prompt."""
    shots = text.split("\n\n")[:-1]
    return [(a.removeprefix("Q: "), b.removeprefix("A: ")) for a, b in (shot.split("\n") for shot in shots)]


# Items


def test_items_are_targets_by_themselves_each_once() -> None:
    found = items(spec(), maps(), 24)
    assert len({item.target.id for item in found}) == 24
    assert all(item.donor is item.target and item.other_donor is None for item in found)
    assert {item.occurrence for item in found} == {0}
    assert summarise(found, 24, words).distinct_pairs == 24


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**40), st.integers(1, 20), st.integers(0, 4))
def test_more_items_only_append(seed: int, n: int, more: int) -> None:
    prompts = spec(
        seed=seed,
        templates={"icl": {**ICL, "shots": 3, "permute": True}},
        roles={"icl": {"of": "target", "template": "icl"}, "other": {"bank": "b", "differ": ["group"]}},
    )
    assert items(prompts, maps(), n) == items(prompts, maps(), n + more)[:n]


def test_trap_34_more_items_than_targets_is_refused_with_the_number() -> None:
    with pytest.raises(ConfigurationError, match=r"at most 24 items, which is how many targets.*got 25"):
        items(spec(), maps(), 25)


# Templates


def test_shots_are_other_prompts_of_the_group_and_split() -> None:
    prompts = spec(
        targets={"bank": "b", "split": "test", "template": "icl"},
        templates={"icl": {**ICL, "shots": 4, "split": "extract"}},
    )
    for item in items(prompts, maps(), 8):
        shown = demonstrations(item.target.text)
        assert len(dict(shown)) == 4
        for asked, answer in shown:
            group, _, number = asked.split()
            assert group == item.group and int(number) % 3 == 0
            assert answer == f"{group} answer {number}"
        assert item.target.text.endswith(f"Q: {item.target.source}\nA:")


def test_a_query_is_never_among_its_own_shots() -> None:
    prompts = spec(
        targets={"bank": "b", "template": "icl"}, templates={"icl": {**ICL, "shots": 11, "split": "all"}}
    )
    for item in items(prompts, maps(), 24):
        queries = [query for query, _ in demonstrations(item.target.text)]
        assert len(set(queries)) == 11 and item.target.source not in queries


def test_shots_of_every_group_where_asked() -> None:
    prompts = spec(
        targets={"bank": "b", "template": "mixed"},
        templates={"mixed": {**ICL, "shots": 23, "groups": "all"}},
    )
    for item in items(prompts, maps(), 24):
        queries = [query for query, _ in demonstrations(item.target.text)]
        assert {query.split()[0] for query in queries} == {"up", "down"}
        assert len(set(queries)) == 23 and item.target.source not in queries


def test_equal_texts_under_two_ids_are_shown_once_and_never_give_the_query_away() -> None:
    rows = [
        {"id": f"p{i}", "text": f"w{i // 2}", "facts": {"answer": f"a{i // 2}"}} for i in range(8)
    ]  # each text twice
    prompts = spec(targets={"bank": "b", "template": "icl"}, templates={"icl": {**ICL, "shots": 3}})
    for item in items(prompts, bank(*rows), 8):
        queries = [query for query, _ in demonstrations(item.target.text)]
        assert len(set(queries)) == 3 and item.target.source not in queries


def test_all_templates_show_an_item_the_same_shots() -> None:
    prompts = spec(
        targets={"bank": "b", "template": "icl"},
        roles={
            "permuted": {"of": "target", "template": "permuted"},
            "few": {"of": "target", "template": "few"},
        },
        templates={
            "icl": {**ICL, "shots": 5},
            "permuted": {**ICL, "shots": 5, "permute": True},
            "few": {**ICL, "shots": 2},
        },
    )
    for item in items(prompts, maps(), 24):
        clean = demonstrations(item.target.text)
        permuted = demonstrations(item.roles["permuted"].text)
        assert [query for query, _ in permuted] == [query for query, _ in clean]
        assert sorted(answer for _, answer in permuted) == sorted(answer for _, answer in clean)
        assert all(one[1] != other[1] for one, other in zip(clean, permuted, strict=True))
        assert demonstrations(item.roles["few"].text) == clean[:2]


def test_the_seed_draws_the_shots() -> None:
    def texts(seed: int) -> list[str]:
        prompts = spec(
            seed=seed, targets={"bank": "b", "template": "icl"}, templates={"icl": {**ICL, "shots": 3}}
        )
        return sorted(item.target.text for item in items(prompts, maps(), 24))

    assert texts(0) == texts(0) != texts(1)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from("abcdef"), min_size=2, max_size=12), st.randoms(use_true_random=False))
def test_answers_dealt_anew_are_the_same_ones_and_as_few_stay_as_can(answers: list[str], random: Any) -> None:
    rank = [random.random() for _ in answers]
    dealt = dealt_anew(answers, rank)
    kept = sum(one == other for one, other in zip(answers, dealt, strict=True))
    assert sorted(dealt) == sorted(answers)
    assert kept == max(0, 2 * max(map(answers.count, answers)) - len(answers))


def test_permuting_differs_from_item_to_item() -> None:
    prompts = spec(
        targets={"bank": "b", "template": "icl", "groups": ["up"]},
        templates={"icl": {**ICL, "shots": 11, "permute": True}},
    )
    moves = {
        tuple(
            int(answer.split()[-1]) - int(query.split()[-1])
            for query, answer in demonstrations(i.target.text)
        )
        for i in items(prompts, maps(), 12)
    }
    assert len(moves) == 12


def test_a_template_keeps_ids_groups_splits_and_facts() -> None:
    plain = {item.target.id: item.target for item in items(spec(), maps(), 24)}
    prompts = spec(targets={"bank": "b", "template": "icl"}, templates={"icl": {**ICL, "shots": 2}})
    for item in items(prompts, maps(), 24):
        before = plain[item.target.id]
        assert (item.group, item.target.split, item.target.facts) == (
            before.group,
            before.split,
            before.facts,
        )
        assert item.target.source == before.text != item.target.text


def test_braces_numbers_and_the_first_of_a_list_are_written() -> None:
    rows = {"id": "x", "text": "t", "facts": {"answer": ["yes", "yea"], "year": 1969, "share": 0.5}}
    prompts = spec(
        targets={"bank": "b", "template": "full"},
        templates={"full": {"query": "{{{text}}} {answer} {year} {share} {answer}"}},
    )
    (item,) = items(prompts, bank(rows), 1)
    assert item.target.text == "{t} yes 1969 0.5 yes"


def test_a_template_speaks_the_language_of_the_prompts() -> None:
    template = {"query": {"organism": "input {text} output", "english": "Q: {text}"}}
    more = {"targets": {"bank": "b", "template": "t"}, "templates": {"t": template}}
    (item,) = items(spec(**more), bank({"id": "w"}), 1)
    (other,) = items(spec(**{**more, "language": "organism"}), bank({"id": "w"}), 1)
    assert (item.target.text, other.target.text) == ("Q: w", "input w output")


CHAIN = {
    "id": "c",
    "text": "The rival of the mentor of Ada is",
    "roles": {"e1": (27, 30), "r1": (13, 26), "hop": (13, 30)},
    "facts": {
        "e1": "Ada",
        "one": "The mentor of Ada is",
        "two": "The rival of Bo is",
        "bridge": ["Bo", "Bob"],
    },
}


def marked(prompt: Prompt) -> dict[str, str]:
    return {name: prompt.text[start:end] for name, (start, end) in prompt.spans.items()}


def test_marked_parts_move_with_the_text() -> None:
    other = {**CHAIN, "id": "d", "text": "x" * 40}
    prompts = spec(
        targets={"bank": "b", "template": "icl"},
        templates={"icl": {"query": "say: {text}.", "shot": "({text}) ", "shots": 1}},
    )
    found = {item.target.id: item.target for item in items(prompts, bank(CHAIN, other), 2)}
    assert found["c"].text == f"({'x' * 40}) say: {CHAIN['text']}."
    assert marked(found["c"]) == {"e1": "Ada", "r1": "the mentor of", "hop": "the mentor of Ada"}


def test_of_a_query_made_of_facts_what_stands_there_once_is_marked() -> None:
    roles = {name: {"of": "target", "template": name} for name in ("one", "two", "twice")}
    templates = {"one": {"query": "{one}"}, "two": {"query": "{two}"}, "twice": {"query": "{e1} {e1} Adam"}}
    (item,) = items(spec(roles=roles, templates=templates), bank(CHAIN), 1)
    one = marked(item.roles["one"])
    assert {name: one[name] for name in ("e1", "r1", "hop")} == {
        "e1": "Ada",
        "r1": "The mentor of",  # with a capital letter in front
        "hop": "The mentor of Ada",
    }
    assert marked(item.roles["two"])["bridge"] == "Bo"
    assert "e1" not in marked(item.roles["two"])
    assert "e1" not in marked(item.roles["twice"])  # twice, and no whole word in Adam


def test_means_over_a_set_and_door_checks_see_prompts_as_written() -> None:
    prompts = spec(
        targets={"bank": "b", "template": "icl"},
        roles={"bare": {"of": "target"}, "shown": {"bank": "b", "template": "icl", "groups": ["up"]}},
        templates={"icl": {**ICL, "shots": 2}},
    )
    chosen = choose(prompts, maps())
    assert all(len(demonstrations(prompt.text)) == 2 for prompt in (*chosen.targets, *chosen.roles["shown"]))
    assert [prompt.text for prompt in chosen.roles["bare"]] == [prompt.source for prompt in chosen.targets]
    assert {prompt.group for prompt in chosen.roles["shown"]} == {"up"}
    assert chosen.donors == ()


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ({"query": "Q: {answr}"}, r"b\.jsonl: prompts\.templates\.t\.query: prompt 'up0' \(and 23 more\) "
         r"states no fact 'answr'; expected one of text, answer; did you mean 'answer'\?"),
        ({**ICL, "shots": 12}, r"templates\.t\.shots: expected at most 11 shots.*group 'up' of 'b'.*got 12"),
        ({**ICL, "shots": 5, "split": "validate"}, r"at most 4 shots.*in split validate.*got 5"),
        ({**ICL, "shots": 24, "groups": "all"}, r"23 shots, which is how many prompts 'b' has beside"),
    ],
)  # fmt: skip
def test_what_a_bank_does_not_give_is_told_with_it(template: dict[str, Any], message: str) -> None:
    prompts = spec(targets={"bank": "b", "template": "t"}, templates={"t": template})
    with pytest.raises(ConfigurationError, match=message):
        items(prompts, maps(), 3)


def test_all_faults_of_all_templates_are_told_at_once() -> None:
    prompts = spec(
        targets={"bank": "b", "template": "a"},
        roles={"x": {"of": "target", "template": "c"}},
        templates={"a": {"query": "{one}"}, "c": {"query": "{two} {three}"}},
    )
    with pytest.raises(ConfigurationError) as caught:
        choose(prompts, maps())
    assert [problem.message.split("'")[3] for problem in caught.value.problems] == ["one", "two", "three"]


def test_a_fact_that_is_true_or_false_is_no_word() -> None:
    prompts = spec(targets={"bank": "b", "template": "t"}, templates={"t": {"query": "{far}"}})
    with pytest.raises(ConfigurationError, match="the fact 'far' of prompt 'x' is true or false, not a word"):
        items(prompts, bank({"id": "x", "facts": {"far": True}}), 1)


@pytest.mark.parametrize(
    "text", ["{text", "text}", "{}", "{text!r}", "{text:3}", "{a.b}", "{A}", "{0}", "plain"]
)
def test_a_form_that_cannot_be_filled_in_is_refused(text: str) -> None:
    with pytest.raises(TemplateError, match=r"expected \{text\} or \{FACT\}"):
        Form.read(text)


# Relations


def test_relations_read_facts_groups_and_lists() -> None:
    target, alias, apart, silent = lines(
        {"id": "t", "facts": {"bridge": ["USA", "America"], "e1": "x", "far": True}},
        {"id": "a", "facts": {"bridge": ["america"], "e1": "y", "far": 1}},
        {"id": "b", "group": "h", "facts": {"bridge": ["Mali"], "e1": "X", "far": True}},
        {"id": "c", "facts": {"e1": "z"}},
    )
    pool = (target, alias, apart, silent)

    def ids(agree: Sequence[str] = (), differ: Sequence[str] = ()) -> str:
        return "".join(prompt.id for prompt in Relation(tuple(agree), tuple(differ)).among(pool, target))

    assert ids(agree=["bridge"]) == "a"
    assert ids(differ=["bridge"]) == "b"  # what is not stated neither agrees nor differs
    assert ids(agree=["group"]) == "ac"
    assert ids(agree=["group"], differ=["e1", "bridge"]) == ""
    assert ids(agree=["far"]) == "b"  # true is not 1
    assert ids(agree=["e1"]) == "b"


def test_a_related_role_holds_for_every_item_or_says_why_it_is_missing() -> None:
    rows = [
        {"id": f"p{i}", "facts": {"bridge": f"b{i % 3}" if i < 9 else "alone", "e1": f"e{i}"}}
        for i in range(10)
    ]
    roles = {"twin": {"bank": "b", "agree": ["bridge"], "differ": ["e1"]}}
    found = items(spec(roles=roles), bank(*rows), 10)
    for item in found:
        if item.target.id == "p9":
            assert item.missing == {"twin": "no prompt of the role 'twin' agrees in bridge and differs in e1"}
            assert "twin" not in item.roles
        else:
            twin = item.roles["twin"]
            assert twin.facts["bridge"] == item.target.facts["bridge"] and twin.id != item.target.id
    assert len({item.roles["twin"].id for item in found if item.roles}) > 3


def test_roles_take_the_targets_split_where_asked() -> None:
    roles = {"other": {"bank": "b", "split": "target", "differ": ["group"]}}
    for split in ("extract", "test"):
        for item in items(spec(targets={"bank": "b", "split": split}, roles=roles), maps(), 8):
            assert item.roles["other"].split == split


PAIRED = [
    {"id": f"{mode}{i}", "group": mode, "facts": {"pair": i, "size": i % 4}}
    for mode in ("yes", "no")
    for i in range(12)
]


@pytest.mark.parametrize("replace", [True, False])
@pytest.mark.parametrize("matched", [True, False])
def test_donors_agree_with_their_targets(replace: bool, matched: bool) -> None:
    prompts = spec(
        "pairs",
        donors={"bank": "b", "groups": ["yes"], "agree": ["size"], "differ": ["pair"]},
        targets={"bank": "b", "groups": ["no"]},
        pairing={"replace": replace, "length_matched": matched},
    )
    banks = bank(*PAIRED)
    limit = available(prompts, choose(prompts, banks))
    n = 40 if limit is None else limit
    assert n >= 12  # without replacement as many as there are
    found = items(prompts, banks, n)
    for item in found:
        assert item.donor.facts["size"] == item.target.facts["size"]
        assert item.donor.facts["pair"] != item.target.facts["pair"]
        other = item.other_donor
        assert other is not None and other.facts["size"] == item.target.facts["size"]
    assert items(prompts, banks, 7) == found[:7]
    if not replace:
        assert len({item.donor.id for item in found}) == len({item.target.id for item in found}) == n


def test_matched_pairs_are_all_found_and_more_are_refused_with_the_number() -> None:
    prompts = spec(
        "pairs",
        donors={"bank": "b", "groups": ["yes"], "agree": ["pair"]},
        targets={"bank": "b", "groups": ["no"]},
        pairing={"replace": False},
    )
    found = items(prompts, bank(*PAIRED), 12)
    assert all(item.donor.facts["pair"] == item.target.facts["pair"] for item in found)
    with pytest.raises(ConfigurationError, match=r"at most 12 items.*a donor agrees in pair.*got 13"):
        items(prompts, bank(*PAIRED), 13)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.frozensets(st.sampled_from("abcdefg")), max_size=8))
def test_as_many_pairs_are_made_as_there_can_be(choices: list[frozenset[str]]) -> None:
    fitting = {str(index): sorted(chosen) for index, chosen in enumerate(choices)}
    held = maximum_matching(fitting)
    table = [[partner in chosen for partner in "abcdefg"] for chosen in choices]
    best = maximum_bipartite_matching(
        csr_array(np.array(table, dtype=int).reshape(-1, 7)), perm_type="column"
    )
    assert len(held) == (best >= 0).sum()
    assert len(set(held.values())) == len(held)
    assert all(partner in fitting[one] for one, partner in held.items())


def test_targets_without_a_fitting_donor_are_not_drawn() -> None:
    rows = [*PAIRED, {"id": "no_more", "group": "no", "facts": {"pair": 99}}]
    prompts = spec(
        "pairs",
        donors={"bank": "b", "groups": ["yes"], "agree": ["pair"]},
        targets={"bank": "b", "groups": ["no"]},
    )
    assert "no_more" not in {item.target.id for item in items(prompts, bank(*rows), 60)}


def test_a_role_of_the_donor_is_the_donor_otherwise_written() -> None:
    prompts = spec(
        "pairs",
        donors={"bank": "b", "groups": ["yes"], "agree": ["pair"]},
        targets={"bank": "b", "groups": ["no"], "template": "loud"},
        roles={"asked": {"of": "donor", "template": "loud"}},
        templates={"loud": {"query": "{text}!"}},
    )
    for item in items(prompts, bank(*PAIRED), 12):
        assert item.roles["asked"].text == f"{item.donor.text}!"
        assert item.target.text.endswith("!") and not item.donor.text.endswith("!")


def test_a_donor_otherwise_written_still_never_stands_in_for_itself() -> None:
    prompts = spec(
        "pairs",
        donors={"bank": "b", "groups": ["yes"]},
        targets={"bank": "b", "groups": ["no"]},
        roles={"again": {"bank": "b", "groups": ["yes"], "template": "loud"}},
        templates={"loud": {"query": "{text}!"}},
    )
    assert all(item.roles["again"].id != item.donor.id for item in items(prompts, bank(*PAIRED), 60))


# The prompts that come with the program


@pytest.mark.parametrize("language", ["organism", "english"])
@pytest.mark.parametrize("split", ["extract", "validate", "test"])
@pytest.mark.parametrize("name", ["in_context", "two_hop", "sycophancy", "confidence"])
def test_ready_prompts_hold_in_every_split(name: str, split: str, language: str) -> None:
    overrides = [f"prompts={name}", f"prompts.language={language}", f"prompts.targets.split={split}"]
    if name in ("sycophancy", "confidence"):
        overrides.append(f"prompts.donors.split={split}")
    prompts = ready(*overrides)
    banks = read_banks(prompts, config_folders(None))
    n = available(prompts, choose(prompts, banks))
    assert n is not None and n >= 12
    found = items(prompts, banks, n)
    assert {item.target.split for item in found} == {split}
    for role in prompts.roles:
        held = sum(role in item.roles for item in found)
        if (language, role) == ("english", "same_bridge"):
            assert held >= 16  # a third of the questions, as the file says
        else:
            assert held >= 0.95 * n


def ready(*overrides: str) -> PromptsSpec:
    mapping = compose(["+experiment=n300_kv_only", *overrides], None).mapping["prompts"]
    return PromptsSpec.model_validate(mapping)


def test_demonstrations_of_the_organism_are_in_the_form_of_its_grammar() -> None:
    prompts = ready("prompts=in_context", "prompts.language=organism")
    for item in items(prompts, read_banks(prompts, config_folders(None)), 48):
        written = item.target.text.split()
        shown = written[1:-3:5]
        assert written == [*shots(item.group, shown), *query(item.target.source)]
        assert item.target.facts["answer"] == MAPS[item.group][item.target.source]
        permuted = item.roles["permuted"].text.split()
        assert all(MAPS[item.group][word] != permuted[5 * i + 3] for i, word in enumerate(shown))


# At the door and in the plan

EXPERIMENT = """
# @package _global_
defaults: [_self_, {{override /prompts: {prompts}}}]
experiment: {{name: mine, n: {n}}}
readout: {{mine: {{kind: next_token, tokens: "fact:answer"}}}}
readouts: [mine]
contrasts: {{family: none, primary: mine}}
conditions:
  baseline: {{}}
"""


def experiment(folder: Path, conditions: str = "", prompts: str = "two_hop", n: int = 6) -> Path:
    (folder / "experiment").mkdir(exist_ok=True)
    text = EXPERIMENT.strip().format(prompts=prompts, n=n) + "\n" + conditions
    (folder / "experiment" / "mine.yaml").write_text(text, encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("{prompt: donor}", r"conditions\.it\.prompt: prompts of kind items have no donors, only roles "
         r"\(donor:hop_1, donor:hop_2, .*got 'donor'"),
        ("{prompt: donor+target}", r"it\.prompt: prompts of kind items have no donors"),
        ("{w: {site: resid_post, layers: 3, value: donor}}", r"it\.w\.value: prompts of kind items.*'donor'; "
         "the row's own prompt is self"),
        ("{w: {site: resid_post, layers: 3, value: other_donor}}", r"value: .*no donors.*'other_donor'"),
        ("{w: {site: resid_post, layers: 3, value: shuffled_window}}", r"value: .*no donors"),
        ("{w: {site: resid_post, layers: 3, value: 'mean:donors'}}", r"set of a mean \(targets, hop_1,"),
    ],
)  # fmt: skip
def test_words_for_donors_are_refused_of_items(tmp_path: Path, condition: str, message: str) -> None:
    told = faults("+experiment=mine", folder=experiment(tmp_path, f"  it: {condition}\n"))
    assert re.search(message, told), told


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("+prompts.donors={bank: two_hop}", "prompts.donors: prompts of kind items have no donors; expected"),
        ("+prompts.pairing.replace=false", "prompts.pairing: prompts of kind items are in no pairs"),
        ("prompts.kind=pairs", "prompts.donors: missing: expected a value for 'donors'"),
        ("experiment.n=193", "at most 192 items, which is how many targets there are, each once; got 193"),
        ("+prompts.targets.template=hop_3", "template: expected a template of the prompts 'two_hop' (hop_1,"),
        ("+prompts.targets.template=hop_3", "got 'hop_3'; did you mean 'hop_"),
        ("prompts.templates.hop_1.query='{hop1}'", "states no fact 'hop1'"),
        ("prompts.templates.hop_1.query='{hop_1'", "templates.hop_1.query: expected {text} or {FACT}"),
        ("prompts.templates.hop_1.query={english: '{text}'}", "expected a text for the language 'organism'"),
        ("+prompts.templates.hop_1.permute=true", "hop_1.permute: expected shots: 10"),
        ("+prompts.templates.hop_1.shot='{text}'", "hop_1.shot: expected shots: 10"),
        ("+prompts.templates.hop_1.shots=2", "hop_1.shot: expected how one of the shots is written"),
        ("+prompts.roles.x={split: test}", "roles.x.bank: missing: expected a bank that the role"),
        ("+prompts.roles.x={of: target, bank: two_hop}", "bank: a role that is the item's own target"),
        ("+prompts.roles.x={of: donor}", "roles.x.of: prompts of kind items have no donors"),
        ("+prompts.roles.target={of: target}", "'target' is the name of a prompt already"),
        ("prompts.roles.same_bridge.agree=[brige]", "states the fact 'brige'; they state group, answer,"),
        ("prompts.roles.same_bridge.agree=[brige]", "did you mean 'bridge'?"),
        ("prompts.roles.same_bridge.differ=[bridge]", "not one of the 192 prompts of the role 'same_bridge' "
         "agrees in bridge and differs in bridge with any of the 192 targets"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told_at_the_door(tmp_path: Path, override: str, message: str) -> None:
    assert message in faults("+experiment=mine", override, folder=experiment(tmp_path))


def test_several_mistakes_are_told_at_once(tmp_path: Path) -> None:
    told = faults(
        "+experiment=mine",
        "+prompts.targets.template=nowhere",
        "+prompts.templates.hop_1.permute=true",
        "+prompts.roles.x={of: donor}",
        folder=experiment(tmp_path),
    )
    assert all(part in told for part in ("'nowhere'", "hop_1.permute", "roles.x.of"))


def test_facts_of_donors_are_no_words_of_items(tmp_path: Path) -> None:
    told = faults("+experiment=mine", "readout.mine.tokens='fact:donor/answer'", folder=experiment(tmp_path))
    assert "expected the fact of a prompt that items have (target, hop_1" in told


def plan_of(folder: Path, *overrides: str) -> list[Trial]:
    found = design("+experiment=mine", *overrides, folder=folder)
    return list(prepare(found, folder).plan.trials)


def test_a_plan_of_items_runs_roles_and_reads_facts_of_them(tmp_path: Path) -> None:
    conditions = (
        "  first: {prompt: donor:hop_1}\n"
        "  swapped: {w: {site: resid_post, layers: 3, value: donor:null_item, positions: role:e1.last}}\n"
    )
    trials = plan_of(experiment(tmp_path, conditions))
    assert {trial.invalid for trial in trials} == {None}
    by = {(trial.condition, trial.item): trial for trial in trials}
    for trial in trials:
        assert trial.donor == trial.target
        assert trial.row.stream == by["baseline", trial.item].row.stream
    assert by["first", "0000"].row.ids == by["first", "0000"].donor_ids["hop_1"]
    swapped = by["swapped", "0000"]
    assert set(swapped.row.sources) == {"null_item"} and {"e1", "null_item/e1"} <= set(swapped.row.spans)


def test_trap_34_an_item_without_its_role_is_invalid_with_the_reason(tmp_path: Path) -> None:
    rows = [
        {
            "id": f"p{i}",
            "group": "g",
            "text": f"{word} is",
            "facts": {"bridge": str(min(i, 1)), "answer": "ada"},
        }
        for i, word in enumerate(("ada", "boris", "clara"))
    ]
    path = tmp_path / "three.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    read_bank("three", path)  # which is sound
    conditions = (
        "  twin: {prompt: donor:twin}\n"
        "  swap: {w: {site: resid_post, layers: 3, value: donor:twin}}\n"
        "  under: {w: {site: resid_post, layers: 3, value: self, under: swap}}\n"
    )
    yaml = f"name: three\nkind: items\nlanguage: organism\ntargets: {{bank: {path}}}\nroles:\n"
    (tmp_path / "prompts").mkdir()
    twin = f"  twin: {{bank: {path}, agree: [bridge]}}\n"
    (tmp_path / "prompts" / "three.yaml").write_text(yaml + twin, encoding="utf-8")
    trials = plan_of(experiment(tmp_path, conditions, "three", 3))
    reasons = {(t.condition, t.target): t.invalid for t in trials}
    assert [reasons["baseline", f"p{i}"] for i in range(3)] == [None, None, None]
    for condition in ("twin", "swap", "under"):
        assert reasons[condition, "p0"] == "no prompt of the role 'twin' agrees in bridge"
        assert reasons[condition, "p1"] is None and reasons[condition, "p2"] is None
    told = faults(
        "+experiment=mine", "+prompts.targets.groups=[g]", "prompts.roles.twin.agree=[answer,bridge]",
        "+prompts.roles.twin.differ=[group]", folder=tmp_path,
    )  # fmt: skip
    assert "differs in group with any of the 3 targets" in told


def test_words_that_the_tokenizer_does_not_know_are_told_of_templates_too(tmp_path: Path) -> None:
    trials = plan_of(
        experiment(tmp_path), "+prompts.targets.template=odd", "+prompts.templates.odd.query='zyx {text}'"
    )
    assert {trial.invalid for trial in trials} == {"words that the tokenizer does not know: zyx"}


def test_a_chat_template_goes_around_what_the_template_wrote(tmp_path: Path) -> None:
    conditions = "  it: {w: {site: resid_post, layers: 3, value: self, positions: role:claim.last}}\n"
    folder = experiment(tmp_path, conditions, "sycophancy")
    overrides = (
        "readouts=[behaviour]", "contrasts.primary=score", "model.chat_template=true",
        "+prompts.targets.template=odd", "+prompts.templates.odd.query='{text}'",
    )  # fmt: skip
    spans = [trial.row.spans for trial in plan_of(folder, *overrides) if trial.condition == "it"]
    plain = [trial.row.spans for trial in plan_of(folder, *overrides[:3]) if trial.condition == "it"]
    assert spans == plain and all("claim" in span for span in spans)


def test_a_template_is_a_typed_part_of_the_configuration() -> None:
    with pytest.raises(ValueError, match="greater than or equal to 0"):
        TemplateSpec(shots=-1)
    assert "prompts.templates.hop_1.shot_s: unknown key" in faults(
        "+experiment=n300_kv_only", "prompts=two_hop", "+prompts.templates.hop_1.shot_s=3"
    )
