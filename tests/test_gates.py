"""Gates on outputs and design: whether conditions can be compared, and which runs are worth nothing."""

from __future__ import annotations

from typing import Any

import pytest

from analyses.gate import Gate
from analyses.gates import all_gates, blocking, result_gates, unusable
from tests.gating import SAMPLING, N, condition, manifest, named, receipt, rows, table, write


def test_trap_20_a_control_identical_to_its_treatment_is_named() -> None:
    acting = receipt("v_proj", (0, 0), (9, 9), 0.4)
    trials = table(rows("baseline"), rows("l27", offset=100, **acting), rows("l5", offset=100, **acting))
    spec = manifest({"l27": condition({"v_proj": write()}), "l5": condition({"v_proj": write(layers=[1])})})
    (gate,) = named(result_gates(trials, spec), "identical")
    assert (gate.condition, gate.verdict) == ("l5", "fail")
    assert "l27 and l5 gave the same output tokens in 20 of 20 shared trials (100%)" in gate.sentence


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


def test_trap_20_conditions_of_equal_outputs_share_one_gate() -> None:
    noop, acting = write(expect="noop"), write()
    names = [f"c{i}" for i in range(7)]
    columns = receipt("v_proj", (0, 0), (9, 9), 0.0) | receipt("w", (0, 0), (9, 9), 0.4)
    trials = table(rows("baseline"), *(rows(name, **columns) for name in names), rows("other", offset=100))
    conditions = {name: condition({"v_proj": noop}) for name in names}
    conditions["c1"] = condition(same_as="c0", prompt="donor")
    found = named(result_gates(trials, manifest(conditions | {"other": condition()})), "identical")
    assert [(g.condition, g.verdict) for g in found] == [("c0", "expected")]
    assert "baseline, c0, c1, c2, c3, c4, c5 and c6 gave the same output tokens" in found[0].sentence
    assert "do nothing and same_as" in found[0].sentence and "other" not in found[0].sentence
    conditions["c3"] = conditions["c5"] = condition({"w": acting})
    (gate,) = named(result_gates(trials, manifest(conditions | {"other": condition()})), "identical")
    assert (gate.condition, gate.verdict) == ("c3", "fail")
    assert gate.sentence.endswith("(expected of c0, c1, c2, c4 and c6).")


def test_trap_20_a_group_gives_the_figures_of_its_least_alike() -> None:
    n = 200
    outputs = {"baseline": 0, "a": 2, "b": 4}  # b agrees with a in 99%, with the baseline in 98%
    frames = []
    for name, changed in outputs.items():
        frame = rows(name, n=n)
        frame["output_ids"] = [[999 + i, i] if i < changed else [i, i] for i in range(n)]
        frames.append(frame)
    spec = manifest({name: condition({"v": write(during="prefill")}) for name in ("a", "b")})
    (gate,) = named(result_gates(table(*frames), spec), "identical")
    assert "baseline, a and b gave" in gate.sentence
    assert "in at least 196 of 200 shared trials (98%)" in gate.sentence
    frames = [rows("baseline"), rows("a"), rows("b")]
    frames[2].loc[:4, "status"] = "invalid"
    (gate,) = named(result_gates(table(*frames), spec), "identical")
    assert "in every shared trial (15 to 20 of any two)" in gate.sentence


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
    found = result_gates(table(rows("baseline"), treated), spec)
    (none,) = named(found, "no_valid_trials")
    assert (none.condition, none.verdict) == ("treated", "fail")
    assert (
        "none of the 20 trials of treated is valid (20 invalid, most often: prompt shorter" in none.sentence
    )
    assert named(found, "valid_rate") == [] and not unusable(found)


def test_trap_35_a_run_without_one_valid_trial_is_unusable() -> None:
    frames = [rows("baseline"), rows("treated", offset=100)]
    for frame in frames:
        frame["status"], frame["reason"] = "invalid", "a window of 400 is longer than a prompt of 31 tokens"
    frames[1].loc[:4, ["status", "reason"]] = ["failed", "out of memory"]
    spec = manifest({"treated": condition({"v_proj": write()})})
    gates = result_gates(table(*frames), spec)
    none = named(gates, "no_valid_trials")
    assert [(g.condition, g.verdict) for g in none] == [
        ("all", "fail"),
        ("baseline", "fail"),
        ("treated", "fail"),
    ]
    assert none == gates[:3] and unusable(gates)
    assert "(15 invalid and 5 failed, most often: a window of 400 is longer" in none[2].sentence
    frames[0]["status"] = "pending"  # these may still be valid
    waiting = result_gates(table(*frames), spec)
    assert [g.condition for g in named(waiting, "no_valid_trials")] == ["treated"] and not unusable(waiting)
    frames[0].loc[3, "status"] = "ok"
    assert not unusable(result_gates(table(*frames), spec))


def test_trap_35_a_condition_without_a_row_has_no_valid_trial() -> None:
    gates = result_gates(table(rows("baseline")), manifest({"treated": condition()}))
    (none,) = named(gates, "no_valid_trials")
    assert none.condition == "treated" and "no trial at all" in none.sentence


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


def test_conditions_that_differ_alike_from_the_baseline_share_a_sentence() -> None:
    other = SAMPLING | {"top_k": 50}
    names = ("a", "b", "c")
    conditions = {
        "a": condition(sampling=other, replay_last_token=True),
        "b": condition(sampling=other, replay_last_token=True),
        "c": condition(sampling=other | {"temperature": 1.0}, replay_last_token=True),
    }
    trials = table(rows("baseline"), *(rows(name, offset=100 + 50 * i) for i, name in enumerate(names)))
    gates = result_gates(trials, manifest(conditions))
    first, second = named(gates, "sampler")
    assert first.condition == "a" and first.sentence.startswith(
        "a and b sample differently from baseline (top_k"
    )
    assert second.sentence.startswith("c samples differently from baseline (temperature 1.0, not 0.8; top_k")
    (path,) = named(gates, "path")
    assert path.sentence.startswith("a, b and c take another path than baseline")


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
