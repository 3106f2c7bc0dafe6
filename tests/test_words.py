"""Conditions in words: told from what they resolve to, whatever they are called."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.positions import Positions
from backends.rows import Sampling
from backends.writes import HOLDS, Heads, Hold, Value, Write
from runner.config.check import check
from runner.config.compose import compose
from runner.config.resolve import Condition, Design, resolve
from runner.config.words import describe
from runner.config.writes.words import layers_in_words

USUAL = Sampling(temperature=0.8, max_new_tokens=150)


def condition(*writes: Write, **changes: object) -> Condition:
    bare = Condition("c", "c", ("target",), writes, {}, USUAL)
    return replace(bare, **changes)  # type: ignore[arg-type]


def kv(name: str = "kv", role: str = "donor") -> Write:
    return Write(
        name, "kv_cache", tuple(range(9)), "replace", Value("source", role), Positions("all"), "prefill"
    )


def v_proj(hold: Hold | None = "cycle", value: Value | None = None, name: str = "v") -> Write:
    window = Positions("last", count=16)
    chosen = Value("source", "donor") if value is None else value
    return Write(name, "v_proj", (7,), "replace", chosen, window, "decode", hold)


@pytest.fixture(scope="module")
def controls() -> Design:
    return resolve(check(compose(["+experiment=n300_controls"])))


def words(body: Condition) -> str:
    return " ".join(describe(body, 9, USUAL))


def test_empty_condition_says_that_nothing_is_written() -> None:
    assert describe(condition(), 9, USUAL) == (
        "The prompt is the target.",
        "Nothing is written into the model.",
    )


def test_kv_write_names_source_alignment_rotation_and_moment() -> None:
    text = words(condition(kv()))
    for part in (
        "the donor's KV cache",
        "in all layers",
        "right-aligned",
        "re-rotated",
        "before the last prompt token",
    ):
        assert part in text


def test_decode_write_names_layer_window_and_row() -> None:
    assert "at layer 7, in decode" in words(condition(v_proj()))
    assert "row t mod 16 of the donor's last 16 positions" in words(condition(v_proj()))


def test_every_hold_is_told_differently() -> None:
    told = {words(condition(v_proj(hold))) for hold in HOLDS}  # type: ignore[arg-type]
    assert len(told) == len(HOLDS)


def test_sliding_is_told_as_the_rewriting_of_the_running_context() -> None:
    told = words(condition(v_proj("sliding")))
    assert (
        "in decode, at every step, the v_proj output at the context's last 16 positions is replaced" in told
    )


def test_trap_02_same_name_for_different_operations_is_told_apart() -> None:
    window = condition(v_proj(value=Value("shuffled_window", "donor"), name="shuffled"))
    sequence = condition(v_proj(value=Value("shuffled_sequence", "donor"), name="shuffled"))
    guarded = condition(replace(v_proj("last", name="persistent"), min_positions=16))
    persistent = condition(v_proj("last", name="persistent"))
    assert words(window) != words(sequence)
    assert "at least 16 positions" in words(guarded)
    assert "at least" not in words(persistent)


@settings(max_examples=30, deadline=None)
@given(name=st.text(min_size=1, max_size=12), write=st.text(min_size=1, max_size=12))
def test_trap_03_names_have_no_part_in_the_description(name: str, write: str) -> None:
    original = condition(replace(v_proj(), name="random"), expects={"random": "inert"})
    renamed = replace(original, name=name, label=name, writes=(v_proj(name=write),), expects={write: "inert"})
    assert describe(renamed, 9, USUAL) == describe(original, 9, USUAL)


def test_trap_03_random_arm_of_the_published_run_is_told_as_own_cache() -> None:
    design = resolve(check(compose(["+experiment=n300_as_published"])))
    text = " ".join(design.condition("random").words)
    assert "the prompt's own KV cache" in text
    assert "the donor's" not in text
    assert "never to act" in text


def test_roles_are_told_apart(controls: Design) -> None:
    assert "the pseudo_recursive donor's KV cache" in " ".join(controls.condition("kv_pseudo").words)
    assert "another item's donor" in " ".join(controls.condition("kv_other_donor").words)
    assert "Gaussian noise" in " ".join(controls.condition("kv_random").words)
    assert "slots permuted" in " ".join(controls.condition("kv_shuffled").words)


def test_every_condition_of_the_controls_is_told_differently(controls: Design) -> None:
    assert len({c.words for c in controls.conditions}) == len(controls.conditions)


def test_sampling_is_told_only_where_it_differs() -> None:
    greedy = condition(sampling=replace(USUAL, temperature=0.0, top_k=50))
    assert "greedy, top-k 50" in words(greedy)
    assert "150" not in words(greedy)
    assert "ampling" not in words(condition())


def test_expectations_procedure_and_prompt_are_told() -> None:
    text = words(condition(kv(role="self"), expects={"kv": "noop"}, replay_last_token=True, recompute=True))
    assert "expected to fire and to change nothing" in text
    assert "fed a second time" in text
    assert "No cache is kept" in text
    assert "the target is not seen" in words(condition(prompt=("donor",)))
    assert "followed by the target" in words(condition(prompt=("donor", "target")))


@pytest.mark.parametrize(
    ("write", "told"),
    [
        (replace(kv(), align="whole"), "entire cache"),
        (replace(kv(), align="concat"), "before the prompt's own cache"),
        (replace(kv(), rope="keep"), "keeping the rotary positions"),
        (replace(kv(), keep_sink=True), "first slot being kept"),
        (replace(kv(), op="zero", value=Value("none")), "set to zero"),
        (replace(kv(), heads=Heads("kv", (1,))), "key-value head 1"),
        (replace(v_proj(None), during="prefill"), "in prefill"),
        (replace(v_proj(), op="add", alpha=2.0), "times 2"),
        (replace(v_proj(), positions=Positions("last", percent=25.0)), "last 25% of the donor's positions"),
        (replace(v_proj(), positions=Positions.parse("role:e1")), "the positions of the donor's span 'e1'"),
        (replace(v_proj(), positions=Positions.parse("role:e1.last")), "last position of the donor's span"),
        (replace(v_proj(), positions=Positions.parse("role:e1.first")), "row t mod 1 of"),
        (
            replace(kv(), positions=Positions.parse("role:e1")),
            "at the slots of the span 'e1', span onto span",
        ),
    ],
)
def test_every_field_that_changes_the_write_is_told(write: Write, told: str) -> None:
    assert told in words(condition(write))


def test_layers_in_words() -> None:
    assert layers_in_words((0, 1, 2), 3) == "in all layers"
    assert layers_in_words((3, 4, 5), 9) == "at layers 3 to 5"
    assert layers_in_words((1, 4, 7), 9) == "at layers 1, 4 and 7"
