"""Gates on writes: what a reader must be told of what each did, and what stops a run."""

from __future__ import annotations

from typing import Any

import pytest

from analyses.gates.all_gates import blocking, result_gates
from analyses.gates.gate import Gate
from tests.gating import N, condition, gates_of, manifest, named, receipt, rows, table, write


def test_a_write_that_fires_and_changes_something_raises_no_gate() -> None:
    assert gates_of(write(), receipt("v_proj", (0, 0), (149, 149), 0.4)) == []


def test_trap_01_inert_patch_never_fires_in_decode() -> None:
    gates = gates_of(write(min_positions=16), receipt("v_proj", (0, 0), (149, 0), None))
    assert gates == [
        Gate(
            "treated",
            "inert",
            "fail",
            "v_proj in treated never fired in decode: 0 of 2,980 positions asked were written. "
            "It fires only on outputs of >= 16 positions; decode has 1.",
        )
    ]
    assert blocking(gates, None) and blocking(gates, False) and not blocking(gates, True)


def test_trap_01_a_write_for_both_phases_that_is_dead_in_one_is_inert() -> None:
    gates = gates_of(write(during="both"), receipt("v_proj", (16, 16), (149, 0), 0.5))
    assert [(g.gate, g.verdict) for g in gates] == [("inert", "fail")]
    assert "in decode" in gates[0].sentence


def test_trap_01_a_decode_write_that_found_no_decode_step_has_not_fired() -> None:
    gates = gates_of(write(), receipt("v_proj", (0, 0), (0, 0), None))
    assert [(g.gate, g.verdict) for g in gates] == [("inert", "fail")]
    assert "no position was asked of it" in gates[0].sentence


def test_a_write_for_both_phases_is_not_blamed_for_decode_steps_that_never_came() -> None:
    assert gates_of(write(during="both"), receipt("v_proj", (16, 16), (0, 0), 0.5)) == []


@pytest.mark.parametrize(
    ("dtype", "change", "inert"),
    [("float32", 9e-7, True), ("float32", 2e-6, False), ("bfloat16", 9e-4, True), ("bfloat16", 2e-3, False)],
)
def test_trap_01_a_write_that_changes_nothing_is_inert(dtype: str, change: float, inert: bool) -> None:
    gates = gates_of(write(), receipt("v_proj", (0, 0), (9, 9), change), dtype=dtype)
    assert [g.verdict for g in named(gates, "inert")] == (["fail"] if inert else [])


def test_writes_without_an_old_tensor_are_judged_by_the_logits() -> None:
    spec = write(site="kv_cache", during="prefill", align="whole", has_old=False)
    dead = gates_of(spec, receipt("v_proj", (9, 9), (0, 0), None, logit_change=0.0))
    assert [g.verdict for g in named(dead, "inert")] == ["fail"] and "logits" in dead[0].sentence
    assert gates_of(spec, receipt("v_proj", (9, 9), (0, 0), None, logit_change=0.3)) == []
    unmeasured = gates_of(spec, receipt("v_proj", (9, 9), (0, 0), None))
    assert [g.verdict for g in named(unmeasured, "inert")] == ["warn"]
    assert not blocking(unmeasured, None)


def test_an_inert_write_that_is_expected_blocks_only_where_none_is_allowed() -> None:
    gates = gates_of(write(expect="inert", min_positions=16), receipt("v_proj", (0, 0), (9, 0), None))
    assert [(g.gate, g.verdict) for g in gates] == [("inert", "expected")]
    assert gates[0].sentence.endswith("This was expected.")
    assert not blocking(gates, None) and blocking(gates, False) and not blocking(gates, True)


def test_a_write_that_was_expected_to_be_inert_and_fires_fails_its_expectation() -> None:
    gates = gates_of(write(expect="inert"), receipt("v_proj", (0, 0), (9, 9), 0.4))
    assert [(g.gate, g.verdict) for g in gates] == [("expect", "fail")]
    assert "180 positions in decode, relative change 0.4" in gates[0].sentence
    assert not blocking(gates, None)


@pytest.mark.parametrize(("change", "verdict"), [(0.0, "expected"), (9e-5, "expected"), (2e-4, "fail")])
def test_a_noop_must_fire_and_change_nothing(change: float, verdict: str) -> None:
    gates = gates_of(write(expect="noop"), receipt("v_proj", (0, 0), (9, 9), change))
    assert [(g.gate, g.verdict) for g in gates] == [("expect", verdict)]
    assert not blocking(gates, None) and not blocking(gates, False)


def test_a_noop_that_never_fires_is_inert() -> None:
    gates = gates_of(write(expect="noop"), receipt("v_proj", (0, 0), (9, 0), None))
    assert [(g.gate, g.verdict) for g in gates] == [("inert", "fail")]
    assert blocking(gates, None)


def test_a_noop_says_how_often_its_outputs_equal_the_baselines() -> None:
    same = rows("treated", **receipt("v_proj", (0, 0), (9, 9), 0.0))
    found = result_gates(
        table(rows("baseline"), same), manifest({"treated": condition({"v_proj": write(expect="noop")})})
    )
    (gate,) = named(found, "expect")
    assert "outputs equal those of baseline in 20 of 20 trials" in gate.sentence
    assert [g.verdict for g in named(found, "identical")] == ["expected"]


def test_trap_47_a_write_that_a_later_one_overwrites_is_shadowed_and_counts_as_inert() -> None:
    columns = receipt("v_proj", (16, 16), (0, 0), 0.5, positions_shadowed=16)
    gates = gates_of(write(during="prefill"), columns)
    assert [(g.gate, g.verdict) for g in gates] == [("shadowed", "fail")]
    assert "all 320 positions written in prefill were overwritten later" in gates[0].sentence
    assert blocking(gates, None) and not blocking(gates, True)
    partly = gates_of(write(during="prefill"), columns | {"v_proj.positions_shadowed": 4})
    assert [(g.gate, g.verdict) for g in partly] == [("shadowed", "warn")]
    assert not blocking(partly, None)
    expected = gates_of(write(during="prefill", expect="inert"), columns)
    assert [(g.gate, g.verdict) for g in expected] == [("shadowed", "expected")]


def test_trap_47_a_write_shadowed_in_prefill_only_still_acts_in_decode() -> None:
    columns = receipt("v_proj", (16, 16), (9, 9), 0.5, positions_shadowed=16)
    (gate,) = gates_of(write(during="both"), columns)
    assert gate.verdict == "fail" and gate.sentence.endswith("It counts as inert in prefill.")


@pytest.mark.parametrize(("lost", "verdict"), [(9, "fail"), (4, "warn"), (0, None)])
def test_trap_47_a_decode_write_that_a_later_one_overwrites_is_shadowed(
    lost: int, verdict: str | None
) -> None:
    columns = receipt("v_proj", (0, 0), (9, 9), 0.5, decode_shadowed=lost)
    gates = gates_of(write(), columns)
    assert [(g.gate, g.verdict) for g in gates] == ([] if verdict is None else [("shadowed", verdict)])
    assert blocking(gates, None) == (verdict == "fail")
    if verdict == "fail":
        assert "all 180 positions written in decode were overwritten" in gates[0].sentence
        assert gates[0].sentence.endswith("it counts as inert.")
    expected = gates_of(write(expect="inert"), columns)
    assert [(g.gate, g.verdict) for g in expected] == [
        ("shadowed", "expected") if lost == 9 else ("expect", "fail")
    ]


def test_trap_47_shadows_are_judged_phase_by_phase() -> None:
    shadows = {"positions_shadowed": 4, "decode_shadowed": 9}
    columns = receipt("v_proj", (16, 16), (9, 9), 0.5, **shadows)
    gates = gates_of(write(during="both"), columns)
    assert [(g.gate, g.verdict) for g in gates] == [("shadowed", "fail"), ("shadowed", "warn")]
    assert gates[0].sentence.endswith("It counts as inert in decode.")
    assert "80 of 320 positions written in prefill" in gates[1].sentence
    dead = receipt("v_proj", (16, 16), (9, 0), 0.5, positions_shadowed=16)
    both = gates_of(write(during="both"), dead)
    assert [(g.gate, g.verdict) for g in both] == [("inert", "fail"), ("shadowed", "fail")]
    assert gates_of(write(during="both", expect="inert"), dead)[0].verdict == "expected"


def test_trap_47_a_noop_of_which_nothing_remains_shows_nothing() -> None:
    columns = receipt("v_proj", (16, 16), (0, 0), 0.0, positions_shadowed=16)
    gates = gates_of(write(during="prefill", expect="noop"), columns)
    assert [(g.gate, g.verdict) for g in gates] == [("shadowed", "fail")]


def test_a_lockstep_donor_that_ended_first_is_said() -> None:
    (gate,) = gates_of(write(hold="lockstep"), receipt("v_proj", (0, 0), (9, 6), 0.5))
    assert (gate.gate, gate.verdict) == ("partial", "warn")
    assert "the donor's own text ended first" in gate.sentence


def test_a_partly_fired_write_says_why() -> None:
    spec = write(during="prefill", min_positions=1)  # a guard of one position is none
    (gate,) = gates_of(spec, receipt("v_proj", (16, 10), (0, 0), 0.5))
    assert (gate.gate, gate.verdict) == ("partial", "warn")
    assert "200 of 320 positions" in gate.sentence and "shorter than the window last:16" in gate.sentence


LENGTHS = "donor and target differ in length"


GUARD = "outputs of fewer than 16 positions are left alone"


@pytest.mark.parametrize(
    ("fields", "reasons"),
    [
        ({"site": "kv_cache", "align": "right"}, [LENGTHS]),
        ({"site": "kv_cache", "align": "right", "min_positions": 16}, [LENGTHS, GUARD]),
        ({"positions": "all", "min_positions": 16}, [LENGTHS, GUARD]),
        ({"positions": "last:25%", "value": {"kind": "donor", "role": "donor", "draws": 1}}, [LENGTHS]),
        ({"positions": "last:16", "min_positions": 16}, [GUARD]),
        ({"positions": "all", "min_positions": 16, "value": {"kind": "random", "role": "donor"}}, [GUARD]),
        ({"positions": "all", "min_positions": 16, "value": {"kind": "donor", "role": "self"}}, [GUARD]),
    ],
)
def test_a_partly_fired_write_names_every_reason_that_can_apply(
    fields: dict[str, Any], reasons: list[str]
) -> None:
    (gate,) = gates_of(write(during="prefill", **fields), receipt("v_proj", (16, 10), (0, 0), 0.5))
    assert gate.gate == "partial"
    assert [reason for reason in (LENGTHS, GUARD) if reason in gate.sentence] == reasons


def test_partly_fired_writes_of_equal_figures_share_a_sentence() -> None:
    kv = write(site="kv_cache", during="prefill", align="right")
    written = {"one": 10, "two": 10, "three": 11}
    frames = [
        rows(name, offset=100 * i + 100, **receipt("kv", (16, n), (0, 0), 0.5))
        for i, (name, n) in enumerate(written.items())
    ]
    spec = manifest({name: condition({"kv": kv}) for name in written})
    first, second = named(result_gates(table(rows("baseline"), *frames), spec), "partial")
    assert first.condition == "one" and first.sentence.startswith("kv in one and two each fired in part")
    assert second.condition == "three" and second.sentence.startswith("kv in three fired in part")


EDGE = {"site": "attention_edge", "op": "mask", "during": "prefill", "has_old": False}


def test_cut_edges_are_judged_by_the_logits() -> None:
    acting = receipt("v_proj", (6, 6), (0, 0), None, logit_change=0.2)
    assert gates_of(write(**EDGE), acting) == []
    gates = gates_of(write(**EDGE), acting | {"v_proj.logit_change": 1e-8})
    assert [(g.gate, g.verdict) for g in gates] == [("inert", "fail")]
    assert "the first logits that it acts on 1e-08" in gates[0].sentence and blocking(gates, None)


def test_edges_of_a_future_key_do_not_exist() -> None:
    future = receipt("v_proj", (2, 0), (0, 0), None)
    (gate,) = gates_of(write(**EDGE), future)
    assert (gate.gate, gate.verdict) == ("inert", "fail")
    assert "none of the 40 query positions asked had such an edge" in gate.sentence
    (gate,) = gates_of(write(expect="inert", **EDGE), future)
    assert gate.verdict == "expected" and not blocking([gate], None)
    (gate,) = gates_of(write(expect="noop", **EDGE), future)
    assert gate.verdict == "fail" and "It was expected to fire" in gate.sentence


def test_queries_without_the_edges_asked_say_why() -> None:
    (gate,) = gates_of(write(**EDGE), receipt("v_proj", (6, 4), (0, 0), None, logit_change=0.2))
    assert (gate.gate, gate.verdict) == ("partial", "warn")
    assert "the other queries have no such edge, standing before every key asked" in gate.sentence
    spec = write(**EDGE | {"during": "decode"})
    (gate,) = gates_of(spec, receipt("v_proj", (0, 0), (9, 4), None, logit_change=0.2))
    assert "the keys asked had left the attention window" in gate.sentence


@pytest.mark.parametrize("fields", [{"op": "scale", "alpha": 1.0}, {"op": "add", "alpha": 0.0}])
def test_a_write_that_is_an_identity_by_its_numbers_is_inert_unless_it_is_expected(
    fields: dict[str, Any],
) -> None:
    columns = receipt("v_proj", (9, 9), (0, 0), 0.0)
    (gate,) = gates_of(write(during="prefill", **fields), columns)
    assert (gate.gate, gate.verdict) == ("inert", "fail")
    for expect, name in (("noop", "expect"), ("inert", "inert")):
        (gate,) = gates_of(write(during="prefill", expect=expect, **fields), columns)
        assert (gate.gate, gate.verdict) == (name, "expected")


def test_a_mean_or_a_fixed_vector_has_no_donor_whose_length_could_differ() -> None:
    spec = write(during="prefill", positions="all", value={"kind": "mean", "role": "", "draws": 1})
    (gate,) = gates_of(spec, receipt("v_proj", (16, 10), (0, 0), 0.5))
    assert gate.gate == "partial" and LENGTHS not in gate.sentence


def test_keys_ahead_of_the_query_are_counted() -> None:
    spec = write(site="kv_cache", during="prefill", rope="keep")
    (gate,) = gates_of(spec, receipt("v_proj", (9, 9), (0, 0), 0.5, keys_ahead=3))
    assert (gate.gate, gate.verdict) == ("keys_ahead", "warn")
    assert "60 keys" in gate.sentence and "in 20 of 20 trials (rope: keep)" in gate.sentence


def test_receipts_count_valid_trials_only() -> None:
    columns = receipt("v_proj", (0, 0), (9, 9), 0.5)
    treated = rows("treated", offset=100, **columns)
    treated["v_proj.positions_decode"] = [9] + [0] * (N - 1)
    treated.loc[0, "status"] = "invalid"
    gates = result_gates(
        table(rows("baseline"), treated), manifest({"treated": condition({"v_proj": write()})})
    )
    assert [g.verdict for g in named(gates, "inert")] == ["fail"]
