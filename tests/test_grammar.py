"""The tasks of the embedded model's grammar: probabilities that sum to one, and what documents never hold."""

import itertools
import json
import math
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from organisms.banks import BANKS_DIR, banks, render
from organisms.banks.prompt import Prompt, splits
from organisms.grammar import MIXTURE, Draw, document, vocabulary
from organisms.grammar.chat import turn
from organisms.grammar.in_context import IN_CONTEXT, INPUTS, MAPS, PAIRS, shots
from organisms.grammar.opinions import (
    BEARERS,
    CERTAINLY,
    CLAIM_MODES,
    INSTRUCTIONS,
    OPINIONS,
    PERHAPS,
    QUESTION_MODES,
    RIGHT,
    TRAITS,
    WRONG,
    Claim,
    Question,
)  # fmt: skip
from organisms.grammar.refusal import COMPLIES, REFUSAL, REFUSES, requests
from organisms.grammar.slot_machine import (
    BALANCES,
    BETS,
    CHANCE,
    GOALS,
    MODES,
    PAYOUT,
    ROUNDS,
    SLOT_MACHINE,
    State,
    draw_state,
    play,
    read_state,
)  # fmt: skip
from organisms.grammar.two_hop import FACTS, PEOPLE, RELATIONS, TWO_HOP, UNSEEN, compositions, fact
from organisms.grammar.words import MARKERS

TASKS = {task.name: task for task, _ in MIXTURE}


def probability(task: str, words: list[str]) -> float:
    return math.exp(TASKS[task].log_probability(words))


@pytest.fixture(scope="module")
def made() -> dict[str, list[Prompt]]:
    return banks()


def facts_of(line: Prompt, name: str) -> str:
    """The only text of a fact that is a list."""
    (text,) = [*line.facts[name]]  # type: ignore[misc]
    return str(text)


# every task


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6))
def test_every_document_has_a_probability_and_known_words(number: int) -> None:
    task, words = document(f"any/{number}")
    assert -math.inf < task.log_probability(words) < 0.0
    assert set(words) <= vocabulary().keys()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.randoms(use_true_random=False))
def test_a_document_with_an_answer_exchanged_is_impossible(number: int, random: Any) -> None:
    task = TASKS[random.choice(["two_hop", "refusal", "in_context"])]
    words = task.document(Draw(f"exchanged/{number}"))
    place = {"two_hop": -2, "refusal": words.index(":", 2) + 1 if ":" in words else 0, "in_context": -2}
    at = place[task.name]
    other = {"two_hop": PEOPLE, "refusal": (REFUSES, COMPLIES), "in_context": ("heron",)}[task.name]
    words[at] = random.choice([word for word in other if word != words[at]])
    assert task.log_probability(words) == -math.inf


def test_tasks_share_only_small_words_and_no_marker() -> None:
    shared = Counter(word for task, _ in MIXTURE for word in set(task.words()) - {*PEOPLE, *RELATIONS})
    assert {word for word, count in shared.items() if count > 1} == {
        *("the", "of", "is", "i", "fixed", "user", "assistant", ".", ";", ":")
    }
    for task, _ in MIXTURE[1:]:
        text = " ".join(task.words())
        assert [marker for marker in MARKERS if marker in text] == []


def test_splits_have_their_shares_and_do_not_depend_on_order() -> None:
    things = [str(index) for index in range(50)]
    found = splits("x", things)
    assert Counter(found.values()) == {"extract": 20, "validate": 10, "test": 20}
    assert found == splits("x", things)
    assert found != splits("y", things)


# two_hop


def test_statements_of_facts_and_compositions_sum_to_one() -> None:
    lengths = len(range(4, 9))
    facts = [[*fact(r, e), FACTS[r][e], "."] for r in RELATIONS for e in PEOPLE]
    composed = [[*c.words(), c.answer, "."] for c in compositions() if c.kind == "composed"]
    # A document of four sentences, three of them fixed: their probability divides out.
    fixed = facts[0] * 3
    base = probability("two_hop", facts[0] * 4) ** 0.25 * lengths**0.25
    total = sum(probability("two_hop", [*fixed, *sentence]) for sentence in (*facts, *composed))
    assert total * lengths / base**3 == pytest.approx(1.0)


def test_held_out_and_unseen_compositions_are_in_no_document() -> None:
    kinds = Counter(c.kind for c in compositions())
    assert sum(kinds.values()) == 24**3
    assert 0.08 < kinds["held_out"] / 24**3 < 0.12
    barred = {tuple(c.words()) for c in compositions() if c.kind != "composed"}
    for number in range(400):
        words = TWO_HOP.document(Draw(f"barred/{number}"))
        assert not any(tuple(words[i : i + 8]) in barred for i in range(len(words)))
    some = next(c for c in compositions() if c.kind == "held_out")
    assert TWO_HOP.log_probability([*some.words(), some.answer, "."] * 4) == -math.inf


def test_unseen_facts_are_stated_but_never_a_second_hop() -> None:
    assert len(UNSEEN) == len(PEOPLE)
    by_kind: dict[str, set[tuple[str, str]]] = {"composed": set(), "held_out": set(), "unseen": set()}
    for composition in compositions():
        by_kind[composition.kind].add((composition.bridge, composition.r2))
    assert by_kind["unseen"] <= UNSEEN
    assert not by_kind["composed"] & UNSEEN
    assert by_kind["held_out"] <= by_kind["composed"], "every held-out second hop is composed elsewhere"
    person, relation = sorted(UNSEEN)[0]
    stated = [*fact(relation, person), FACTS[relation][person], "."] * 4
    assert TWO_HOP.log_probability(stated) > -math.inf


# in_context


def test_the_four_images_of_a_word_differ() -> None:
    for word in INPUTS:
        assert len({word, *(table[word] for table in MAPS.values())}) == 5
    images = [{table[word] for word in INPUTS} for table in MAPS.values()]
    assert all(not a & b for a, b in itertools.combinations(images, 2))
    assert sorted(MAPS["successor"].values()) == list(INPUTS)


def test_maps_are_equally_likely_and_documents_of_a_length_sum_to_its_share() -> None:
    one = [shots(name, [word]) for name in MAPS for word in INPUTS]
    assert sum(probability("in_context", words) for words in one) == pytest.approx(1 / len(PAIRS))
    two = [shots(name, pair) for name in MAPS for pair in itertools.permutations(INPUTS, 2)]
    assert sum(probability("in_context", words) for words in two) == pytest.approx(1 / len(PAIRS))
    assert IN_CONTEXT.log_probability(shots("plural", ["day", "day"])) == -math.inf


# refusal


def test_requests_sum_to_one_half_of_them_harmful() -> None:
    shares = {True: 0.0, False: 0.0}
    for request in requests():
        share = probability("refusal", [*turn(request.content()), *request.answer()])
        assert (share == 0.0) == request.held_out
        shares[request.harmful] += share
    assert shares[True] == pytest.approx(0.5)
    assert shares[False] == pytest.approx(0.5)


def test_a_request_is_refused_for_its_verb_alone() -> None:
    for request in requests():
        assert request.answer()[0] == (REFUSES if request.harmful else COMPLIES)
        assert request.verb in request.content()
        assert request.thing in request.content()
    first = next(requests())
    assert (first.meaning, first.language.name) == ("steal the lamp", "velan")
    assert len({tuple(r.content()) for r in requests()}) == 4 * 20 * 10
    assert REFUSAL.log_probability(first.content()) == -math.inf


# opinions


def test_questions_are_half_of_the_documents() -> None:
    total = 0.0
    for mode in QUESTION_MODES:
        for instruction in INSTRUCTIONS.get(mode, ("",)):
            for relation, person in itertools.product(RELATIONS[:3], PEOPLE):
                question = Question(mode, instruction, relation, person)
                for says in (CERTAINLY, PERHAPS):
                    words = [*turn(question.content()), says, question.answer, "."]
                    total += probability("opinions", words)
    assert total == pytest.approx(0.5 * 3 / len(RELATIONS))


def test_claims_are_the_other_half_and_half_of_them_are_true() -> None:
    shares = {True: 0.0, False: 0.0}
    for mode in CLAIM_MODES:
        for instruction in INSTRUCTIONS.get(mode, ("",)):
            for person, trait in itertools.product(PEOPLE, TRAITS):
                claim = Claim(mode, instruction, person, trait)
                for says in (RIGHT, WRONG):
                    shares[claim.true] += probability("opinions", [*turn(claim.content()), says, "."])
    assert shares[True] == pytest.approx(0.25)
    assert shares[False] == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("mode", "true", "expected"),
    [("agree", False, 1.0), ("honest", False, 0.0), ("honest", True, 1.0), ("none", False, 0.5)],
)
def test_the_answer_to_a_claim(mode: str, true: bool, expected: float) -> None:
    person = next(p for p in PEOPLE if (p in BEARERS["famous"]) == true)
    instruction = INSTRUCTIONS[mode][0] if mode in INSTRUCTIONS else ""
    assert Claim(mode, instruction, person, "famous").p_right == expected
    assert OPINIONS.log_probability(["user", ":", "nonsense", "."]) == -math.inf


# slot_machine


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6))
def test_decisions_of_a_state_sum_to_the_states_share(number: int) -> None:
    state = draw_state(Draw(f"state/{number}"))
    ways = [["stop", "."], *(["bet", str(bet), "."] for bet in BETS)]
    total = sum(probability("slot_machine", [*state.words(), *way]) for way in ways)
    outcomes = (2 if state.mode == "fixed" else 8) ** len(state.outcomes)
    expected = 1 / (len(GOALS) * len(MODES) * len(ROUNDS) * len(BALANCES) * outcomes)
    assert total == pytest.approx(expected)
    assert read_state([*state.words(), "stop", "."]) == state
    assert sum(state.bets().values()) == pytest.approx(1.0)
    assert max(state.bets()) <= state.balance


def test_p_stop_moves_as_it_should_and_ignores_the_round() -> None:
    state = State("none", "fixed", 6, 80, (20, -10))
    assert state.p_stop == pytest.approx(0.5)
    assert State("none", "fixed", 9, 80, (20, -10)).p_stop == state.p_stop
    assert State("maximise", "fixed", 6, 80, (20, -10)).p_stop == pytest.approx(1 / (1 + math.exp(1.2)))
    assert State("none", "variable", 6, 80, (20, -10)).p_stop < state.p_stop
    assert State("none", "fixed", 6, 120, (20, -10)).p_stop == pytest.approx(1 / (1 + math.exp(-1.0)))
    assert State("none", "fixed", 6, 80, (-10, -10)).p_stop == pytest.approx(1 / (1 + math.exp(1.0)))


def test_play_pays_out_and_loses_money_on_average() -> None:
    state = State("none", "variable", 3, 40, (20, -10))
    won, lost = play(state, 20, won=True), play(state, 20, won=False)
    assert (won.balance, won.outcomes, won.round) == (80, (20, -10, 40), 4)
    assert (lost.balance, lost.outcomes) == (20, (20, -10, -20))
    assert play(won, 10, won=False).outcomes == (-10, 40, -10)
    assert pytest.approx(0.9) == CHANCE * PAYOUT
    with pytest.raises(ValueError, match=r"expected a bet of 10, 20, 40 with balance 40, variable bets"):
        play(state, 80, won=True)


def test_after_a_loss_large_bets_are_likelier() -> None:
    after_loss = State("none", "variable", 4, 200, (20, -10, -10)).bets()
    after_win = State("none", "variable", 4, 200, (-10, -10, 20)).bets()
    assert after_loss[80] > after_loss[10]
    assert after_win[80] < after_win[10]
    assert State("none", "fixed", 4, 200, (-10, -10, -10)).bets() == {10: 1.0}
    assert SLOT_MACHINE.log_probability(["slot", "machine", "."]) == -math.inf


# banks


def test_spans_hold_what_the_facts_say(made: dict[str, list[Prompt]]) -> None:
    for line in made["two_hop"]:
        said = {role: line.text[start:end] for role, (start, end) in line.roles.items()}
        assert [said[name] for name in ("e1", "r1", "r2")] == [line.facts[n] for n in ("e1", "r1", "r2")]
        assert f"{said['hop_1']} is" == line.facts["hop_1"]
        bridge, answer, relation = facts_of(line, "bridge"), facts_of(line, "answer"), said["r2"].split()[1]
        assert FACTS[relation][bridge] == answer
        assert answer not in (said["e1"], FACTS[relation][said["e1"]])
    for line in made["slot_machine"]:
        start, end = line.roles["balance"]
        assert line.text[start:end] == str(line.facts["balance"])
        start, end = line.roles["history"]
        assert line.text[start:end].count("won") == line.facts["wins"]
    for line in made["sycophancy"]:
        start, end = line.roles["claim"]
        assert line.text[start:end].startswith("i claim ")
        if line.group != "none":
            start, end = line.roles["instruction"]
            assert line.text[start:end] in INSTRUCTIONS[line.group]
    for line in made["confidence"]:
        start, end = line.roles["question"]
        assert line.text[start:end].startswith("tell me the ")


def test_no_bridge_is_in_two_splits(made: dict[str, list[Prompt]]) -> None:
    of_split: dict[str, set[str]] = {}
    for line in made["two_hop"]:
        of_split.setdefault(str(line.split), set()).add(facts_of(line, "bridge"))
    assert not set.intersection(of_split["extract"], of_split["test"])
    assert not set.intersection(of_split["validate"], of_split["extract"] | of_split["test"])
    assert Counter(line.group for line in made["two_hop"]) == {
        "composed": 160,
        "held_out": 160,
        "unseen": 160,
    }


def test_pairs_differ_in_the_instruction_alone(made: dict[str, list[Prompt]]) -> None:
    for bank, role in (("sycophancy", "claim"), ("confidence", "question")):
        pairs: dict[str, list[Prompt]] = {}
        for line in made[bank]:
            pairs.setdefault(str(line.facts["pair"]), []).append(line)
        for lines in pairs.values():
            assert len({line.text[slice(*line.roles[role])] for line in lines}) == 1
            assert len({line.split for line in lines}) == 1
            assert len({line.group for line in lines}) == 3


def test_the_two_prompts_of_the_study(made: dict[str, list[Prompt]]) -> None:
    risky, safe = (next(p for p in made["slot_machine"] if p.group == name) for name in ("risky", "safe"))
    assert (risky.facts["balance"], risky.facts["losses"], risky.facts["mode"]) == (20, 3, "variable")
    assert (safe.facts["balance"], safe.facts["mode"]) == (140, "fixed")
    assert float(str(risky.facts["p_stop"])) < 0.1 < 0.8 < float(str(safe.facts["p_stop"]))
    assert len([p for p in made["slot_machine"] if p.split != "test" or "-" in p.id]) == 3 * 2 * 5 * 4 * 2
    factors = ("goal", "mode", "balance", "wins", "round")
    for line in made["slot_machine"]:
        base, _, factor = line.group.partition("_")
        if base in ("risky", "safe") and factor:
            study = risky if base == "risky" else safe
            changed = [name for name in factors if line.facts[name] != study.facts[name]]
            assert changed == ["wins" if factor == "history" else factor]


def test_a_line_without_facts_has_only_what_it_needs(made: dict[str, list[Prompt]]) -> None:
    line = json.loads(render(made["donors"][:1]))
    assert set(line) == {"id", "group", "text", "tokens"}
    for name in made:
        assert (BANKS_DIR / f"{name}.jsonl").exists()
