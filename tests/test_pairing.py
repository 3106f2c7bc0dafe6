"""Banks are read strictly; pairs are deterministic and prefix-stable."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.config.errors import ConfigurationError
from runner.config.folders import conf_dir
from runner.config.prompts.spec import BankChoice, DonorsSpec, PairingSpec, PromptsSpec, RoleSpec
from runner.prompts.banks import Bank, Prompt, find_bank, read_bank
from runner.prompts.pairing import pair, read_banks, summarise


def words(text: str) -> int:
    return len(text.split())


def bank(name: str, size: int, lengths: Sequence[int] = (5,)) -> Bank:
    prompts = tuple(
        Prompt(f"{name}{i}", f"g{i % 2}", " ".join([f"{name}{i}"] * lengths[i % len(lengths)]))
        for i in range(size)
    )
    return Bank(name, Path(name), "0", prompts)


def spec(*, replace: bool = True, matched: bool = False, seed: int = 42) -> PromptsSpec:
    return PromptsSpec(
        name="p",
        kind="pairs",
        language="organism",
        donors=DonorsSpec(bank="d"),
        targets=BankChoice(bank="t"),
        roles={"near": RoleSpec(bank="n", match="length"), "any": RoleSpec(bank="n")},
        pairing=PairingSpec(replace=replace, length_matched=matched),
        seed=seed,
    )


BANKS = {"d": bank("d", 20, (3, 6, 9)), "t": bank("t", 30, (2, 4, 8)), "n": bank("n", 25, (1, 3, 5, 7, 9))}


def write_bank(path: Path, *rows: object) -> Path:
    path.write_text(
        "".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows), encoding="utf-8"
    )
    return path


@settings(max_examples=25, deadline=None)
@given(st.booleans(), st.booleans(), st.integers(0, 2**40), st.integers(1, 19), st.integers(0, 1))
def test_more_items_only_append(replace: bool, matched: bool, seed: int, n: int, more: int) -> None:
    prompts = spec(replace=replace, matched=matched, seed=seed)
    assert pair(prompts, BANKS, n, words) == pair(prompts, BANKS, n + more, words)[:n]


def test_seed_decides_the_pairs() -> None:
    first = [(i.donor.id, i.target.id) for i in pair(spec(seed=0), BANKS, 15, words)]
    second = [(i.donor.id, i.target.id) for i in pair(spec(seed=1), BANKS, 15, words)]
    assert first != second


def test_trap_17_seed_zero_is_a_seed_of_its_own() -> None:
    pairs = {seed: tuple(i.donor.id for i in pair(spec(seed=seed), BANKS, 15, words)) for seed in (0, 42)}
    assert pairs[0] != pairs[42]


def test_without_replacement_no_prompt_recurs() -> None:
    for matched in (False, True):
        items = pair(spec(replace=False, matched=matched), BANKS, 20, words)
        assert len({i.donor.id for i in items}) == 20
        assert len({i.target.id for i in items}) == 20


def test_trap_34_more_items_than_the_bank_holds_is_an_error_with_the_numbers() -> None:
    with pytest.raises(ConfigurationError, match=r"at most 20 items.*20 donors, 30 targets.*got 21"):
        pair(spec(replace=False), BANKS, 21, words)


def test_length_role_is_as_near_as_the_bank_allows() -> None:
    for item in pair(spec(), BANKS, 40, words):
        gap = abs(words(item.roles["near"].text) - words(item.donor.text))
        assert gap == min(abs(words(p.text) - words(item.donor.text)) for p in BANKS["n"].prompts)


def test_ties_in_length_are_not_always_the_same_prompt() -> None:
    chosen = {item.roles["near"].id for item in pair(spec(), BANKS, 60, words)}
    assert len(chosen) > 5


def test_length_matched_pairs_are_nearer_than_random_ones() -> None:
    def gap(matched: bool) -> float:
        items = pair(spec(matched=matched), BANKS, 60, words)
        return sum(abs(words(i.donor.text) - words(i.target.text)) for i in items) / 60

    assert gap(True) < gap(False) / 1.5


def test_other_donor_is_never_the_own_donor() -> None:
    for item in pair(spec(), BANKS, 100, words):
        assert item.other_donor is not None
        assert item.other_donor.id != item.donor.id


def test_single_donor_has_no_other() -> None:
    items = pair(spec(), {**BANKS, "d": bank("d", 1)}, 3, words)
    assert [item.other_donor for item in items] == [None, None, None]


def test_occurrence_counts_equal_pairs() -> None:
    items = pair(spec(), {**BANKS, "d": bank("d", 2), "t": bank("t", 2)}, 30, words)
    seen: dict[tuple[str, str], int] = {}
    for item in items:
        key = (item.donor.id, item.target.id)
        assert item.occurrence == seen.get(key, 0)
        seen[key] = item.occurrence + 1
    assert max(seen.values()) > 1


def test_items_carry_padded_ids_and_the_target_group() -> None:
    items = pair(spec(), BANKS, 12, words)
    assert [items[0].item_id, items[11].item_id] == ["0000", "0011"]
    assert all(item.group == item.target.group for item in items)


def test_trap_28_distinct_donors_targets_and_pairs_are_reported() -> None:
    items = pair(spec(), BANKS, 300, words)
    summary = summarise(items, 300, words)
    assert (summary.items, summary.asked) == (300, 300)
    assert summary.distinct_donors == len({i.donor.id for i in items}) <= 20
    assert summary.distinct_targets == len({i.target.id for i in items}) <= 30
    assert summary.distinct_pairs == len({(i.donor.id, i.target.id) for i in items}) < 300
    expected = sum(words(i.donor.text) - words(i.target.text) for i in items) / 300
    assert summary.donor_minus_target == pytest.approx(expected)
    assert set(summary.role_minus_donor) == {"near", "any"}


def test_draws_are_spread_over_the_bank() -> None:
    items = pair(spec(), BANKS, 300, words)
    assert len({i.donor.id for i in items}) == 20
    assert len({i.target.id for i in items}) == 30


def test_groups_limit_the_bank_and_unknown_ones_are_named() -> None:
    source = bank("d", 4)
    assert {p.group for p in source.only(("g1",))} == {"g1"}
    with pytest.raises(ConfigurationError, match=r"group of the bank \(g0, g1\), got 'g9'"):
        source.only(("g1", "g9"))
    with pytest.raises(ConfigurationError, match="at least one group"):
        source.only(())


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (['{"id": "a"\n'], r":1: expected one JSON object a line"),
        ([{"id": "a", "group": "g"}], r":1: text: .*missing"),
        ([{"id": "a", "group": "g", "txt": "x"}], r"did you mean 'txt'"),
        ([{"id": "a", "group": "g", "text": "  "}], r":1: text: .*not empty"),
        ([{"id": 3, "group": "g", "text": "x"}], r":1: id: expected a text, got 3"),
        ([{"id": "a", "group": "g", "text": "x", "tokens": 0}], r":1: tokens: .*at least 1"),
        ([{"id": "a", "group": "g", "text": "x", "tokns": 3}], r"unknown key.*did you mean 'tokens'"),
        (
            [{"id": "a", "group": "g", "text": "x"}, {"id": "a", "group": "g", "text": "y"}],
            r":2: id: .*line 1",
        ),
        (["[1]\n"], r":1: expected a JSON object"),
        (["[" * 100_000 + "\n"], r":1: expected one JSON object a line"),
        (['{"tokens": ' + "1" * 5000 + "}\n"], r":1: expected one JSON object a line"),
        (
            [{"id": "a", "group": "g", "text": "ab\ud83d"}],
            r":1: text: expected text that UTF-8 can hold.*surrogate pair \(\\ud83d\) as character 3",
        ),
        ([{"id": "\udc00", "group": "g", "text": "x"}], r":1: id: expected text that UTF-8 can hold"),
        ([], r"at least one prompt"),
    ],
)
def test_faults_of_a_bank_are_told_with_their_line(tmp_path: Path, rows: list[object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        read_bank("b", write_bank(tmp_path / "b.jsonl", *rows))


LINE = {"id": "a", "group": "g", "text": "the rival of the mentor of ada is"}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"split": "train"}, r":1: split: expected one of extract, validate, test, got \"train\""),
        ({"split": "tests"}, r"split: .*did you mean 'test'"),
        ({"split": None}, r"split: .*got null"),
        ({"split": ["test"]}, r"split: .*got \[\"test\"\]"),
        ({"roles": [1, 2]}, r":1: roles: expected a mapping of names to \[start, end\]"),
        ({"roles": {"E1": [4, 9]}}, r"roles\.E1: expected a name of small letters"),
        ({"roles": {"e1.last": [4, 9]}}, r"roles\.e1\.last: expected a name of small letters"),
        ({"roles": {"e\ud83d": [4, 9]}}, r"roles\.e\\ud83d: expected a name of small letters"),
        ({"roles": {"e1": "ada"}}, r"roles\.e1: expected \[start, end\] in characters.*got \"ada\""),
        ({"roles": {"e1": [4]}}, r"roles\.e1: expected \[start, end\]"),
        ({"roles": {"e1": [4, True]}}, r"roles\.e1: expected \[start, end\]"),
        ({"roles": {"e1": [4.0, 9]}}, r"roles\.e1: expected \[start, end\]"),
        ({"roles": {"e1": [9, 9]}}, r"roles\.e1: expected 0 <= start < end within the 33 characters"),
        ({"roles": {"e1": [-3, 9]}}, r"roles\.e1: expected 0 <= start < end"),
        ({"roles": {"e1": [4, 34]}}, r"roles\.e1: .*got \[4, 34\]"),
        ({"roles": {"e1": [3, 9]}}, r"roles\.e1: .*white space, got ' rival'"),
        ({"roles": {"e1": [4, 10]}}, r"roles\.e1: .*white space, got 'rival '"),
        ({"facts": "ada"}, r":1: facts: expected a mapping of names to what is known"),
        ({"facts": {"Answer": "x"}}, r"facts\.Answer: expected a name of small letters"),
        ({"facts": {"answer": []}}, r"facts\.answer: expected at least one text in the list"),
        ({"facts": {"answer": ""}}, r"facts\.answer: expected a text that is not empty"),
        ({"facts": {"answer": ["x", " "]}}, r"facts\.answer: expected a text that is not empty"),
        ({"facts": {"answer": ["x", 1]}}, r"facts\.answer: expected a text, a number, true, false or a list"),
        ({"facts": {"answer": None}}, r"facts\.answer: .*got null"),
        ({"facts": {"answer": {"a": 1}}}, r"facts\.answer: expected a text, a number"),
        ({"facts": {"answer": float("nan")}}, r"facts\.answer: .*got NaN"),
        ({"facts": {"answer": "\ud83d"}}, r"facts\.answer: expected text that UTF-8 can hold"),
        ({"rolls": {}}, r"rolls: unknown key; .*did you mean 'roles'"),
    ],
)
def test_faults_of_split_roles_and_facts_are_told(
    tmp_path: Path, more: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        read_bank("b", write_bank(tmp_path / "b.jsonl", LINE | more))


def test_a_key_given_twice_is_refused(tmp_path: Path) -> None:
    twice = '{"id": "a", "group": "g", "text": "ada is", "roles": {"e1": [0, 3], "e1": [4, 6]}}\n'
    with pytest.raises(ConfigurationError, match=r":1: expected keys that differ, got 'e1' twice"):
        read_bank("b", write_bank(tmp_path / "b.jsonl", twice))


def test_split_spans_and_facts_are_read_and_cannot_be_changed(tmp_path: Path) -> None:
    roles = {"e1": [27, 30], "r1": [17, 23], "hop_1": [13, 30]}
    facts = {
        "answer": ["bo", "Bo"],
        "balance": 20,
        "p_stop": 0.25,
        "goal": False,
        "bridge": "cy",
        "big": 10**400,
    }
    path = write_bank(
        tmp_path / "b.jsonl", LINE | {"split": "extract", "roles": roles, "facts": facts}, LINE | {"id": "b"}
    )
    first, second = read_bank("b", path).prompts
    assert first.split == "extract"
    assert {name: first.text[slice(*span)] for name, span in first.spans.items()} == {
        "e1": "ada",
        "r1": "mentor",
        "hop_1": "the mentor of ada",
    }
    assert dict(first.facts) == facts | {"answer": ("bo", "Bo")}
    assert first.facts["goal"] is False
    assert (second.split, dict(second.spans), dict(second.facts)) == (None, {}, {})
    for mapping in (first.spans, first.facts, second.facts):
        with pytest.raises(TypeError):
            mapping["new"] = 1  # type: ignore[index]
    assert len({first, second}) == 2


def test_split_limits_the_bank_together_with_groups() -> None:
    source = bank("d", 8)
    splits = ("extract", "test", None, "test")
    prompts = tuple(replace(p, split=splits[i % 4]) for i, p in enumerate(source.prompts))
    mixed = replace(source, prompts=prompts)
    assert mixed.only("all", "test") == (prompts[1], prompts[3], prompts[5], prompts[7])
    assert mixed.only(["g0"], "extract") == (prompts[0], prompts[4])
    assert mixed.only("all") == prompts
    message = r"split 'validate', none of the 4 chosen is; their splits: extract, 2 without one"
    with pytest.raises(ConfigurationError, match=message):
        mixed.only(["g0"], "validate")


def test_every_choice_of_prompts_can_name_a_split() -> None:
    banks = {
        name: replace(
            one,
            prompts=tuple(
                replace(p, split="test" if i % 3 else "extract") for i, p in enumerate(one.prompts)
            ),
        )
        for name, one in BANKS.items()
    }
    prompts = spec().model_copy(
        update={
            "donors": DonorsSpec(bank="d", split="extract"),
            "targets": BankChoice(bank="t", split="test"),
            "roles": {"near": RoleSpec(bank="n", split="extract"), "any": RoleSpec(bank="n")},
        }
    )
    items = pair(prompts, banks, 40, words)
    assert {item.donor.split for item in items} == {"extract"}
    assert {item.target.split for item in items} == {"test"}
    assert {item.roles["near"].split for item in items} == {"extract"}
    assert {item.roles["any"].split for item in items} == {"extract", "test"}


def test_all_faults_of_a_bank_are_told_at_once(tmp_path: Path) -> None:
    path = write_bank(tmp_path / "b.jsonl", "x\n", {"id": "a"}, {"id": "b", "group": "g", "text": ""})
    with pytest.raises(ConfigurationError) as caught:
        read_bank("b", path)
    assert [p.file.rpartition(":")[2] for p in caught.value.problems] == ["1", "2", "2", "3"]


def test_bank_that_is_not_utf_8_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "b.jsonl"
    path.write_bytes(b'{"id": "a", "group": "g", "text": "x"}\n{"id": "b", "group": "g", "text": "\xff"}\n')
    with pytest.raises(ConfigurationError, match=r":2: expected UTF-8, got byte 0xff"):
        read_bank("b", path)


def test_faults_of_a_bank_can_always_be_printed(tmp_path: Path) -> None:
    path = write_bank(tmp_path / "b.jsonl", {"id": "a\ud83d", "group": "g", "text": "x", "\ud83d": 1})
    with pytest.raises(ConfigurationError) as caught:
        read_bank("b", path)
    assert [problem.key for problem in caught.value.problems] == ["id", r"\ud83d"]
    assert str(caught.value).encode("utf-8")


def test_odd_unicode_survives(tmp_path: Path) -> None:
    text = "na\u00efve \u2014 \U0001f9e0 \u2028 e\u0301"
    path = write_bank(tmp_path / "b.jsonl", {"id": "a", "group": "g", "text": text})
    assert read_bank("b", path).prompts[0].text == text


def test_users_bank_comes_first_and_a_path_is_taken_as_it_stands(tmp_path: Path) -> None:
    folder = tmp_path / "prompts" / "banks" / "organism"
    folder.mkdir(parents=True)
    own = write_bank(folder / "donors.jsonl", {"id": "a", "group": "g", "text": "x"})
    assert find_bank("donors", "organism", (tmp_path, conf_dir())) == own
    assert find_bank("targets", "organism", (tmp_path, conf_dir())).is_relative_to(conf_dir())
    assert find_bank(str(own), "english", (conf_dir(),)) == own


def test_missing_bank_names_those_that_exist() -> None:
    with pytest.raises(ConfigurationError, match=r"got 'donor'; did you mean 'donors'"):
        find_bank("donor", "organism", (conf_dir(),))
    with pytest.raises(ConfigurationError, match="no such file"):
        find_bank("./nothing.jsonl", "organism", (conf_dir(),))


def test_faults_of_all_banks_are_told_together(tmp_path: Path) -> None:
    prompts = spec().model_copy(update={"donors": DonorsSpec(bank=str(tmp_path / "x.jsonl"))})
    with pytest.raises(ConfigurationError) as caught:
        read_banks(prompts, (conf_dir(),))
    assert len(caught.value.problems) == 3
