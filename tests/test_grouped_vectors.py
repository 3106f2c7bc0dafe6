"""A vector for each group of items: every trial takes that of its own group, and its key knows no other."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from backends.positions import Positions
from backends.rows import Sampling
from backends.writes import Constant, Under, Value, Write
from runner.config.resolve import Condition
from runner.config.writes.vectors import GroupedConstant, NoVector, for_group
from runner.keys import Setting
from runner.plan import Plan, make_plan
from runner.prompts.banks import Prompt
from runner.prompts.pairing import Item

TEXTS = ("zero one two", "three four five six")


class Counting:
    """A tokenizer whose tokens are the places of a prompt's words."""

    def encode(self, text: str) -> tuple[int, ...]:
        return tuple(range(len(text.split())))

    def unknown_words(self, text: str) -> tuple[str, ...]:
        return ()


def vector(name: str) -> Constant:
    return Constant(f"digest of {name}", np.full(4, float(len(name)), np.float32), name)


def grouped(*names: str) -> GroupedConstant:
    groups = tuple((name, vector(name)) for name in names)
    return GroupedConstant("of all: " + ",".join(names), groups[0][1].array, "means", groups=groups)


def write(constant: Constant, name: str = "w") -> Write:
    value = Value("constant", constant=constant)
    return Write(name, "resid_pre", (1,), "add", value, Positions("all"), "prefill")


def plan(*writes: Write, groups: tuple[str, ...] = ("north", "south")) -> Plan:
    condition = Condition("c", "c", ("target",), writes, {}, Sampling(0.0, 4))
    design: Any = SimpleNamespace(
        conditions=(condition,), repeats=1, sampling_seed=0, stage="measure", measured=(), probes=(),
        decodes=True,
    )  # fmt: skip
    donor = Prompt("d", "other", TEXTS[0])
    items = [
        Item(f"{place:04}", donor, Prompt(f"t{place}", group, TEXTS[1]), {}, None, 0)
        for place, group in enumerate(groups)
    ]
    info: Any = SimpleNamespace(context=64, windows=(None,) * 9, heads=4, layers=9)
    tokenizer: Any = Counting()
    return make_plan(design, items, tokenizer, Setting("torch", "m", "t", "float32", "sdpa", (), 0), info)


def test_each_trial_writes_the_vector_of_its_group() -> None:
    trials = plan(write(grouped("north", "south")), write(vector("plain"), "v")).trials
    for trial, group in zip(trials, ("north", "south"), strict=True):
        assert trial.invalid is None
        assert [w.value.constant for w in trial.row.writes] == [vector(group), vector("plain")]
        assert all(type(w.value.constant) is Constant for w in trial.row.writes)
    assert trials[0].key != trials[1].key


def test_the_vectors_of_other_groups_are_no_part_of_a_key() -> None:
    keys = [trial.key for trial in plan(write(grouped("north", "south"))).trials]
    assert [trial.key for trial in plan(write(grouped("north", "south", "west"))).trials] == keys
    assert plan(write(vector("north")), groups=("north",)).trials[0].key == keys[0]


def test_a_group_without_a_vector_is_invalid_and_says_why() -> None:
    north, south = plan(write(grouped("north", "west"))).trials
    assert north.invalid is None
    assert south.invalid == "expected a vector for the group 'south', found those of north, west in means"


def test_what_a_source_is_captured_under_is_of_the_group_too() -> None:
    inner = Under((write(grouped("north", "south")),), "steered")
    outer = replace(write(vector("plain"), "o"), value=Value("source", "donor", under=inner))
    (found,) = for_group((outer,), "south")
    assert found.value.under is not None and found.value.under.name == "steered"
    assert [w.value.constant for w in found.value.under.writes] == [vector("south")]
    with pytest.raises(NoVector, match="expected a vector for the group 'east'"):
        for_group((outer,), "east")


def test_writes_that_do_not_differ_by_group_stay_the_same_objects() -> None:
    plain = write(vector("plain"))
    assert for_group((plain,), "north")[0] is plain
