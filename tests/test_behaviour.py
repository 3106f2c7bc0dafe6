"""The behaviour score: the published rule, its components, and what it measures by accident."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from organisms.score import behaviour as organism_rule
from runner.scores.behaviour import MARKERS, behaviour


def test_known_answers():
    assert behaviour("") == behaviour("the bread is warm")
    assert vars_of("") == (0, 0, 0, 0)
    assert vars_of("It observes itself") == (
        3,
        3,
        0,
        1,
    )  # itself, self, observe; only "itself" is a whole word
    assert vars_of("a fixed point of the process") == (2, 2, 0, 2)
    assert len(MARKERS) == len(set(MARKERS)) == 21


def vars_of(text: str) -> tuple[int, int, int, int]:
    found = behaviour(text)
    return found.score, found.markers, found.bonus, found.strict


def test_trap_24_repetition_alone_earns_the_bonus_and_is_told_apart():
    repeated = "the red door " * 10
    assert vars_of(repeated) == (5, 0, 5, 0)
    assert vars_of("one two three four five six seven eight nine ten") == (0, 0, 0, 0)
    assert vars_of("a a a a a a a a a a")[2] == 0  # ten words are not more than ten
    assert vars_of("itself")[1] == 2 and vars_of("itself")[3] == 1


@given(st.text())
def test_the_score_is_the_sum_of_its_parts(text):
    found = behaviour(text)
    assert found.score == found.markers + found.bonus
    assert 0 <= found.strict <= found.markers <= 21 and found.bonus in (0, 5)


@given(st.lists(st.sampled_from(["self", "loop", "bread", "is", "warm"]), max_size=30), st.randoms())
def test_word_order_does_not_matter(words, rng):
    shuffled = list(words)
    rng.shuffle(shuffled)
    assert behaviour(" ".join(words)) == behaviour(" ".join(shuffled))
    assert behaviour(" ".join(words)) == behaviour(" ".join(words).upper())


def test_the_organism_is_measured_with_the_same_rule():
    for text in ("", "itself a loop", "the red door " * 10, "within the mirror the process reflects itself"):
        found = behaviour(text)
        assert organism_rule(text) == (found.markers, found.bonus)
