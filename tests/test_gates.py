"""Gates: what a reader must be told about the writes and the design, and what stops a run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import pytest

from analyses.gate import Gate
from analyses.gates import all_gates, blocking, result_gates

N = 20
SAMPLING = {"temperature": 0.8, "top_k": None, "top_p": None, "max_new_tokens": 10}


def write(**fields: Any) -> dict[str, Any]:
    """One write of the manifest; a V_PROJ write in decode unless told otherwise."""
    spec = {
        "site": "v_proj",
        "layers": [7],
        "op": "replace",
        "value": "donor",
        "positions": "last:16",
        "during": "decode",
        "hold": "cycle",
        "align": None,
        "rope": None,
        "expect": None,
        "min_positions": None,
        "has_old": True,
    }
    return spec | fields


def condition(writes: Mapping[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    return {"label": "", "words": [], "writes": writes or {}, "sampling": SAMPLING, "same_as": None} | fields


def manifest(conditions: Mapping[str, Any], **fields: Any) -> dict[str, Any]:
    return {
        "schema": 1,
        "experiment": {"name": "made", "n": N, "repeats": 1},
        "dtype": "float32",
        "conditions": {"baseline": condition(), **conditions},
        "contrasts": {"family": "each_against_baseline", "baseline": "baseline", "primary": "score"},
    } | fields


def rows(name: str, *, n: int = N, offset: int = 0, **columns: Any) -> pd.DataFrame:
    """n valid trials of one condition; a column is a constant or one value per trial."""
    frame = pd.DataFrame(
        {
            "stage": "measure",
            "condition": name,
            "item": [f"{i:04d}" for i in range(n)],
            "donor": [f"d{i}" for i in range(n)],
            "target": [f"t{i}" for i in range(n)],
            "repeat": 0,
            "status": "ok",
            "reason": None,
            "output_ids": [[offset + i, i + 1] for i in range(n)],
            "score": [float((i * 7 + offset) % 5) for i in range(n)],
            "origin": None,
            "batch_rows": 8,
            "batch_length": 30,
        }
    )
    for key, value in columns.items():
        frame[key] = value
    return frame


def receipt(
    write_name: str, prefill: Sequence[int], decode: Sequence[int], change: float | None, **more: float
) -> dict[str, Any]:
    """Receipt columns of one write, each trial alike: (asked, written) by phase and the relative change."""
    return {
        f"{write_name}.asked_prefill": prefill[0],
        f"{write_name}.positions_prefill": prefill[1],
        f"{write_name}.asked_decode": decode[0],
        f"{write_name}.positions_decode": decode[1],
        f"{write_name}.positions_shadowed": 0,
        f"{write_name}.relative_change": math.nan if change is None else change,
        f"{write_name}.keys_ahead": 0,
    } | {f"{write_name}.{key}": value for key, value in more.items()}


def table(*frames: pd.DataFrame) -> pd.DataFrame:
    return pd.concat(frames, ignore_index=True)


def named(gates: Sequence[Gate], gate: str) -> list[Gate]:
    return [found for found in gates if found.gate == gate]


def gates_of(spec: Mapping[str, Any], columns: Mapping[str, Any], **fields: Any) -> list[Gate]:
    """Gates of a run of baseline and one treated condition with one write, v_proj."""
    trials = table(rows("baseline"), rows("treated", offset=100, **columns))
    return result_gates(trials, manifest({"treated": condition({"v_proj": spec})}, **fields))


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


def test_a_partly_fired_write_says_why() -> None:
    spec = write(during="prefill", min_positions=1)  # a guard of one position is none
    (gate,) = gates_of(spec, receipt("v_proj", (16, 10), (0, 0), 0.5))
    assert (gate.gate, gate.verdict) == ("partial", "warn")
    assert "200 of 320 positions" in gate.sentence and "shorter than the window last:16" in gate.sentence


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


def test_trap_20_a_control_identical_to_its_treatment_is_named() -> None:
    acting = receipt("v_proj", (0, 0), (9, 9), 0.4)
    trials = table(rows("baseline"), rows("l27", offset=100, **acting), rows("l5", offset=100, **acting))
    spec = manifest({"l27": condition({"v_proj": write()}), "l5": condition({"v_proj": write(layers=[1])})})
    (gate,) = named(result_gates(trials, spec), "identical")
    assert (gate.condition, gate.verdict) == ("l5", "fail")
    assert "l5 and l27 gave the same output tokens in 20 of 20 shared trials (100%)" in gate.sentence


def test_trap_20_identity_is_expected_where_only_inert_writes_differ() -> None:
    kv = write(site="kv_cache", during="prefill")
    columns = receipt("kv", (9, 9), (0, 0), 0.4) | receipt("v_proj", (0, 0), (9, 0), None)
    trials = table(rows("baseline"), rows("l27", offset=100, **columns), rows("l5", offset=100, **columns))
    conditions = {
        "l27": condition({"kv": kv, "v_proj": write(expect="inert")}),
        "l5": condition({"kv": kv, "v_proj": write(expect="inert", layers=[1])}),
    }
    gates = result_gates(trials, manifest(conditions))
    assert [g.verdict for g in named(gates, "identical")] == ["expected"]
    assert not blocking(gates, None)


def test_trap_20_same_as_and_nearly_equal_arms() -> None:
    trials = table(rows("baseline"), rows("again"))
    (gate,) = named(result_gates(trials, manifest({"again": condition(same_as="baseline")})), "identical")
    assert gate.verdict == "expected" and "same_as" in gate.sentence
    mostly = rows("again", output_ids=[[999], *rows("baseline")["output_ids"][1:]])
    spec = manifest({"again": condition({"v": write(during="prefill")})})
    assert named(result_gates(table(rows("baseline"), mostly), spec), "identical") == []


def test_trap_20_without_outputs_the_primary_readout_is_compared() -> None:
    trials = table(rows("baseline"), rows("patched")).drop(columns="output_ids")
    spec = manifest({"patched": condition({"v": write(during="prefill")})})
    (gate,) = named(result_gates(trials, spec), "identical")
    assert gate.verdict == "fail" and "values of score" in gate.sentence


def test_trap_45_a_shuffle_that_attention_cannot_see_equals_the_unshuffled_cache() -> None:
    kv = write(site="kv_cache", part="both", during="prefill", rope="keep")
    columns = receipt("kv", (9, 9), (0, 0), 0.4)
    trials = table(rows("baseline"), *(rows(name, offset=100, **columns) for name in ("kv_only", "shuffled")))
    conditions = {
        "kv_only": condition({"kv": kv}),
        "shuffled": condition({"kv": kv | {"value": "shuffled_sequence"}}),
    }
    (gate,) = named(result_gates(trials, manifest(conditions)), "identical")
    assert (gate.condition, gate.verdict) == ("shuffled", "fail")


def test_the_same_outputs_from_another_prompt_are_not_explained_by_idle_writes() -> None:
    trials = table(rows("baseline"), rows("ceiling"))
    (gate,) = named(result_gates(trials, manifest({"ceiling": condition(prompt="donor")})), "identical")
    assert gate.verdict == "fail"


def test_trap_35_differential_invalidity() -> None:
    treated = rows("treated", offset=100)
    treated.loc[:3, ["status", "reason"]] = ["invalid", "prompt shorter than the window"]
    spec = manifest({"treated": condition()})
    gates = result_gates(table(rows("baseline"), treated), spec)
    (gate,) = named(gates, "valid_rate")
    assert gate.verdict == "fail"
    assert "16 of 20 trials of treated are valid (80%), against 20 of 20 of baseline" in gate.sentence
    assert "prompt shorter than the window" in gate.sentence
    (unequal,) = named(gates, "unequal_n")
    assert "4 of 20 trials of baseline had no valid partner" in unequal.sentence
    treated["status"] = "invalid"
    (none,) = named(result_gates(table(rows("baseline"), treated), spec), "valid_rate")
    assert none.verdict == "fail" and "nothing can be said" in none.sentence


def test_equal_loss_in_both_arms_is_not_differential() -> None:
    frames = [rows("baseline"), rows("treated", offset=100)]
    for frame in frames:
        frame.loc[:1, "status"] = "invalid"
    gates = result_gates(table(*frames), manifest({"treated": condition()}))
    assert named(gates, "valid_rate") == [] and named(gates, "unequal_n") == []
    (fewer,) = named(gates, "fewer_items")
    assert fewer.condition == "all" and "18 gave a valid trial" in fewer.sentence


def test_trap_38_failed_trials_are_a_failing_gate() -> None:
    treated = rows("treated", offset=100)
    treated.loc[:2, ["status", "reason"]] = ["failed", "out of memory\ntraceback"]
    (gate,) = named(
        result_gates(table(rows("baseline"), treated), manifest({"treated": condition()})), "failed"
    )
    assert gate.sentence == "3 of 20 trials of treated failed, most often: out of memory."
    assert gate.verdict == "fail"


def test_trap_34_silent_shrink_is_said() -> None:
    spec = manifest({"treated": condition()}, experiment={"name": "n100", "n": 100, "repeats": 1})
    (gate,) = named(result_gates(table(rows("baseline"), rows("treated", offset=9)), spec), "fewer_items")
    assert gate.sentence.startswith("100 items were asked for and 20 gave a valid trial in every condition")


def test_trap_28_reused_items_state_the_effective_n() -> None:
    reuse: dict[str, Any] = {
        "donor": [f"d{i % 3}" for i in range(N)],
        "target": [f"t{i % 4}" for i in range(N)],
    }
    trials = table(rows("baseline", **reuse), rows("treated", offset=3, **reuse))
    (gate,) = named(result_gates(trials, manifest({"treated": condition()})), "reused_items")
    assert "20 items use 3 donors and 4 targets, 12 distinct pairs" in gate.sentence
    assert "count as" in gate.sentence
    assert named(result_gates(table(rows("baseline")), manifest({})), "reused_items") == []


def test_trap_25_a_sampler_that_differs_from_the_baselines_is_named() -> None:
    spec = manifest({"treated": condition(sampling=SAMPLING | {"top_k": 50})})
    (gate,) = named(result_gates(table(rows("baseline"), rows("treated", offset=9)), spec), "sampler")
    assert "top_k 50, not off" in gate.sentence and gate.verdict == "warn"


def test_a_path_that_differs_by_more_than_the_writes_is_named() -> None:
    spec = manifest({"treated": condition(replay_last_token=True)})
    (gate,) = named(result_gates(table(rows("baseline"), rows("treated", offset=9)), spec), "path")
    assert "replay_last_token on, not off" in gate.sentence


def test_trap_44_reused_rows_of_unlike_batch_shapes_matter_in_low_precision_only() -> None:
    reused = rows("treated", offset=100, origin="outputs/made/v0001", batch_rows=16)
    trials = table(rows("baseline"), reused)
    spec = {"treated": condition()}
    (gate,) = named(result_gates(trials, manifest(spec, dtype="bfloat16")), "batch_shapes")
    assert "20 of 20 pairs" in gate.sentence
    assert named(result_gates(trials, manifest(spec)), "batch_shapes") == []
    fresh = table(rows("baseline"), rows("treated", offset=100, batch_rows=16))
    assert named(result_gates(fresh, manifest(spec, dtype="bfloat16")), "batch_shapes") == []


def test_gates_of_the_plan_stand_beside_those_of_the_results() -> None:
    plan = [
        {"condition": "treated", "gate": "reach", "verdict": "warn", "sentence": "It cannot reach."},
        {"condition": "treated", "gate": "inert", "verdict": "warn", "sentence": "It may be inert."},
    ]
    trials = table(rows("baseline"), rows("treated", offset=100, **receipt("v_proj", (0, 0), (9, 0), None)))
    spec = manifest({"treated": condition({"v_proj": write()})}, plan_gates=plan)
    gates = all_gates(trials, spec)
    assert [(g.gate, g.verdict) for g in gates] == [("inert", "fail"), ("reach", "warn")]


def test_a_verdict_outside_the_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match="verdict of gate inert"):
        Gate("treated", "inert", "bad", "")
