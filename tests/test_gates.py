"""Gates on outputs and design: whether conditions can be compared, and which runs are worth nothing."""

from __future__ import annotations

from typing import Any

import pytest

from analyses.gates.all_gates import all_gates, blocking, result_gates, unusable
from analyses.gates.gate import Gate
from tests.gating import (
    SAMPLING,
    N,
    condition,
    manifest,
    named,
    probed,
    readout,
    receipt,
    rows,
    table,
    write,
)

PROBES = {"p": readout("next_token", "p"), "lens": readout("lens", "lens.rank", "lens.prob")}
P = [0.5 + i / 100 for i in range(N)]


def measured(conditions: Any, primary: str = "p", **fields: Any) -> dict[str, Any]:
    """The manifest of a run of two probes, which generates nothing."""
    contrasts = {"family": "each_against_baseline", "baseline": "baseline", "primary": primary}
    return manifest(conditions, readout=PROBES, contrasts=contrasts, **fields)


def lens(shift: float = 0.0) -> dict[str, Any]:
    return {
        "lens.rank": [[i, 1, 0] for i in range(N)],
        "lens.prob": [[0.1, 0.2 + shift, 0.01 * i] for i in range(N)],
    }


def test_trap_20_a_control_identical_to_its_treatment_is_named() -> None:
    acting = receipt("v_proj", (0, 0), (9, 9), 0.4)
    trials = table(rows("baseline"), rows("l27", offset=100, **acting), rows("l5", offset=100, **acting))
    spec = manifest({"l27": condition({"v_proj": write()}), "l5": condition({"v_proj": write(layers=[1])})})
    (gate,) = named(result_gates(trials, spec), "identical")
    assert (gate.condition, gate.verdict) == ("l5", "fail")
    assert "l27 and l5 gave the same output tokens in 20 of 20 shared trials (100%)" in gate.sentence


def test_trap_20_too_few_or_too_short_texts_are_no_verdict_on_a_write_that_acts() -> None:
    probe = {"readout": {"p": readout("next_token", "p"), "behaviour": readout("behaviour", "score")}}

    def found(tokens: int, change: float = 0.306, during: str = "decode", **fields: Any) -> Gate:
        conditions = {
            "add": condition({"r": write(op="add", value="random", during=during)}),
            "cut": condition({"e": write(layers=[1], during=during)}),
        }
        where = ((0, 0), (28, 28)) if during == "decode" else ((28, 28), (0, 0))
        frames = [
            rows("baseline", n=4, tokens=tokens, p=0.5),
            rows("add", n=4, tokens=tokens, p=0.5, **receipt("r", *where, change)),
            rows("cut", n=4, tokens=tokens, p=0.5, **receipt("e", *where, 0.2)),
        ]
        (gate,) = named(result_gates(table(*frames), manifest(conditions, **fields)), "identical")
        return gate

    few = found(8)
    assert (few.condition, few.verdict) == ("add", "warn")
    assert few.sentence == (
        "baseline, add and cut gave the same output tokens in 4 of 4 shared trials (100%), of 8 tokens at "
        "most, although r in add changed what it acts on (relative change 0.306), and so did the writes of "
        "the others: too few or too short to tell them apart."
    )
    assert found(300).verdict == "fail"  # 1,200 tokens, none of which changed
    assert found(8, change=1e-9).verdict == "fail"  # one write changed nothing
    assert found(8, during="prefill").verdict == "warn"
    # A probability of the prompt's forwards shows any change in prefill, and none in decode.
    assert found(8, during="prefill", **probe).verdict == "fail"
    assert found(8, **probe).verdict == "warn"


def test_trap_20_a_write_that_both_have_tells_nothing_of_their_difference() -> None:
    shared, idle = write(), write(layers=[1])
    columns = receipt("v", (0, 0), (9, 9), 0.4) | receipt("w", (0, 0), (9, 9), 1e-9)
    trials = table(
        rows("baseline"),
        rows("a", offset=100, tokens=8, **columns),
        rows("b", offset=100, tokens=8, **columns),
    )
    spec = manifest({"a": condition({"v": shared}), "b": condition({"v": shared, "w": idle})})
    (gate,) = named(result_gates(trials, spec), "identical")
    assert (gate.condition, gate.verdict) == ("b", "fail")


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


def test_trap_20_every_probe_is_compared_where_nothing_is_generated() -> None:
    conditions = {
        "l27": condition({"v": write(during="prefill")}),
        "l5": condition({"v": write(during="prefill", layers=[1])}),
    }
    moved, rounded = [p - 0.1 for p in P], [p - 0.1 + 1e-9 for p in P]
    alike = table(probed("baseline", p=P, **lens()), probed("l27", p=moved, **lens(0.1)))
    trials = table(alike, probed("l5", p=rounded, **lens(0.1)))
    (gate,) = named(result_gates(trials, measured(conditions)), "identical")
    assert (gate.condition, gate.verdict) == ("l5", "fail")
    assert "l27 and l5 gave the same values of p and lens in 20 of 20 shared trials" in gate.sentence
    apart = table(alike, probed("l5", p=rounded, **lens(0.1001)))
    assert named(result_gates(apart, measured(conditions)), "identical") == []


def test_trap_20_equal_texts_with_other_probabilities_are_not_identical() -> None:
    spec = measured({"steered": condition({"s": write(during="prefill", op="add")})})
    spec["readout"] = PROBES | {"behaviour": readout("behaviour", "score")}
    trials = table(rows("baseline", p=P, **lens()), rows("steered", p=[q - 0.2 for q in P], **lens()))
    assert named(result_gates(trials, spec), "identical") == []
    trials = table(rows("baseline", p=P, **lens()), rows("steered", p=P, **lens()))
    (gate,) = named(result_gates(trials, spec), "identical")
    assert "the same output tokens and values of p and lens in 20 of 20" in gate.sentence


def test_trap_20_values_that_differ_by_rounding_are_the_same_whatever_their_size() -> None:
    spec = measured({"arm": condition({"v": write(during="prefill")})}, primary="kl")
    spec["readout"] = {"kl": readout("kl", "kl"), "gap": readout("log_odds", "gap")}
    acting = probed("other", kl=0.4, gap=3.0)
    gap = [1e-7 if i % 2 else -4.0 for i in range(N)]
    same = probed("arm", kl=2e-9, gap=[g + 1e-8 for g in gap])
    conditions = spec["conditions"] | {"other": condition({"w": write(during="prefill", layers=[2])})}
    trials = table(probed("baseline", kl=0.0, gap=gap), same, acting)
    (gate,) = named(result_gates(trials, spec | {"conditions": conditions}), "identical")
    assert gate.condition == "arm" and "baseline and arm gave" in gate.sentence


def test_trap_20_an_undefined_value_is_equal_to_another_and_to_no_number() -> None:
    spec = measured({"arm": condition({"v": write(during="prefill")})})
    holes = [None if i < 5 else p for i, p in enumerate(P)]
    alike = table(probed("baseline", p=holes, **lens()), probed("arm", p=holes, **lens()))
    (gate,) = named(result_gates(alike, spec), "identical")
    assert "20 of 20" in gate.sentence
    apart = table(probed("baseline", p=P, **lens()), probed("arm", p=holes, **lens()))
    assert named(result_gates(apart, spec), "identical") == []


def test_a_probe_without_values_is_told() -> None:
    spec = measured({"arm": condition({"v": write(during="prefill")})})
    holes = [None if i < 5 else p - 0.2 for i, p in enumerate(P)]
    trials = table(probed("baseline", p=P, **lens()), probed("arm", p=holes, **lens(0.1)))
    (gate,) = named(result_gates(trials, spec), "undefined")
    assert (gate.condition, gate.verdict) == ("arm", "warn")
    assert gate.sentence == "p is undefined in 5 of 20 valid trials of arm: they are left out."
    nothing = table(probed("baseline", p=P, **lens()), probed("arm", p=None, **lens(0.1)))
    (gate,) = named(result_gates(nothing, spec), "undefined")
    assert gate.verdict == "fail" and gate.sentence.endswith("nothing can be said about it.")


def test_a_run_of_probes_alone_is_judged_by_its_statuses_and_not_by_its_missing_texts() -> None:
    spec = measured({"arm": condition({"v": write(during="prefill")})})
    arm = probed("arm", p=[q - 0.2 for q in P], **lens(0.1), **receipt("v", (16, 16), (0, 0), 0.4))
    trials = table(probed("baseline", p=P, **lens()), arm)
    assert result_gates(trials, spec) == [] and not unusable(result_gates(trials, spec))
    assert result_gates(trials, spec | {"conditions": spec["conditions"]}) == []
    trials["status"], trials["reason"] = "invalid", "a window of 16 is longer than a prompt of 9 tokens"
    gates = result_gates(trials, spec)
    assert unusable(gates) and "a window of 16 is longer" in named(gates, "no_valid_trials")[1].sentence


def test_a_noop_among_probes_says_how_often_they_equal_the_baselines() -> None:
    spec = measured({"noop": condition({"v": write(during="prefill", op="scale", expect="noop")})})
    same = probed("noop", p=P, **lens(), **receipt("v", (16, 16), (0, 0), 0.0))
    gates = result_gates(table(probed("baseline", p=P, **lens()), same), spec)
    (gate,) = named(gates, "expect")
    assert gate.verdict == "expected"
    assert gate.sentence.endswith("; its values of p and lens equal those of baseline in 20 of 20 trials.")
    assert [g.verdict for g in named(gates, "identical")] == ["expected"]


def test_a_distance_against_the_clean_run_can_come_out_in_one_direction_only() -> None:
    conditions = {
        "arm": condition({"v": write(during="prefill")}),
        "random": condition({"v": write(during="prefill", value="random")}),
    }
    spec = measured(conditions, primary="drift")
    spec["readout"] = {"drift": readout("kl", "drift")}
    spec["contrasts"]["extra"] = [["arm", "random"]]
    trials = table(
        probed("baseline", drift=0.0), probed("arm", drift=P), probed("random", drift=[p / 2 for p in P])
    )
    (gate,) = named(result_gates(trials, spec), "one_sided")
    assert gate.verdict == "warn"
    assert "arm against baseline and random against baseline can come out in one direction" in gate.sentence
    spec["contrasts"] |= {"family": "none"}
    assert named(result_gates(trials, spec), "one_sided") == []


def test_trap_25_where_nothing_is_generated_no_sampler_is_compared() -> None:
    other = {"arm": condition({"v": write(during="prefill")}, sampling=SAMPLING | {"top_k": 50})}
    trials = table(probed("baseline", p=P, **lens()), probed("arm", p=[q / 2 for q in P], **lens(0.1)))
    assert named(result_gates(trials, measured(other)), "sampler") == []
    (gate,) = named(result_gates(table(rows("baseline"), rows("arm", offset=9)), manifest(other)), "sampler")
    assert "top_k 50" in gate.sentence


def sae(indices: list[int], **fields: Any) -> dict[str, Any]:
    features = {"fingerprint": "abc", "site": "resid_post", "indices": indices}
    spec = write(site="sae", op="set_feature", layers=[5], during="prefill", features=features)
    return spec | fields


def test_trap_13_a_round_trip_without_a_pass_through_arm_is_not_comparable() -> None:
    arms = {
        "safe": condition({"f": sae([3], round_trip=True)}),
        "risky": condition({"f": sae([4], round_trip=True)}),
    }
    frames = [rows("baseline"), rows("safe", offset=100), rows("risky", offset=200)]
    (gate,) = named(result_gates(table(*frames), manifest(arms)), "round_trip")
    assert (gate.condition, gate.verdict) == ("safe", "fail")
    assert gate.sentence == (
        "safe and risky pass resid_post of layer 5 through a sparse autoencoder and back, baseline does not: "
        "the reconstruction error is part of what is compared, beside the features. Compare with an arm that "
        "goes the same way and leaves the features as they are (op: scale, alpha: 1)."
    )
    through = arms | {"through": condition({"f": sae([3], round_trip=True, op="scale", alpha=1.0)})}
    frames.append(rows("through", offset=300))
    (gate,) = named(result_gates(table(*frames), manifest(through)), "round_trip")
    assert gate.verdict == "warn" and "Compare with through, which goes the same way" in gate.sentence
    against = {"family": "each_against_baseline", "baseline": "through", "primary": "score"}
    own = {"kind": "source", "role": "self", "draws": 1}
    by_value = arms | {"through": condition({"f": sae([3], round_trip=True, value=own)})}
    (gate,) = named(result_gates(table(*frames), manifest(by_value)), "round_trip")
    assert gate.verdict == "warn"
    halved = arms | {"through": condition({"f": sae([3], round_trip=True, op="scale", alpha=0.5)})}
    (gate,) = named(result_gates(table(*frames), manifest(halved)), "round_trip")
    assert gate.verdict == "fail" and gate.sentence.startswith("safe, risky and through pass")
    # What remains between the arm that passes through and the clean run is the reconstruction error itself.
    assert named(result_gates(table(*frames), manifest(through, contrasts=against)), "round_trip") == []


def test_trap_13_the_error_preserving_write_has_no_round_trip() -> None:
    arms = {"safe": condition({"f": sae([3], round_trip=False)})}
    trials = table(rows("baseline"), rows("safe", offset=100))
    assert named(result_gates(trials, manifest(arms)), "round_trip") == []


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


def test_conditions_that_differ_by_their_weights_alone_are_not_declared_alike() -> None:
    direction = {"orthogonalise": {"name": "r.npy", "digest": "d"}}
    told = manifest({"changed": condition(weights=direction)})
    trials = table(rows("baseline"), rows("changed"))
    (gate,) = named(result_gates(trials, told), "identical")
    assert (gate.condition, gate.verdict) == ("changed", "fail")
