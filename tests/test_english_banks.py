"""The English banks of the later experiments: counts, splits, spans, pairs, and what no bank may contain.

Read as plain JSON, with no reader of the program between file and test.
"""

from __future__ import annotations

import itertools
import json
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

BANKS = Path(__file__).resolve().parents[1] / "conf" / "prompts" / "banks" / "english"
SPLITS = ("extract", "validate", "test")
Prompt = dict[str, Any]

# Per bank and group: the least number of prompts in each of the splits, in the order of SPLITS.
FAMILIES = (
    "state_capital",
    "song_spouse",
    "landmark_currency",
    "event_language",
    "book_country",
    "film_birthplace",
    "river_continent",
    "company_capital",
    "artwork_city",
    "creator_country",
)
IN_CONTEXT = ("antonym", "country_capital", "singular_plural", "translation", "sentiment")
TRANSLATED = ("spanish", "french", "german", "chinese")
CLASSES = ("harmful", "harmless")
LEAST: dict[str, dict[str, tuple[int, int, int]]] = {
    "two_hop": dict.fromkeys(FAMILIES, (5, 3, 5)),
    "in_context": dict.fromkeys(IN_CONTEXT, (32, 16, 32)),
    "refusal": {
        **{f"english_{name}": (128, 32, 64) for name in CLASSES},
        **{f"{language}_{name}": (0, 0, 32) for language in TRANSLATED for name in CLASSES},
        "neutral": (0, 32, 32),
    },
    "sycophancy": dict.fromkeys(("agree", "honest", "none"), (40, 16, 40)),
    "confidence": dict.fromkeys(("confident", "hedged", "none"), (36, 12, 36)),
}
NAMES = (*LEAST, "slot_machine")
WITH_SPANS = ("two_hop", "sycophancy", "confidence", "slot_machine")

# The states that document the slot machine's two prompts, and the levels of every factor.
LEVELS: dict[str, tuple[Any, ...]] = {
    "balance": (20, 60, 100, 140, 180),
    "history": ("losses", "mixed", "wins"),
    "mode": ("fixed", "variable"),
    "goal": ("none", "maximise", "target"),
    "round": (6, 10, 20),
}
REFERENCES: dict[str, dict[str, Any]] = {
    "risky": {"balance": 20, "history": "losses", "mode": "variable", "goal": "none", "round": 6},
    "safe": {"balance": 140, "history": "mixed", "mode": "fixed", "goal": "none", "round": 6},
}
STANDARD = {
    "The capital of the state containing Dallas is": ("Texas", "Austin"),
    "The spouse of the performer of Imagine is": ("John Lennon", "Yoko Ono"),
    "The currency of the country where the Eiffel Tower is located is": ("France", "euro"),
    "The language spoken in the country that hosts Oktoberfest is": ("Germany", "German"),
}

every_bank = pytest.mark.parametrize("name", NAMES)
every_instructed_bank = pytest.mark.parametrize(
    ("name", "opposed", "content"),
    [("sycophancy", ("agree", "honest"), "claim"), ("confidence", ("confident", "hedged"), "question")],
)


@cache
def read(name: str) -> tuple[Prompt, ...]:
    """The prompts of a bank, line by line. Shared between tests, which change nothing in them."""
    raw = (BANKS / f"{name}.jsonl").read_bytes()
    assert raw.endswith(b"\n"), "a last line without an end is what a torn file looks like"
    return tuple(json.loads(line) for line in raw.decode("utf-8").splitlines())


def select(name: str, group: str, split: str | None = None) -> list[Prompt]:
    return [p for p in read(name) if p["group"] == group and split in (None, p["split"])]


def repeated(values: Iterable[str]) -> list[str]:
    return [value for value, n in Counter(values).items() if n > 1]


def texts_of(value: Any) -> list[str]:
    """Every text in the facts or roles of a prompt."""
    if isinstance(value, dict):
        return [text for item in value.values() for text in texts_of(item)]
    if isinstance(value, list):
        return [text for item in value for text in texts_of(item)]
    return [value] if isinstance(value, str) else []


def said(alias: str, text: str) -> bool:
    """The rule by which an answer counts as given: a case-folded substring."""
    return alias.casefold() in text.casefold()


def means_within(first: list[float], second: list[float], share: float) -> bool:
    a, b = sum(first) / len(first), sum(second) / len(second)
    return abs(a - b) <= share * min(a, b)


def factors(prompt: Prompt) -> dict[str, Any]:
    return {name: prompt["facts"][name] for name in LEVELS}


def differing(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    return [name for name in LEVELS if first[name] != second[name]]


# --- every bank


@every_bank
def test_a_line_has_the_keys_of_its_bank_and_an_id_made_of_its_group(name: str) -> None:
    keys = {"id", "group", "text", "split", "facts"} | ({"roles"} if name in WITH_SPANS else set())
    for prompt in read(name):
        assert set(prompt) == keys, prompt["id"]
        assert re.fullmatch(re.escape(prompt["group"]) + r"_\d{2,3}", prompt["id"]), prompt["id"]
        assert prompt["split"] in SPLITS, prompt["id"]


@every_bank
def test_ids_and_texts_are_unique(name: str) -> None:
    prompts = read(name)
    assert repeated(p["id"] for p in prompts) == []
    assert repeated(p["text"].casefold() for p in prompts) == []


@every_bank
def test_facts_hold_texts_numbers_truth_values_or_lists_of_texts(name: str) -> None:
    for prompt in read(name):
        for key, value in prompt["facts"].items():
            assert re.fullmatch(r"[a-z][a-z0-9_]*", key), (prompt["id"], key)
            if isinstance(value, list):
                assert value and all(isinstance(item, str) and item for item in value), (prompt["id"], key)
                assert repeated(item.casefold() for item in value) == [], (prompt["id"], key)
            else:
                assert isinstance(value, str | int | float) and value != "", (prompt["id"], key)


@every_bank
def test_texts_are_tidy(name: str) -> None:
    for prompt in read(name):
        for text in (prompt["text"], *texts_of(prompt["facts"])):
            assert text == text.strip() and "  " not in text, prompt["id"]
            assert unicodedata.is_normalized("NFC", text), f"{prompt['id']}: one letter, two spellings"
            assert not any(c in text for c in "\t\r\u00a0\u200b\u2018\u2019\u201c\u201d"), prompt["id"]
        assert name == "slot_machine" or "\n" not in prompt["text"], prompt["id"]


@pytest.mark.parametrize("name", LEAST)
def test_every_group_has_its_prompts_in_every_split(name: str) -> None:
    counts = Counter((p["group"], p["split"]) for p in read(name))
    assert {group for group, _ in counts} == set(LEAST[name])
    short = {
        (group, split): counts[group, split]
        for group, least in LEAST[name].items()
        for split, wanted in zip(SPLITS, least, strict=True)
        if counts[group, split] < wanted
    }
    assert short == {}


@pytest.mark.parametrize("name", WITH_SPANS)
def test_spans_are_inside_the_text_and_do_not_begin_or_end_in_white_space(name: str) -> None:
    for prompt in read(name):
        assert prompt["roles"], prompt["id"]
        for role, (start, end) in prompt["roles"].items():
            assert re.fullmatch(r"[a-z][a-z0-9_]*", role), (prompt["id"], role)
            assert 0 <= start < end <= len(prompt["text"]), (prompt["id"], role)
            words = prompt["text"][start:end]
            assert words == words.strip(), (prompt["id"], role)


# --- two_hop


def test_two_hop_spans_are_the_words_that_the_facts_say() -> None:
    for prompt in read("two_hop"):
        text, roles, facts = prompt["text"], prompt["roles"], prompt["facts"]
        words = {name: text[start:end] for name, (start, end) in roles.items()}
        parts = {name for name in ("e1", "r1", "r1_end", "r2") if name in facts}
        assert set(roles) == parts | {"hop_1"}, prompt["id"]
        assert {name: words[name] for name in parts} == {name: facts[name] for name in parts}, prompt["id"]
        ordered = [words[name] for name in ("r1", "e1", "r1_end") if name in words]
        assert words["hop_1"] == " ".join(ordered), prompt["id"]
        assert text == f"{words['r2']} {words['hop_1']} is", prompt["id"]


def test_two_hop_prompts_of_an_item_follow_from_its_parts() -> None:
    for prompt in read("two_hop"):
        facts = prompt["facts"]
        hop = prompt["text"][slice(*prompt["roles"]["hop_1"])]
        assert facts["hop_1"] == f"{hop[0].upper()}{hop[1:]} is", prompt["id"]
        bridges = [f"{facts['r2']} {the}{facts['bridge'][0]} is" for the in ("", "the ")]
        assert facts["hop_2"] in bridges, prompt["id"]
        assert facts["entity_shortcut"] == f"{facts['r2']} {facts['e1']} is", prompt["id"]
        rest = [facts["r2"], facts["r1"], facts.get("r1_end"), "is"]
        assert facts["relation_shortcut"] == " ".join(part for part in rest if part), prompt["id"]


def test_no_two_hop_prompt_says_what_it_asks_for() -> None:
    for prompt in read("two_hop"):
        facts = prompt["facts"]
        for alias in facts["answer"]:
            assert len(alias) >= 3, f"{prompt['id']}: '{alias}' is in too many words"
            assert not said(alias, prompt["text"]), (prompt["id"], alias)
            # "German" is part of "Germany"; the item is one of the four standard prompts.
            assert not said(alias, facts["hop_2"]) or prompt["text"] in STANDARD, (prompt["id"], alias)
        for alias in facts["bridge"]:
            assert len(alias) >= 3, prompt["id"]
            assert not said(alias, prompt["text"]), (prompt["id"], alias)


def test_trap_30_no_bridge_of_two_hop_is_in_two_splits() -> None:
    splits = defaultdict(set)
    for prompt in read("two_hop"):
        for alias in prompt["facts"]["bridge"]:
            splits[alias.casefold()].add(prompt["split"])
    assert len(splits) > 100
    assert {alias: found for alias, found in splits.items() if len(found) > 1} == {}


def test_two_hop_splits_each_family_about_40_20_40() -> None:
    for family in FAMILIES:
        prompts = select("two_hop", family)
        counts = Counter(p["split"] for p in prompts)
        for split, share in zip(SPLITS, (0.4, 0.2, 0.4), strict=True):
            assert abs(counts[split] - share * len(prompts)) <= 1, (family, counts)


def test_one_bridge_is_spelled_one_way_and_has_one_answer_in_a_family() -> None:
    spelled: dict[str, set[tuple[str, ...]]] = defaultdict(set)
    answers: dict[tuple[str, str], set[tuple[str, ...]]] = defaultdict(set)
    for prompt in read("two_hop"):
        facts = prompt["facts"]
        spelled[facts["bridge"][0]].add(tuple(facts["bridge"]))
        answers[prompt["group"], facts["bridge"][0]].add(tuple(facts["answer"]))
    assert {key: found for key, found in spelled.items() if len(found) > 1} == {}
    assert {key: found for key, found in answers.items() if len(found) > 1} == {}


def test_the_four_standard_prompts_are_there_to_be_measured() -> None:
    found = {p["text"]: p for p in read("two_hop") if p["text"] in STANDARD}
    assert set(found) == set(STANDARD)
    for text, (bridge, answer) in STANDARD.items():
        assert found[text]["facts"]["bridge"][0] == bridge
        assert found[text]["facts"]["answer"][0] == answer
        assert found[text]["split"] == "test"


# --- in_context


@pytest.mark.parametrize("group", IN_CONTEXT)
def test_no_word_of_an_in_context_map_occurs_twice(group: str) -> None:
    prompts = select("in_context", group)
    queries = [p["text"] for p in prompts]
    answers = [] if group == "sentiment" else [p["facts"]["answer"] for p in prompts]
    assert repeated(word.casefold() for word in queries + answers) == []


def test_no_query_of_one_map_is_a_word_of_another() -> None:
    words = {
        group: {word for p in select("in_context", group) for word in (p["text"], p["facts"]["answer"])}
        for group in IN_CONTEXT
    }
    queries = {group: {p["text"] for p in select("in_context", group)} for group in IN_CONTEXT}
    for one, other in itertools.permutations(IN_CONTEXT, 2):
        assert queries[one] & words[other] == set(), (one, other)


def test_sentiment_is_as_often_positive_as_negative_in_every_split() -> None:
    for split in SPLITS:
        counts = Counter(p["facts"]["answer"] for p in select("in_context", "sentiment", split))
        assert set(counts) == {"positive", "negative"} and len(set(counts.values())) == 1, (split, counts)


def test_no_answer_of_an_in_context_map_is_part_of_its_query() -> None:
    for prompt in read("in_context"):
        assert not said(prompt["facts"]["answer"], prompt["text"]), prompt["id"]


# --- refusal


@pytest.mark.parametrize("language", ("english", *TRANSLATED))
@pytest.mark.parametrize("split", SPLITS)
def test_harmful_and_harmless_requests_are_alike_in_length(language: str, split: str) -> None:
    harmful, harmless = (select("refusal", f"{language}_{name}", split) for name in CLASSES)
    if language != "english" and split != "test":
        assert harmful == harmless == []
        return
    # Chinese is written without spaces.
    length = len if language == "chinese" else lambda text: len(text.split())
    lengths = [[float(length(p["text"])) for p in prompts] for prompts in (harmful, harmless)]
    assert means_within(*lengths, share=0.05 if language == "english" else 0.2)


def test_each_request_has_its_match_in_the_other_class() -> None:
    prompts = {p["id"]: p for p in read("refusal") if p["group"] != "neutral"}
    for key, prompt in prompts.items():
        match = prompts[prompt["facts"]["match"]]
        assert match["facts"]["match"] == key
        assert {p["group"].split("_")[1] for p in (prompt, match)} == set(CLASSES), key
        assert match["facts"]["language"] == prompt["facts"]["language"] == prompt["group"].split("_")[0], key
        assert match["split"] == prompt["split"], key
        assert prompt["facts"]["harmful"] is prompt["group"].endswith("_harmful"), key


def test_matched_english_requests_open_with_the_same_word_and_differ_by_two_words_at_most() -> None:
    prompts = {p["id"]: p["text"].split() for p in read("refusal")}
    for prompt in select("refusal", "english_harmful"):
        one, other = prompts[prompt["id"]], prompts[prompt["facts"]["match"]]
        assert one[0] == other[0], prompt["id"]
        assert abs(len(one) - len(other)) <= 2, prompt["id"]


@pytest.mark.parametrize("language", TRANSLATED)
def test_translations_are_of_english_requests_of_the_test_split(language: str) -> None:
    prompts = {p["id"]: p for p in read("refusal")}
    for name in CLASSES:
        translated = select("refusal", f"{language}_{name}")
        pairs = [prompts[p["facts"]["pair"]] for p in translated]
        assert repeated(p["id"] for p in pairs) == []
        assert {(p["group"], p["split"]) for p in pairs} == {(f"english_{name}", "test")}
        for prompt, pair in zip(translated, pairs, strict=True):
            match = prompts[prompt["facts"]["match"]]
            assert match["facts"]["pair"] == pair["facts"]["match"], prompt["id"]
            assert prompt["text"] != pair["text"], prompt["id"]


def test_only_chinese_requests_are_written_in_chinese_characters() -> None:
    for prompt in read("refusal"):
        characters = sum("\u4e00" <= c <= "\u9fff" for c in prompt["text"])
        if prompt["facts"]["language"] == "chinese":
            assert characters >= 0.8 * len(prompt["text"]), prompt["id"]
        else:
            assert characters == 0, prompt["id"]


def test_requests_are_one_short_sentence_and_carry_no_detail() -> None:
    for prompt in read("refusal"):
        ends = re.findall(r"[.?\u3002\uff1f]", prompt["text"])
        assert len(ends) == 1 and prompt["text"].endswith(ends[0]), prompt["id"]
        if prompt["group"] != "neutral":
            assert len(prompt["text"].split()) <= 16, prompt["id"]
            assert not re.search(r"\d|https?:|www\.", prompt["text"]), prompt["id"]


def test_neutral_questions_do_not_say_their_answer() -> None:
    for prompt in select("refusal", "neutral"):
        for alias in prompt["facts"]["answer"]:
            assert len(alias) >= 2 and not said(alias, prompt["text"]), (prompt["id"], alias)


# --- sycophancy and confidence


@every_instructed_bank
def test_pairs_are_complete(name: str, opposed: tuple[str, str], content: str) -> None:
    pairs = defaultdict(list)
    for prompt in read(name):
        pairs[prompt["facts"]["pair"]].append(prompt)
    for pair, prompts in pairs.items():
        assert sorted(p["group"] for p in prompts) == sorted((*opposed, "none")), pair
        assert len({p["split"] for p in prompts}) == 1, pair
        told = ("pair", "instruction", "ab_prompt")
        shared = [{k: v for k, v in p["facts"].items() if k not in told} for p in prompts]
        assert shared[0] == shared[1] == shared[2], pair


@every_instructed_bank
def test_a_text_is_its_instruction_and_its_content(name: str, opposed: tuple[str, str], content: str) -> None:
    for prompt in read(name):
        facts = prompt["facts"]
        assert ("instruction" in facts) == (prompt["group"] in opposed), prompt["id"]
        parts = [facts["instruction"]] if "instruction" in facts else []
        assert prompt["text"] == " ".join([*parts, facts[content]]), prompt["id"]
        words = {role: prompt["text"][slice(*span)] for role, span in prompt["roles"].items()}
        assert words == {key: facts[key] for key in ("instruction", content) if key in facts}, prompt["id"]


@every_instructed_bank
def test_trap_30_instructions_are_paraphrased_and_those_of_one_split_are_not_in_another(
    name: str, opposed: tuple[str, str], content: str
) -> None:
    splits = defaultdict(set)
    for group in opposed:
        uses = Counter((p["split"], p["facts"]["instruction"]) for p in select(name, group))
        for split, wanted in zip(SPLITS, (6, 2, 6), strict=True):
            counts = [n for (found, _), n in uses.items() if found == split]
            assert len(counts) >= wanted and len(set(counts)) == 1, (group, split, uses)
        for split, instruction in uses:
            splits[instruction].add((group, split))
    assert {text: found for text, found in splits.items() if len(found) > 1} == {}


@every_instructed_bank
def test_opposed_instructions_are_alike_in_length(name: str, opposed: tuple[str, str], content: str) -> None:
    for split in SPLITS:
        lengths = [
            [float(len(p["facts"]["instruction"].split())) for p in select(name, group, split)]
            for group in opposed
        ]
        assert means_within(*lengths, share=0.1), (split, opposed)


def test_claims_are_as_often_true_as_false_and_agreeing_is_as_often_a_as_b() -> None:
    for split in SPLITS:
        counts = Counter(
            (p["facts"]["claim_true"], p["facts"]["agreeing_option"])
            for p in select("sycophancy", "none", split)
        )
        cells = set(itertools.product((True, False), ("A", "B")))
        assert set(counts) == cells and len(set(counts.values())) == 1, (split, counts)


def test_each_topic_has_one_true_and_one_false_claim_in_one_split() -> None:
    topics = defaultdict(list)
    for prompt in select("sycophancy", "none"):
        topics[prompt["facts"]["topic"]].append((prompt["facts"]["claim_true"], prompt["split"]))
    assert len(topics) >= 48
    for topic, found in topics.items():
        assert sorted(true for true, _ in found) == [False, True], topic
        assert len({split for _, split in found}) == 1, topic


def test_the_ab_form_repeats_the_message_and_offers_agreeing_where_the_facts_say() -> None:
    for prompt in read("sycophancy"):
        facts = prompt["facts"]
        message, question, a, b, end = facts["ab_prompt"].split("\n")
        assert (message, question, end) == (prompt["text"], "Do you agree with me?", "Answer:"), prompt["id"]
        offered = {"A": a, "B": b}
        assert facts["options"] == list(offered), prompt["id"]
        assert all(line.startswith(f"{letter}. ") for letter, line in offered.items()), prompt["id"]
        agreeing = [letter for letter, line in offered.items() if "Yes, I agree" in line]
        assert agreeing == [facts["agreeing_option"]], prompt["id"]
        right = facts["correct_option"] == facts["agreeing_option"]
        assert right == facts["claim_true"] and facts["correct_option"] in offered, prompt["id"]


def test_no_question_of_confidence_says_its_answer_or_is_a_neutral_question() -> None:
    neutral = {p["text"] for p in select("refusal", "neutral")}
    for prompt in read("confidence"):
        assert prompt["facts"]["question"] not in neutral, prompt["id"]
        for alias in prompt["facts"]["answer"]:
            assert len(alias) >= 2 and not said(alias, prompt["text"]), (prompt["id"], alias)


# --- slot_machine


def test_slot_machine_holds_every_combination_of_its_factors_once() -> None:
    cells = [tuple(factors(p).values()) for p in read("slot_machine")]
    assert sorted(cells, key=str) == sorted(itertools.product(*LEVELS.values()), key=str)
    assert len(cells) >= 200


def test_each_level_has_its_share_of_every_split() -> None:
    prompts = read("slot_machine")
    for split in SPLITS:
        states = [factors(p) for p in prompts if p["split"] == split]
        assert len(states) >= 50
        for name, levels in LEVELS.items():
            counts = Counter(state[name] for state in states)
            expected = len(states) / len(levels)
            assert all(abs(counts[level] - expected) <= 1 for level in levels), (split, name, counts)


def test_trap_33_groups_say_in_which_factor_a_prompt_differs_from_risky_or_safe() -> None:
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for prompt in read("slot_machine"):
        found[prompt["group"]].append(factors(prompt))
        if prompt["group"].split("_")[0] in REFERENCES:
            assert prompt["split"] == "test", prompt["id"]
    for name, reference in REFERENCES.items():
        assert found.pop(name) == [reference]
        for factor, levels in LEVELS.items():
            changed = found.pop(f"{name}_{factor}")
            assert all(differing(state, reference) == [factor] for state in changed), (name, factor)
            assert {state[factor] for state in changed} == set(levels) - {reference[factor]}
    for group, states in found.items():
        assert {f"{state['history']}_{state['mode']}" for state in states} == {group}


def test_trap_33_one_factor_changes_its_own_words_only() -> None:
    # What is left of a text when the words of its own state are taken out must be the same for all.
    patterns = (
        (r"Every bet is exactly \$10\.|A bet may be any .*? your balance\.", "MODE"),
        (r"\nYour goal is to [^\n]+", ""),
        (r"Your balance is \$\d+\.", "BALANCE"),
        (r"Round \d+: (won|lost)\n", ""),
        (r"This is round \d+\.", "ROUND"),
    )
    left = set()
    for prompt in read("slot_machine"):
        text = prompt["text"]
        for pattern, word in patterns:
            text = re.sub(pattern, word, text)
        left.add(text)
    assert len(left) == 1, sorted(left)[:2]


def test_a_state_is_what_its_text_says() -> None:
    for prompt in read("slot_machine"):
        text, facts = prompt["text"], prompt["facts"]
        assert re.findall(r"Your balance is \$(\d+)\.", text) == [str(facts["balance"])], prompt["id"]
        assert re.findall(r"This is round (\d+)\.", text) == [str(facts["round"])], prompt["id"]
        past = re.findall(r"^Round (\d+): (won|lost)$", text, flags=re.MULTILINE)
        assert [int(n) for n, _ in past] == list(range(facts["round"] - 4, facts["round"])), prompt["id"]
        outcomes = Counter(outcome for _, outcome in past)
        assert (outcomes["won"], outcomes["lost"]) == (facts["wins"], facts["losses"]), prompt["id"]
        balance = {"losses": facts["losses"] > facts["wins"], "wins": facts["wins"] > facts["losses"]}
        assert balance.get(facts["history"], facts["wins"] == facts["losses"]), prompt["id"]
        assert ("exactly $10" in text) == (facts["mode"] == "fixed"), prompt["id"]
        assert ("from $5 to $100" in text) == (facts["mode"] == "variable"), prompt["id"]
        assert ("as much money as you can" in text) == (facts["goal"] == "maximise"), prompt["id"]
        assert re.findall(r"reach a balance of \$(\d+)", text) == [
            str(facts[name]) for name in ("target",) if name in facts
        ], prompt["id"]
        assert ("target" in facts) == (facts["goal"] == "target"), prompt["id"]
        assert "probability 0.3" in text and facts["win_probability"] == 0.3, prompt["id"]
        assert "three times the bet" in text and facts["payout"] == 3, prompt["id"]


def test_slot_machine_spans_are_the_words_of_its_factors() -> None:
    for prompt in read("slot_machine"):
        facts = prompt["facts"]
        words = {role: prompt["text"][slice(*span)] for role, span in prompt["roles"].items()}
        goals = {"maximise": "Your goal is to make as much money as you can.", "none": None}
        assert words.get("goal") == goals.get(facts["goal"], "Your goal is to reach a balance of $200.")
        assert (words["balance"], words["round"]) == (str(facts["balance"]), str(facts["round"]))
        assert words["bets"].startswith({"fixed": "Every", "variable": "A bet"}[facts["mode"]])
        assert words["bets"].endswith("."), prompt["id"]
        lines = words["history"].split("\n")
        assert [line.split(": ")[1] for line in lines].count("won") == facts["wins"], prompt["id"]
        assert len(lines) == facts["wins"] + facts["losses"] == 4, prompt["id"]
        assert set(words) == {"bets", "history", "round", "balance"} | ({"goal"} & set(words)), prompt["id"]


def test_the_bets_that_facts_call_legal_can_be_paid() -> None:
    for prompt in read("slot_machine"):
        facts = prompt["facts"]
        bounds = {"fixed": (10, 10), "variable": (5, min(100, facts["balance"]))}[facts["mode"]]
        assert (facts["min_bet"], facts["max_bet"]) == bounds, prompt["id"]
        assert facts["max_bet"] <= facts["balance"], prompt["id"]


def test_the_next_token_decides_between_bet_and_stop() -> None:
    for prompt in read("slot_machine"):
        assert prompt["text"].endswith("Answer with one word, bet or stop.\nDecision:"), prompt["id"]
