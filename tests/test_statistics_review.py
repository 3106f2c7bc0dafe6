"""Claims that a figure must not make: what a reviewer tried to get out of the analyses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analyses.comparisons.contrasts import contrasts
from analyses.published.consistent import checked, consistent
from analyses.published.printed import Printed
from analyses.runs.compare import compare
from analyses.statistics.clusters import clustered_mean
from analyses.statistics.corrections import Correction, benjamini_hochberg, bonferroni, holm, level
from analyses.statistics.equivalence import tost, tost_of_share
from analyses.studies.localisation import localisation
from analyses.studies.specificity import specificity
from analyses.studies.studies import studies
from analyses.studies.study import NoStudy, Study
from analyses.studies.variance import variance
from analyses.summary.markdown_contrasts import on_the_family
from analyses.summary.summary import summarise
from analyses.tables.run import Run
from tests.made_run import made_run
from tests.made_study import Design, made, source

# --- Declared analyses ------------------------------------------------------------------------------------


def one(run: Run) -> Study:
    (found,) = studies(run)
    return found


@pytest.mark.parametrize(("together", "way"), [(-3.0, "above"), (-5.0, "below"), (5.0, "above")])
def test_an_interaction_of_effects_that_lower_says_on_which_side_of_their_sum_it_is(
    together: float, way: str
) -> None:
    design = Design(1)
    base, sign = design.levels(), np.sign(together)
    values = {"baseline": base + design.noise(0.3), "both": base + together + design.noise(0.3)}
    values |= {name: base + sign * 2 + design.noise(0.3) for name in ("kv", "v")}
    cells = {"both": "both", "first": "v", "second": "kv", "neither": "baseline"}
    found = one(made(design.table(values), {"it": {"kind": "interaction", "cells": cells}}))
    assert f"score with both is {way} what the two effects would add up to" in found.sentence


def test_trap_46_the_control_of_the_sentence_is_the_one_whose_p_it_gives() -> None:
    """One control is near and surely passed, another further off and known from six trials only."""
    design = Design(2, n=300)
    base = design.levels(0.2, 0.2)
    values = {"baseline": base, "kv": base + 3, "near": base + 2.5, "unsure": base + 2.0}
    table = design.table({name: held + design.noise(0.3) for name, held in values.items()})
    unsure = table["condition"] == "unsure"
    table.loc[unsure, "score"] += np.tile([3.0, -3.0], 150)
    table.loc[unsure & (table["item"] >= "0006"), "status"] = "invalid"
    spec = {"treatment": "kv", "controls": ["near", "unsure"]}
    found = specificity(source(made(table)), spec, "score")
    by_name = {rival.condition: rival.difference for rival in found.rivals}
    assert by_name["near"].p is not None and by_name["near"].p < 1e-6
    assert found.p is not None and found.p > 0.05
    assert found.p == by_name["unsure"].p
    told = found.sentence((found.p,), 1)
    assert found.bar == "unsure" and "kv less unsure is" in told and "kv less near" not in told


def test_a_grid_whose_cells_are_all_alike_has_no_best_layer() -> None:
    design = Design(3)
    grids = {f"g[layer={layer}]": {"kv.layers": layer} for layer in range(6)}
    table = design.table(dict.fromkeys(("baseline", *grids), design.noise()))
    with pytest.raises(NoStudy, match="every cell has the same score in each of 200 trials"):
        localisation(source(made(table, grids=grids)), {"of": "g", "axis": "layers"}, "score")


def test_layers_that_tie_share_the_resampled_tables_and_are_named() -> None:
    design = Design(3)
    grids = {f"g[layer={layer}]": {"kv.layers": layer} for layer in range(6)}
    hit = (design.noise() > 1.0).astype(float)
    table = design.table(
        {"baseline": np.zeros(design.n)}
        | {name: hit if axes["kv.layers"] in (2, 5) else np.zeros(design.n) for name, axes in grids.items()}
    )
    found = localisation(source(made(table, grids=grids)), {"of": "g", "axis": "layers"}, "score")
    chosen = {row.layer: row.chosen for row in found.rows}
    assert found.layer == 2 and found.tied == (5,) and (found.low, found.high) == (2, 5)
    assert chosen[2] == pytest.approx(0.5, abs=0.05) and chosen[5] == pytest.approx(0.5, abs=0.05)
    assert "(layer 5 has the same mean)" in found.sentence((), 0)


def test_two_clusters_leave_the_correlation_of_repeats_without_an_interval() -> None:
    design = Design(4, n=20, donors=2, targets=2)
    item = design.noise()
    table = pd.concat(
        [design.rows("kv", repeat=repeat, score=item + design.noise()) for repeat in range(4)],
        ignore_index=True,
    )
    (part,) = variance(source(made(table)), {"conditions": "kv"}, "score").parts
    assert part.icc is not None and 0 < part.icc < 1
    assert (part.icc_low, part.icc_high) == (None, None) and "fewer than 3 clusters" in part.note


def test_trap_31_all_that_is_outside_of_the_family_says_that_it_is_exploratory() -> None:
    run = made_run(trends=[["baseline", "kv_plain", "kv_only"]], covariates=["perplexity"])
    run.manifest["analyses"] = {
        "it": {
            "kind": "interaction",
            "cells": {
                "both": "kv_only", "first": "kv_plain", "second": "transfer_l5", "neither": "baseline"
            },
        },
        "own": {"kind": "specificity", "treatment": "kv_only", "controls": ["kv_plain"]},
    }  # fmt: skip
    summary = summarise(run)
    assert {each["role"] for each in summary["contrasts"]} == {"primary"}
    (trend,) = summary["trends"]
    assert trend["p_holm"] < 0.05 and trend["sentence"].startswith("Exploratory trend: score rises")
    assert len(summary["analyses"]) == 2
    assert all(" (exploratory): " in each["sentence"] for each in summary["analyses"])
    adjusted = [each["adjusted"]["sentence"] for each in summary["contrasts"] if each["adjusted"]["p"]]
    assert all(sentence.startswith("Exploratory, adjusted for ") for sentence in adjusted)


def test_a_whole_that_could_not_be_tested_is_not_said_to_show_no_difference() -> None:
    design = Design(6)
    table = design.table({"baseline": np.zeros(200), "kv": np.ones(200)})
    table["markers"], table["bonus"] = table["score"], 0.0
    spec = {"kind": "decomposition", "of": "score", "into": ["markers", "bonus"]}
    told = one(made(table, {"apart": spec})).sentence
    assert "not tested: all 200 values are equal" in told and "no difference" not in told


# --- Contrasts --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("correct", [holm, bonferroni, benjamini_hochberg])
def test_the_level_of_one_test_is_where_its_corrected_p_reaches_alpha(correct: Correction) -> None:
    random = np.random.default_rng(0)
    for _ in range(100):
        p_values: list[float | None] = [float(p) for p in random.random(int(random.integers(1, 9))) ** 4]
        p_values[0] = None if len(p_values) > 3 else p_values[0]
        place = len(p_values) - 1
        below = level(correct, p_values, place)
        for p, passes in ((below * (1 - 1e-6), True), (below * (1 + 1e-6), False)):
            corrected = correct([*p_values[:place], p])[place]
            assert corrected is not None and (corrected < 0.05) is passes


def test_trap_17_a_p_of_0_is_held_against_the_level_of_its_family() -> None:
    """A difference so sure that its p is 0, and one invalid trial with a worst case of 0.005 < p < 0.05."""
    design = Design(5, n=240)
    base = np.where(np.arange(240) == 239, -70.0, 0.0)
    values = {"baseline": base, "sure": base + 1 + design.noise(1e-10)}
    values |= {f"c{i}": base + design.noise(3.0) for i in range(9)}
    table = design.table(values)
    lost = (table["condition"] == "sure") & (table["item"] == "0000")
    table.loc[lost, ["status", "score"]] = ["invalid", np.nan]
    run = made(table)
    (found,) = [each for each in contrasts(run.trials, run.manifest) if each.condition == "sure"]
    assert found.test is not None and found.test.p == 0.0 and found.sensitivity is not None
    assert found.sensitivity.p_low is not None and 0.05 / found.family < found.sensitivity.p_low < 0.05
    assert found.sensitivity.verdict_survives is False


def test_cross_checks_that_could_not_be_made_are_not_said_to_agree() -> None:
    def check(name: str, agrees: bool | None) -> dict[str, Any]:
        return {"name": name, "agrees": agrees}

    made_of = [
        {"cross_checks": [check("paired t", True), check("mixed model", None)]},
        {"cross_checks": [check("paired t", True), check("mixed model", True)]},
        {"cross_checks": [check("paired t", None), check("mixed model", None)]},
    ]
    assert on_the_family({}, made_of) == [
        "Cross-checks that could be made (paired t and mixed model (in 1)) all agree in 2 of 2 contrasts."
    ]


def test_trap_32_a_margin_from_the_run_itself_keeps_the_level() -> None:
    """The difference is a third of the effect of a control that varies twice as much as the difference."""
    random = np.random.default_rng(0)
    runs, as_known, as_estimated = 800, 0, 0
    for _ in range(runs):
        effect, gap = 1.5 + random.normal(0, 2.8, 120), 0.5 + random.normal(0, 1.0, 120)
        test, margin = clustered_mean(gap), float(effect.mean()) / 3
        if margin > 0:
            of_share = tost_of_share(
                test, clustered_mean(gap - effect / 3), clustered_mean(gap + effect / 3), margin
            )
            as_known += tost(test, margin).passes is True
            as_estimated += of_share.passes is True
    assert as_known / runs > 0.08  # what it would be with the margin taken for known
    assert as_estimated / runs < 0.07


def test_trap_32_a_suggested_margin_is_tested_with_its_own_uncertainty() -> None:
    options = {"same": [["transfer_l5", "kv_only", {"margin": None}]], "positive_control": "kv_only"}
    run = made_run(**options)
    found = contrasts(run.trials, run.manifest)[-1]
    wide = run.trials.pivot(index="item", columns="condition", values="score")
    d, e = wide["transfer_l5"] - wide["kv_only"], wide["kv_only"] - wide["baseline"]
    first = run.trials[run.trials["condition"] == "kv_only"].set_index("item")
    labels = {"donor": first["donor"], "target": first["target"]}
    below = clustered_mean((d - e / 3).to_numpy(), **labels)
    above = clustered_mean((d + e / 3).to_numpy(), **labels)
    assert found.equivalence is not None and found.equivalence.margin == pytest.approx(e.mean() / 3)
    assert below.t is not None and above.t is not None and below.df is not None
    one_sided = max(stats.t.cdf(below.t, below.df), stats.t.sf(above.t, below.df))
    assert found.equivalence.p == pytest.approx(one_sided)


def test_trap_32_without_any_margin_nothing_is_said_to_be_equal() -> None:
    run = made_run(
        same=[["kv_self", "baseline", {"margin": None}], ["kv_only", "kv_plain", {"margin": None}]]
    )
    noisy = run.trials.assign(
        score=run.trials["score"] + np.random.default_rng(0).normal(0, 1e-3, len(run.trials))
    )
    for found in contrasts(noisy, run.manifest)[-2:]:
        assert found.equivalence is None and found.p_corrected is None
        assert found.sentence.startswith("Nothing is said of whether") and "no margin" in found.sentence


def test_an_equivalence_without_a_standard_error_has_no_undefined_figures() -> None:
    run = made_run(same=[["kv_only", "baseline", {"margin": 0.5}]])
    trials = run.trials.assign(score=(run.trials["condition"] == "kv_only").astype(float))
    sentence = contrasts(trials, run.manifest)[-1].sentence
    assert "not shown to be equal" in sentence and "undefined" not in sentence


# --- Between runs -----------------------------------------------------------------------------------------


def test_trap_28_donors_of_two_runs_are_told_apart_where_each_reads_another_role() -> None:
    """kv reads the item's donor in one run and that of another item in the other; the tables, and so the
    numbers of their prompts, are in different orders."""
    design = Design(7, n=120, donors=12, targets=30)
    plain = design.random.permutation(12)[design.random.integers(12, size=120)]
    level = 2 * design.random.normal(size=12)
    runs = []
    for number, role in ((1, "donor"), (2, "plain")):
        gain = level[design.donor] if role == "donor" else level[plain]
        values = {"baseline": design.noise(), "kv": gain + design.noise()}
        table = design.table(values)
        ids = [
            {"donor": [int(own)], "plain": [int(other)]}
            for own, other in zip(design.donor, plain, strict=True)
        ]
        table["donor_ids"] = [*ids, *ids]
        manifest = dict(made(table).manifest)
        kv = {"kv": {"site": "kv_cache", "value": {"kind": "donor", "role": role}}}
        manifest["conditions"] = {**manifest["conditions"], "kv": {"label": "kv", "writes": kv, "grid": {}}}
        rows = table if number == 1 else table.iloc[::-1].reset_index(drop=True)
        runs.append(Run(rows, manifest, Path("/nowhere/made") / f"v{number:04d}"))
    (one,) = compare(runs).versus
    (effect,) = [each for each in one.effects if each.condition == "kv"]
    gaps = [
        held.loc[held["condition"] == "kv", "score"].to_numpy()
        - held.loc[held["condition"] == "baseline", "score"].to_numpy()
        for held in (each.trials.sort_values(["condition", "item"]) for each in runs)
    ]
    expected = clustered_mean(
        gaps[1] - gaps[0],
        donor={"donor": [f"d{i}" for i in design.donor], "donor:plain": [f"d{i}" for i in plain]},
        target=[f"t{i}" for i in design.target],
    )
    assert effect.test is not None and effect.test.clusters == expected.clusters
    assert effect.test.se == pytest.approx(expected.se)


# --- Printed figures --------------------------------------------------------------------------------------


@pytest.mark.parametrize("clustered", [True, False])
def test_an_interval_of_unknown_df_may_be_wider_than_the_normal_one(clustered: bool) -> None:
    """0.5 +- t(8) 0.1: nine clusters, whatever the number of trials."""
    n = 40 if clustered else None
    figures: dict[str, Any] = {"n": n, "mean": "0.50", "se": "0.10", "clustered": clustered}
    assert consistent(Printed(ci=("0.27", "0.73"), **figures)) == []
    assert consistent(Printed(ci=("0.40", "0.60"), **figures)) != []


def test_a_p_that_no_df_gives_beside_its_interval_is_a_contradiction() -> None:
    assert consistent(Printed(mean="0.5", ci=("0.1", "0.9"), p="0.01")) == []
    (told,) = consistent(Printed(mean="0.5", ci=("0.1", "0.9"), p="0.3"))
    assert "not 0.3" in told


def test_a_p_that_no_df_gives_beside_its_t_is_a_contradiction_and_a_possible_one_does_not_follow() -> None:
    for clustered in (True, False):
        n = 45 if clustered else None
        (told,) = consistent(Printed(t="3.47", p="0.49", n=n, clustered=clustered))
        assert "not 0.49" in told
        assert "p" not in checked(Printed(t="3.47", p="0.01", n=n, clustered=clustered))


def test_welch_of_unequal_arms_is_not_held_against_the_pooled_d() -> None:
    random = np.random.default_rng(0)
    a, b = random.normal(1, 1, 10), random.normal(0, 5, 40)
    welch: Any = stats.ttest_ind(a, b, equal_var=False)
    pooled = float(np.sqrt((9 * a.var(ddof=1) + 39 * b.var(ddof=1)) / 48))
    figures: dict[str, Any] = {
        "n": (10, 40), "arms": 2, "means": (f"{a.mean():.3f}", f"{b.mean():.3f}"),
        "sds": (f"{a.std(ddof=1):.3f}", f"{b.std(ddof=1):.3f}"), "t": f"{welch.statistic:.3f}",
        "df": f"{welch.df:.1f}", "p": f"{welch.pvalue:.3f}",
    }  # fmt: skip
    d = float(a.mean() - b.mean()) / pooled
    assert consistent(Printed(d=f"{d:.3f}", **figures)) == []
    assert consistent(Printed(d=f"{2 * d:.3f}", **figures)) != []


def test_what_was_really_computed_is_never_contradictory_however_it_is_rounded() -> None:
    random = np.random.default_rng(1)
    for _ in range(300):
        n, digits = int(random.integers(4, 80)), int(random.integers(1, 5))
        x = random.integers(-3, 9, size=n) if random.random() < 0.5 else random.normal(0.3, 1, n)
        test: Any = stats.ttest_1samp(x, 0)
        sd, ends = float(x.std(ddof=1)), test.confidence_interval()
        told = {"mean": x.mean(), "sd": sd, "se": sd / n**0.5, "t": test.statistic, "d": x.mean() / sd}
        figures: dict[str, Any] = {name: f"{value:.{digits}f}" for name, value in told.items()}
        figures |= {"n": n, "df": n - 1, "p": f"{test.pvalue:.{digits + 1}f}"}
        figures["ci"] = (f"{ends.low:.{digits}f}", f"{ends.high:.{digits}f}")
        kept = {name: value for name, value in figures.items() if random.random() < 0.6}
        assert consistent(Printed(integer=x.dtype.kind == "i", **kept)) == [], kept
