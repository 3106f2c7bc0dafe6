"""The declared family: cross-checks, corrections, margins, invalid trials, what is exploratory, and the power
that is known before a run."""

from __future__ import annotations

import io
import json
import math
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

from analyses.comparisons.contrast import Contrast
from analyses.comparisons.contrasts import MOST_CHECKED, contrasts
from analyses.comparisons.correlations import correlations
from analyses.comparisons.exploratory import exploratory
from analyses.comparisons.margins import margin_of
from analyses.summary.markdown import to_markdown
from analyses.summary.summary import summarise
from analyses.summary.terminal import print_summary
from analyses.tables.pairs import Paired, pair
from analyses.tables.run import Run
from backends.rows import GREEDY, Row
from runner.config.resolve import Design
from runner.plan import Plan, Trial
from runner.power_before import power_before
from tests.configuring import KV_ONLY, design, faults
from tests.made_run import N, made_manifest, made_run, made_trials

VERDICTS = ("raises", "lowers", "are equal", "No difference")


def table(values: Mapping[str, Any], donors: list[str], targets: list[str]) -> pd.DataFrame:
    """Trials of conditions with the given scores; NaN: invalid."""
    rows = []
    for name, scores in values.items():
        for i, score in enumerate(scores):
            known = not math.isnan(score)
            rows.append(
                {
                    "stage": "measure", "condition": name, "item": f"{i:03d}", "repeat": 0,
                    "donor": donors[i], "target": targets[i], "status": "ok" if known else "invalid",
                    "reason": None, "score": score,
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


def declared(names: list[str], **options: Any) -> dict[str, Any]:
    base = made_manifest(**options)
    blank = {"label": "", "words": [], "writes": {}, "same_as": None}
    reads = {"prompt": "donor"}
    return base | {"conditions": {n: blank if n == "baseline" else blank | reads for n in names}}


def of(found: list[Contrast], condition: str) -> Contrast:
    (one,) = [each for each in found if each.condition == condition]
    return one


def checks(contrast: Contrast) -> dict[str, Any]:
    return {each.name: each for each in contrast.cross_checks}


# --- Corrections -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("correction", "method", "name"),
    [
        ("holm", "holm", "Holm"),
        ("bonferroni", "bonferroni", "Bonferroni"),
        ("benjamini_hochberg", "fdr_bh", "Benjamini-Hochberg"),
    ],
)
def test_trap_31_the_correction_that_is_announced_is_the_one_applied(
    correction: str, method: str, name: str
) -> None:
    trials = made_trials()
    trials.loc[trials["condition"].eq("kv_self") & trials["item"].lt("0020"), "score"] += 1
    found = contrasts(trials, made_manifest(correction=correction))
    raw = [each.test.p for each in found if each.test is not None and each.test.p is not None]
    assert len(raw) == len(found)
    expected = multipletests(raw, method=method)[1]
    assert [each.p_corrected for each in found] == pytest.approx(list(expected))
    assert [each.p_holm for each in found] == pytest.approx(list(multipletests(raw, method="holm")[1]))
    assert all(f"after {name}" in each.sentence for each in found)
    shown = {each.condition for each in found if each.sentence.split()[1] in ("raises", "lowers")}
    assert shown == {each.condition for each in found if (each.p_corrected or 0) < 0.05}


def test_trap_31_an_unknown_correction_is_refused_and_never_replaced() -> None:
    with pytest.raises(ValueError, match=r"holm, bonferroni, benjamini_hochberg.*'bonferoni'"):
        contrasts(made_trials(), made_manifest(correction="bonferoni"))
    assert "did you mean 'bonferroni'" in faults(KV_ONLY, "contrasts.correction=bonferoni")


def test_a_manifest_of_an_older_version_reads_as_before() -> None:
    trials, manifest = made_trials(), made_manifest()
    assert not {"correction", "positive_control", "expected"} & set(manifest["contrasts"])
    summary = summarise(Run(trials, manifest, Path(".")))
    assert summary["correction"] == "holm" and summary["margin"] is None and summary["power"] is None
    assert all(each["p_corrected"] == each["p_holm"] for each in summary["contrasts"])


# --- Cross-checks ----------------------------------------------------------------------------------------


def test_trap_28_the_naive_test_that_would_have_said_otherwise_is_named() -> None:
    rng = np.random.default_rng(3)
    of_donor = np.array([3.0, -1.5, 2.5, -1.0, 2.0, -0.5, 2.5, -0.6])[np.arange(160) % 8]
    base = rng.normal(0, 1, 160)
    trials = table(
        {"baseline": base, "kv": base + of_donor + rng.normal(0, 0.5, 160)},
        [f"d{i % 8}" for i in range(160)],
        [f"t{i}" for i in range(160)],
    )
    (found,) = contrasts(trials, declared(["baseline", "kv"]))
    assert found.test is not None and found.test.p is not None and found.test.p > 0.05
    naive = checks(found)["paired t"]
    delta = pair(trials, "kv", "baseline", "score").difference
    assert naive.p == pytest.approx(stats.ttest_1samp(delta, 0).pvalue) and naive.p < 0.001
    assert naive.agrees is False
    assert "the naive paired t test would have said p < 0.0001" in found.cross_check_sentence
    assert checks(found)["mixed model"].agrees is True and checks(found)["sign flip"].agrees is True
    assert found.icc["donor"] > 0.5 and "target" not in found.icc


def test_cross_checks_are_those_of_scipy_and_agree_where_the_effect_is_plain() -> None:
    trials = made_trials()
    found = of(contrasts(trials, made_manifest()), "kv_only")
    delta = pair(trials, "kv_only", "baseline", "score").difference
    by_name = checks(found)
    assert list(by_name) == ["paired t", "Wilcoxon", "sign flip", "two-way bootstrap", "mixed model"]
    assert by_name["paired t"].p == pytest.approx(stats.ttest_1samp(delta, 0).pvalue)
    assert by_name["Wilcoxon"].p == pytest.approx(stats.wilcoxon(delta[delta != 0]).pvalue)
    assert all(each.agrees is True for each in by_name.values())
    assert found.cross_check_sentence == (
        "Cross-checks agree: paired t, Wilcoxon, sign flip, two-way bootstrap and mixed model."
    )


def test_a_readout_of_0_and_1_is_cross_checked_by_mcnemar() -> None:
    trials = made_trials()
    trials["score"] = (trials["score"] >= 3).astype(float)
    found = of(contrasts(trials, made_manifest()), "kv_only")
    paired = pair(trials, "kv_only", "baseline", "score")
    up, down = int((paired.difference > 0).sum()), int((paired.difference < 0).sum())
    assert checks(found)["McNemar"].p == pytest.approx(stats.binomtest(up, up + down).pvalue)
    assert "McNemar" not in checks(of(contrasts(made_trials(), made_manifest()), "kv_only"))


def test_an_equivalence_is_cross_checked_by_intervals_and_tost_alone() -> None:
    same = [["kv_plain", "baseline", {"margin": 1.0}]]
    found = contrasts(made_trials(), made_manifest(same=same))[-1]
    delta = pair(made_trials(), "kv_plain", "baseline", "score").difference
    by_name = checks(found)
    assert list(by_name) == ["paired t", "two-way bootstrap", "mixed model"]
    above = stats.ttest_1samp(delta, -1.0, alternative="greater").pvalue
    below = stats.ttest_1samp(delta, 1.0, alternative="less").pvalue
    assert by_name["paired t"].p == pytest.approx(max(above, below))
    assert by_name["two-way bootstrap"].p is None and by_name["two-way bootstrap"].agrees is True


def test_of_many_contrasts_those_with_the_smallest_p_are_cross_checked_and_it_is_said() -> None:
    trials = made_trials()
    other = [["kv_plain", "kv_self"]] * (MOST_CHECKED + 5)
    found = contrasts(trials, made_manifest(extra=other))
    unchecked = [each for each in found if not each.cross_checks and each.test and each.test.p is not None]
    assert len([each for each in found if each.cross_checks]) == MOST_CHECKED
    assert of(found[:4], "kv_only").cross_checks
    assert all("this is not one of them" in each.cross_check_sentence for each in unchecked)
    summary = summarise(made_run(extra=other))
    assert {(row["condition"], row["against"]) for row in summary["exploratory"]} <= {
        (each.condition, each.against) for each in found
    }


def test_a_mixed_model_of_too_many_pairs_is_left_out_with_a_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("analyses.comparisons.cross_checks.MIXED_ROWS", 50)
    found = of(contrasts(made_trials(), made_manifest()), "kv_only")
    left_out = checks(found)["mixed model"]
    assert left_out.agrees is None and left_out.note == "60 pairs, more than 50"
    assert found.cross_check_sentence.endswith("; no mixed model: 60 pairs, more than 50.")


def test_trap_29_effect_sizes_are_named_and_those_of_their_formulas() -> None:
    found = of(contrasts(made_trials(), made_manifest()), "kv_only")
    paired = pair(made_trials(), "kv_only", "baseline", "score")
    pooled = math.sqrt((paired.first.var(ddof=1) + paired.second.var(ddof=1)) / 2)
    assert found.d_pooled_ddof1 == pytest.approx(paired.difference.mean() / pooled)
    assert found.d_z_ddof1 == pytest.approx(paired.difference.mean() / paired.difference.std(ddof=1))
    assert found.d_z_ddof0 == pytest.approx(paired.difference.mean() / paired.difference.std(ddof=0))


def test_the_correlation_of_differences_is_that_which_was_planted() -> None:
    found = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        donor, target = rng.integers(0, 30, 400), rng.integers(0, 40, 400)
        values = rng.normal(0, 0.3**0.5, 30)[donor] + rng.normal(0, 0.1**0.5, 40)[target]
        values += rng.normal(0, 0.6**0.5, 400)
        labels = {"donor": pd.Series(donor)}
        found.append(correlations(Paired(values, np.zeros(400), labels, pd.Series(target), 400, 400, "")))
    # 40 samples with a standard deviation of about 0.08 and 0.035 each.
    assert np.mean([each["donor"] for each in found]) == pytest.approx(0.3, abs=0.04)
    assert np.mean([each["target"] for each in found]) == pytest.approx(0.1, abs=0.02)


# --- Invalid trials --------------------------------------------------------------------------------------


def test_trap_35_what_invalid_trials_could_change_is_told_beside_the_verdict() -> None:
    trials = made_trials()
    lost = trials["condition"].eq("kv_only") & trials["item"].lt("0002")
    few = trials.assign(status=trials["status"].mask(lost, "invalid"), score=trials["score"].mask(lost))
    found = of(contrasts(few, made_manifest()), "kv_only")
    assert found.sensitivity is not None and found.sensitivity.invalid == 2 and found.test is not None
    values = few.loc[few["condition"].isin(("kv_only", "baseline")), "score"].dropna()
    whole = pair(trials, "kv_only", "baseline", "score")
    known = whole.first[2:].sum() - whole.second.sum()
    assert found.sensitivity.low == pytest.approx((known + 2 * values.min()) / N)
    assert found.sensitivity.high == pytest.approx((known + 2 * values.max()) / N)
    assert found.sensitivity.verdict_survives is True
    assert "2 of 60 trials of kv_only have no valid score" in found.sensitivity.sentence
    assert found.sensitivity.sentence.endswith("the verdict survives both.")
    assert of(contrasts(few, made_manifest()), "kv_plain").sensitivity is None
    assert found.sensitivity.sentence in to_markdown(summarise(Run(few, made_manifest(), Path("."))))


def test_trap_35_a_verdict_that_invalid_trials_could_undo_is_said_to_be_one() -> None:
    trials = made_trials()
    lost = trials["condition"].eq("kv_only") & trials["item"].lt("0030")
    half = trials.assign(status=trials["status"].mask(lost, "invalid"), score=trials["score"].mask(lost))
    found = of(contrasts(half, made_manifest()), "kv_only")
    assert found.sentence.startswith("kv_only raises") and found.sensitivity is not None
    assert found.sensitivity.verdict_survives is False
    assert "the verdict does not survive both" in found.sensitivity.sentence


def test_trap_35_an_arm_without_a_valid_trial_has_no_p_and_no_verdict() -> None:
    trials = made_trials()
    gone = trials["condition"].eq("kv_only")
    none = trials.assign(status=trials["status"].mask(gone, "failed"), score=trials["score"].mask(gone))
    found = of(contrasts(none, made_manifest()), "kv_only")
    assert found.p_corrected is None and "cannot be compared" in found.sentence
    assert found.sensitivity is not None and found.sensitivity.verdict_survives is None
    assert "no verdict to survive" in found.sensitivity.sentence


# --- Margins ---------------------------------------------------------------------------------------------


def test_trap_32_without_a_stated_margin_a_third_of_the_positive_control_is_used_and_said() -> None:
    options = {"same": [["transfer_l5", "kv_only", {"margin": None}]], "positive_control": "kv_only"}
    trials = made_trials()
    margin = margin_of(trials, made_manifest(**options))
    effect = pair(trials, "kv_only", "baseline", "score").difference.mean()
    assert margin is not None and margin.suggested == pytest.approx(effect / 3)
    assert "was not stated before it" in margin.sentence
    found = contrasts(trials, made_manifest(**options))[-1]
    assert found.equivalence is not None and found.equivalence.margin == pytest.approx(effect / 3)
    assert found.margin.stated is None and found.margin.suggested == pytest.approx(effect / 3)
    assert (
        "(suggested, a third of the positive control's effect, not stated before the run)" in found.sentence
    )
    stated = {**options, "same": [["transfer_l5", "kv_only", {"margin": 2.5}]]}
    assert contrasts(trials, made_manifest(**stated))[-1].equivalence.margin == 2.5  # type: ignore[union-attr]


def test_trap_27_no_margin_is_a_third_of_an_effect_that_is_not_shown() -> None:
    options = {"same": [["transfer_l5", "kv_only", {"margin": None}]], "positive_control": "kv_plain"}
    margin = margin_of(made_trials(), made_manifest(**options))
    assert margin is not None and margin.suggested is None
    assert margin.sentence.startswith("The positive control kv_plain suggests no margin")
    found = contrasts(made_trials(), made_manifest(**options))[-1]
    assert found.kind == "equivalence" and found.equivalence is None and found.p_corrected is None
    assert found.sentence.startswith("Nothing is said of whether transfer_l5 and kv_only are equal")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("contrasts.same=[[kv_only,kv_plain]]", "same.0: expected a margin, [a, b, {margin: 0.6}]"),
        ("contrasts.positive_control=kv_onyl", "did you mean 'kv_only'"),
        ("contrasts.positive_control=baseline", "expected a condition other than the baseline"),
        ("contrasts.expected={sd: 0}", "expected.sd: expected more than 0"),
        (
            "contrasts.expected={sd: 2.9, icc: [0.1]}",
            "expected.icc: missing: expected two shares of the variance",
        ),
    ],
)
def test_margins_and_expectations_are_checked_at_the_door(override: str, message: str) -> None:
    assert message in faults(KV_ONLY, override)


def test_a_positive_control_stands_for_the_margins_that_are_not_stated() -> None:
    asked = design(KV_ONLY, "contrasts.same=[[kv_plain,baseline]]", "contrasts.positive_control=kv_only")
    assert asked.contrasts.same[0][2].margin is None


# --- What is exploratory ---------------------------------------------------------------------------------


def test_trap_31_other_readouts_are_exploratory_with_their_own_correction_and_no_verdict() -> None:
    trials = made_trials()
    manifest = made_manifest(extra=[["kv_only", "kv_plain"]])
    found = contrasts(trials, manifest)
    rows, sentence = exploratory(trials, manifest, found, MOST_CHECKED)
    assert {each.readout for each in rows} == {"markers", "bonus", "strict", "perplexity"}
    assert len(rows) == 5 * 4 and {each.family for each in found} == {5}
    tested = [each for each in rows if each.p is not None]
    expected = multipletests([each.p for each in tested], method="fdr_bh")[1]
    assert [each.p_bh for each in tested] == pytest.approx(list(expected))
    (strict,) = [e for e in rows if (e.readout, e.condition, e.against) == ("strict", "kv_only", "baseline")]
    assert strict.difference == pytest.approx(pair(trials, "kv_only", "baseline", "strict").difference.mean())
    (perplexity,) = [e for e in rows if (e.readout, e.against) == ("perplexity", "kv_plain")]
    assert perplexity.n == N - 1  # undefined in one trial of each condition
    assert sentence.startswith("Exploratory: ") and not any(word in sentence for word in VERDICTS)
    text = to_markdown(summarise(Run(trials, manifest, Path("."))))
    section = text.split("## Exploratory")[1].split("## ")[0]
    assert not any(word in section for word in VERDICTS) and "p, uncorrected" in section


# --- Bad input -------------------------------------------------------------------------------------------


def bad(kind: str) -> tuple[pd.DataFrame, dict[str, Any]]:
    trials, manifest = (
        made_trials(),
        made_manifest(extra=[["kv_only", "kv_plain"]], positive_control="kv_only"),
    )
    manifest["contrasts"]["same"] = [["kv_only", "kv_plain", {"margin": None}]]
    if kind == "one condition":
        return trials[trials["condition"] == "baseline"], manifest
    if kind == "all equal":
        return trials.assign(score=1.0), manifest
    if kind == "n below 3":
        return trials[trials["item"].isin(["0000", "0001"])], manifest
    if kind == "everything invalid":
        return trials.assign(status="invalid", score=math.nan), manifest
    if kind == "running":
        late = trials["item"].ge("0002")
        return trials.assign(
            status=trials["status"].mask(late, "pending"), score=trials["score"].mask(late)
        ), (manifest | {"status": "running"})
    if kind == "primary absent":
        return trials.drop(columns="score"), manifest
    if kind == "primary undefined":
        return trials.assign(score=math.nan), manifest
    return trials.assign(donor=None, target=None), manifest


KINDS = (
    "one condition", "all equal", "n below 3", "everything invalid", "running", "primary absent",
    "primary undefined", "no prompts",
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_what_cannot_be_computed_is_a_sentence_and_never_nan(kind: str) -> None:
    trials, manifest = bad(kind)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        summary = summarise(Run(trials, manifest, Path(".")))
        text = to_markdown(summary)
        console = Console(file=io.StringIO(), width=110)
        print_summary(console, summary)
    json.dumps(summary, allow_nan=False)
    for each in summary["contrasts"]:
        assert each["sentence"].endswith(".") and (kind == "no prompts" or each["p"] is None)
    assert summary["margin"]["sentence"].endswith(".")
    for told in (text, cast(io.StringIO, console.file).getvalue()):
        assert " nan" not in told.lower() and "None" not in told.replace("None was declared", "")


# --- Power before the run --------------------------------------------------------------------------------


def planned(asked: Design, n: int = 40, donors: int = 8, targets: int = 10, invalid: int = 0) -> Plan:
    trials = [
        Trial(
            key=f"{condition.name}{i}",
            condition=condition.name,
            item=f"{i:04d}",
            repeat=0,
            donor=f"d{i % donors}",
            target=f"t{i % targets}",
            group="",
            row=Row((i,), GREEDY),
            donor_ids={"donor": (i % donors,)},
            invalid="too short" if i < invalid and condition.name == "kv_only" else None,
        )
        for i in range(n)
        for condition in asked.conditions
    ]
    return Plan(asked.stage, tuple(trials))


def asked_for(*more: str) -> Design:
    return design(KV_ONLY, "~analyses", "contrasts.extra=[]", *more)


def test_trap_31_the_power_before_the_run_is_that_of_statsmodels() -> None:
    asked = asked_for("contrasts.expected={sd: 2.0, icc: [0, 0]}")
    found = power_before(asked, planned(asked, n=40, donors=40, targets=40), [])
    assert found is not None and found["source"] == "contrasts.expected" and found["family"] == 5
    expected = TTestPower().solve_power(nobs=40, alpha=0.05 / 5, power=0.8, alternative="two-sided")
    row = found["rows"][0]
    assert row["detectable"] == pytest.approx(2.0 * expected, rel=1e-4)
    assert row["n"] == 40 and row["clusters"] == {"donor": 40, "target": 40}
    assert "0.05 / 5 (Holm)" in found["sentence"] and "2.00, from contrasts.expected" in found["sentence"]


def test_trap_28_the_power_before_the_run_knows_how_often_prompts_recur() -> None:
    asked = asked_for("contrasts.expected={sd: 2.0, icc: [0.2, 0.1]}")
    many = power_before(asked, planned(asked, donors=40, targets=40), [])
    few = power_before(asked, planned(asked, donors=8, targets=10), [])
    assert many is not None and few is not None
    assert few["rows"][0]["clusters"] == {"donor": 8, "target": 10}
    assert few["rows"][0]["detectable"] > 1.2 * many["rows"][0]["detectable"]
    fewer = power_before(asked, planned(asked, invalid=10), [])
    assert fewer is not None and {row["n"] for row in fewer["rows"]} == {30, 40}


def test_the_spread_comes_from_an_earlier_run_else_from_what_was_published(tmp_path: Path) -> None:
    asked = asked_for()
    published = power_before(asked, planned(asked), [])
    assert published is not None and published["source"] == "the published n300 experiment"
    assert published["sd"] == pytest.approx(2.95, abs=0.01)
    summary = {
        "status": "done", "primary": "score", "model": {"name": asked.model.name},
        "contrasts": [
            {"condition": "kv_only", "against": "baseline", "n": 60, "sd": 1.5, "icc": {"donor": 0.3}},
            {"condition": "kv_plain", "against": "baseline", "n": 60, "sd": 0.5, "icc": {}},
            {"condition": "kv_self", "against": "baseline", "n": 5, "sd": 9.0, "icc": {}},
        ],
    }  # fmt: skip
    folders = [tmp_path / f"v000{i}" for i in range(1, 5)]
    for folder, text in zip(
        folders,
        (json.dumps(summary), json.dumps(summary | {"status": "failed"}), "{broken", json.dumps([])),
        strict=True,
    ):
        folder.mkdir()
        (folder / "summary.json").write_text(text)
    found = power_before(asked, planned(asked), folders)
    assert found is not None and found["source"] == str(folders[0])
    by_name = {row["condition"]: row for row in found["rows"]}
    assert by_name["kv_only"]["sd"] == 1.5 and by_name["kv_plain"]["sd"] == 0.5
    assert by_name["kv_self"]["sd"] == 1.5  # five pairs are no source: the largest that is known
    other = replace(asked, model=replace_model(asked, "another"))
    assert power_before(other, planned(other), folders)["source"] != str(folders[0])  # type: ignore[index]


def replace_model(asked: Design, name: str) -> Any:
    return asked.model.model_copy(update={"name": name})


def test_without_any_spread_effects_are_in_units_of_it() -> None:
    asked = asked_for("published=null")
    found = power_before(asked, planned(asked), [])
    assert found is not None and found["sd"] is None
    assert "standard deviations" in found["sentence"] and "contrasts.expected states one" in found["sentence"]


def test_trap_31_criteria_that_cannot_be_met_are_told_before_the_run() -> None:
    asked = asked_for("contrasts.expected={sd: 2.0}", "contrasts.same=[[kv_plain,baseline,{margin: 0.1}]]")
    three = power_before(asked, planned(asked, n=3, donors=3, targets=3), [])
    assert three is not None and any(
        "no exact test (sign flip, McNemar) of 3 independent units reaches p < 0.05" in each
        for each in three["warnings"]
    )
    assert any("standard deviations has 80% power" in each for each in three["warnings"])
    two = power_before(asked, planned(asked, n=2, donors=2, targets=2), [])
    assert two is not None and "no declared difference" in two["sentence"]
    assert any("with 2 pairs there is no test" in each for each in two["warnings"])
    plenty = power_before(asked, planned(asked, n=100, donors=100, targets=100), [])
    assert plenty is not None and len(plenty["warnings"]) == 1
    assert plenty["warnings"][0].startswith("kv_plain - baseline: the margin 0.10 has less than 80% power")


def test_nothing_is_told_where_nothing_is_compared() -> None:
    asked = asked_for("contrasts.family=none")
    assert power_before(asked, planned(asked), []) is None
