"""Declared analyses: each finds what was planted, claims nothing where nothing was, and says why where it
cannot be made."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from scipy import optimize, stats

import runner
from analyses.statistics.clusters import clustered_mean
from analyses.studies.aligned import align
from analyses.studies.decomposition import decomposition
from analyses.studies.fieller import ratio
from analyses.studies.folds import blocks, shuffled
from analyses.studies.interaction import interaction
from analyses.studies.localisation import localisation
from analyses.studies.logistic import auc, fit, influence
from analyses.studies.naming import matched
from analyses.studies.predictors import predictors
from analyses.studies.share import share
from analyses.studies.specificity import specificity
from analyses.studies.studies import KINDS, plain_study, studies
from analyses.studies.study import NoStudy, Study
from analyses.studies.variance import variance
from analyses.summary.markdown import to_markdown
from analyses.summary.summary import summarise
from analyses.summary.terminal import print_summary
from analyses.tables.run import Run
from runner.config.check import check_experiment
from runner.config.compose import compose
from runner.config.stages.analysis_spec import ANALYSES
from tests.configuring import body, faults
from tests.made_stages import staged
from tests.made_study import Design, made, source

CELLS = {"both": "both", "first": "v_only", "second": "kv_only", "neither": "baseline"}


def four(extra: float, seed: int = 0) -> pd.DataFrame:
    """V and KV writes of 1 and 3, and `extra` where both are."""
    design = Design(seed)
    base = design.levels()
    effects = {"baseline": 0.0, "v_only": 1.0, "kv_only": 3.0, "both": 4.0 + extra}
    return design.table({name: base + gain + design.noise(0.5) for name, gain in effects.items()})


def one(run: Run, name: str = "it") -> Study:
    return {each.name: each for each in studies(run)}[name]


# --- interaction


def test_a_planted_interaction_is_found_and_is_the_clustered_mean_of_differences_of_differences() -> None:
    trials = four(2.0)
    found = interaction(source(made(trials)), {"cells": CELLS}, "score")
    wide = trials.pivot(index="item", columns="condition", values="score")
    first = trials[trials["condition"] == "baseline"].set_index("item")
    gap = wide["both"] - wide["kv_only"] - wide["v_only"] + wide["baseline"]
    test = clustered_mean(gap, donor=first["donor"], target=first["target"])
    (row,) = found.rows
    assert (row.interaction.value, row.interaction.low, row.interaction.p) == pytest.approx(
        (test.mean, test.ci_low, test.p)
    )
    assert row.interaction.low is not None and row.interaction.low < 2 < (row.interaction.high or 0)
    assert "score with both is above what the two effects would add up to" in found.sentence(
        found.p_values, 1
    )


def test_effects_that_add_up_are_no_interaction() -> None:
    found = interaction(source(made(four(0.0))), {"cells": CELLS}, "score")
    assert "No interaction shown" in found.sentence(found.p_values, 1)
    assert "does not show that the two add up" in found.sentence(found.p_values, 1)


def test_grids_of_layers_are_matched_by_their_axes_and_their_interactions_compared() -> None:
    design = Design(1)
    base = design.levels()
    values, grids = {"baseline": base + design.noise(0.5), "kv_only": base + 3 + design.noise(0.5)}, {}
    for layer in (27, 5):  # the grids have their cells in different orders
        grids[f"v[v_proj.layers={layer}]"] = {"v_proj.layers": layer}
    for layer in (5, 27):
        grids[f"kv_v[v.layers={layer}]"] = {"v.layers": layer}
    for name, axes in grids.items():
        (layer,) = axes.values()
        extra = 2.0 if layer == 27 and name.startswith("kv_v") else 0.0
        values[name] = base + 1 + 3 * name.startswith("kv_v") + extra + design.noise(0.5)
    run = made(design.table(values), grids=grids)
    cells = {"both": "kv_v", "first": "v", "second": "kv_only", "neither": "baseline"}
    found = interaction(source(run), {"cells": cells}, "score")
    by_row = {row.row: row.interaction.value for row in found.rows}
    assert by_row["layers 27"] == pytest.approx(2, abs=0.3) and by_row["layers 5"] == pytest.approx(
        0, abs=0.3
    )
    (between,) = found.between
    assert abs(between.difference.value or 0) == pytest.approx(2, abs=0.4)
    assert len(found.table(found.p_values).rows) == 3


def test_lists_that_do_not_fit_together_are_refused_with_their_lengths() -> None:
    conditions = {name: {"grid": {}} for name in "abcd"}
    with pytest.raises(NoStudy, match="both has 3 and first has 2"):
        matched({"both": ["a", "b", "c"], "first": ["a", "b"], "second": "d", "neither": "d"}, conditions)


# --- share and Fieller


def shared(part: float, whole: float = 4.0, seed: int = 0) -> Run:
    design = Design(seed)
    base = design.levels()
    effects = {"baseline": 0.0, "kv_only": whole, "kv_plain": part * whole}
    return made(design.table({name: base + gain + design.noise() for name, gain in effects.items()}))


def test_a_planted_share_of_one_half_lies_in_its_interval() -> None:
    found = share(source(shared(0.5)), {"of": "kv_plain", "in": "kv_only"}, "score")
    (part,) = found.parts
    assert part.share.low is not None and part.share.high is not None
    assert part.share.low < 0.5 < part.share.high and part.share.value == pytest.approx(0.5, abs=0.1)
    told = f"kv_plain has {100 * part.share.value:.0f}% of the effect of kv_only on score"
    assert told in found.sentence((), 0)


def test_fieller_ends_where_the_clustered_test_of_the_ratio_does() -> None:
    run = shared(0.5)
    found = align(source(run), [(name, "score") for name in ("kv_plain", "kv_only", "baseline")])
    base = found.values["baseline", "score"]
    over, under = found.values["kv_plain", "score"] - base, found.values["kv_only", "score"] - base
    given = ratio(found, over, under)
    for end in (given.low, given.high):
        assert end is not None
        assert found.test(over - end * under).p == pytest.approx(0.05, abs=1e-6)


def test_trap_27_no_share_of_a_gap_that_may_be_nothing() -> None:
    # A gap of 0.008, as published: any control is hundreds of percent of it.
    found = share(source(shared(16.25, whole=0.008)), {"of": "kv_plain", "in": "kv_only"}, "score")
    (part,) = found.parts
    assert part.share.value is None and "may be 0" in part.share.note
    told = found.sentence((), 0)
    assert told.startswith("No share of the effect of kv_only is given") and "% of" not in told
    assert found.table(()).rows[0][3] == "not given"


@pytest.mark.slow
def test_fieller_covers_a_share_of_one_half_in_95_percent() -> None:
    inside = 0
    for seed in range(300):
        (part,) = share(source(shared(0.5, 1.5, seed)), {"of": "kv_plain", "in": "kv_only"}, "score").parts
        low, high = part.share.low, part.share.high
        inside += low is not None and high is not None and low <= 0.5 <= high
    assert 0.91 <= inside / 300 <= 0.985


# --- specificity


def rivals(kv_pseudo: float, seed: int = 0) -> pd.DataFrame:
    design = Design(seed)
    base = design.levels()
    effects = {"baseline": 0.0, "kv_only": 3.0, "kv_plain": 0.2, "kv_pseudo": kv_pseudo}
    values = {name: base + gain + design.noise(0.7) for name, gain in effects.items()}
    return pd.concat(
        [
            design.rows(name, score=held, perplexity=np.full(design.n, 6.0 if name == "kv_only" else 4.0))
            for name, held in values.items()
        ],
        ignore_index=True,
    )


SPECIFIC = {"treatment": "kv_only", "controls": ["kv_plain", "kv_pseudo"], "beside": ["perplexity"]}


def test_a_treatment_above_every_control_is_specific_and_the_least_sure_control_decides() -> None:
    found = specificity(source(made(rivals(2.0))), SPECIFIC, "score")
    assert found.bar == "kv_pseudo"
    assert found.p == max(rival.difference.p or 0 for rival in found.rivals)
    told = found.sentence((found.p,), 1)
    assert (
        "above the baseline and each of 2 controls" in told and "the least sure of these is kv_pseudo" in told
    )


def test_trap_46_a_control_that_does_as_much_takes_the_claim_and_perplexity_stands_beside() -> None:
    found = specificity(source(made(rivals(3.2))), SPECIFIC, "score")
    assert found.p is not None and found.p > 0.05
    told = found.sentence((found.p,), 1)
    assert "not shown to be above all" in told and "kv_pseudo has as well" in told
    assert "perplexity under the unpatched model: 6.0, against 4.0 in baseline" in told


def test_a_control_without_valid_trials_leaves_the_claim_open() -> None:
    trials = rivals(0.0)
    trials.loc[trials["condition"] == "kv_plain", "status"] = "invalid"
    found = specificity(source(made(trials)), SPECIFIC, "score")
    assert found.p is None
    assert "not shown to be specific: kv_plain cannot be compared" in found.sentence((None,), 1)


# --- decomposition


def scored(markers: Mapping[str, float], bonus: Mapping[str, float], seed: int = 0) -> pd.DataFrame:
    design = Design(seed)
    frames = []
    for name in markers:
        own = {"markers": markers[name] + design.noise(0.5), "bonus": bonus[name] + design.noise(0.5)}
        frames.append(design.rows(name, score=own["markers"] + own["bonus"], strict=own["markers"], **own))
    return pd.concat(frames, ignore_index=True)


APART = {"of": "score", "into": ["markers", "bonus"], "beside": ["strict"]}


def test_trap_24_a_score_that_rises_by_repetition_while_markers_fall_is_told_so() -> None:
    trials = scored({"baseline": 1.0, "kv_only": 0.5}, {"baseline": 1.0, "kv_only": 3.0})
    found = decomposition(source(made(trials)), APART, "score")
    told = found.sentence(found.p_values, 3)
    assert "score rises because of repetition (repetition bonus up, markers down)" in told
    (each,) = found.contrasts
    parts = [part.difference.value for part in each.parts]
    assert sum(value or 0 for value in parts) == pytest.approx(each.whole.value)
    assert each.beside["strict"].value == pytest.approx(parts[0])


def test_parts_that_cancel_are_told_although_the_score_does_not_move() -> None:
    trials = scored({"baseline": 1.0, "kv_only": 0.0}, {"baseline": 1.0, "kv_only": 2.0})
    told = decomposition(source(made(trials)), APART, "score")
    assert "its parts move against each other" in told.sentence(told.p_values, 3)


def test_an_effect_of_the_markers_is_ascribed_to_them_with_its_share() -> None:
    trials = scored({"baseline": 1.0, "kv_only": 4.0}, {"baseline": 1.0, "kv_only": 1.0}, seed=1)
    found = decomposition(source(made(trials)), APART, "score")
    assert "score rises by markers; shares of it: markers" in found.sentence(found.p_values, 3)
    markers, bonus = found.contrasts[0].parts
    assert (markers.share.value or 0) + (bonus.share.value or 0) == pytest.approx(1)


def test_parts_that_are_no_sum_are_refused_with_the_item() -> None:
    trials = scored({"baseline": 1.0, "kv_only": 4.0}, {"baseline": 1.0, "kv_only": 1.0})
    trials.loc[7, "score"] += 2
    with pytest.raises(NoStudy, match="score is not the sum of markers and bonus: in item 0007 of baseline"):
        decomposition(source(made(trials)), APART, "score")


# --- predictors

PREDICTED = {"condition": "kv_only", "high": 8, "low": 0, "draws": 200}


def transferring(planted: float, seed: int = 0, n: int = 240) -> Run:
    """Scores of 9, 4 and 0 by what donors and targets add, and `planted` times a feature of the target."""
    design = Design(seed, n=n)
    length = design.random.normal(size=60)[design.target]
    level = design.levels() + design.noise() + planted * length
    score = np.select([level > np.quantile(level, 0.85), level < np.quantile(level, 0.5)], [9.0, 0.0], 4.0)
    other = design.random.normal(size=40)[design.donor]
    kv = design.rows("kv_only", score=score, n_prompt=length, depth=other)
    base = design.rows("baseline", score=design.noise(), n_prompt=length, depth=other)
    return made(pd.concat([base, kv], ignore_index=True))


def test_a_planted_predictor_is_found_by_name() -> None:
    spec = PREDICTED | {"features": ["n_prompt", "depth", "baseline.score"]}
    found = predictors(source(transferring(6.0)), spec, "score")
    assert found.area is not None and found.area > 0.95 and found.p is not None and found.p < 0.01
    told = found.sentence((found.p,), 1)
    assert "The features together separate" in told and "n_prompt (higher in the high ones" in told
    assert "depth (" not in told and "baseline.score (" not in told
    assert found.n_high == 36 and found.n_low == 120 and found.n_between == 84


def test_nothing_separates_by_features_that_say_nothing_and_power_is_told() -> None:
    spec = PREDICTED | {"features": ["n_prompt", "depth", "baseline.score"]}
    found = predictors(source(transferring(0.0, seed=3)), spec, "score")
    told = found.sentence((found.p,), 1)
    assert told.startswith("Nothing is shown to separate 36 trials") and "beyond chance" in told
    assert "would have been told from chance with 80% power" in told


def test_no_item_is_predicted_by_one_that_shares_its_donor_or_its_target() -> None:
    design = Design(5)
    tested = np.zeros(design.n, dtype=int)
    for train, test in blocks(design.donor, design.target, 4, design.random):
        tested += test
        assert not set(design.donor[train]) & set(design.donor[test])
        assert not set(design.target[train]) & set(design.target[test])
    assert (tested == 1).all()


def test_null_draws_keep_what_donors_and_targets_share() -> None:
    design = Design(6)
    design.donor, design.target = pd.factorize(design.donor)[0], pd.factorize(design.target)[0]
    x = np.stack(
        [design.random.normal(size=60)[design.target], design.random.normal(size=40)[design.donor]], 1
    )
    drawn = shuffled(x, design.donor, design.target, 5, design.random)
    for draw in drawn:
        for place, codes in enumerate((design.target, design.donor)):
            levels = pd.Series(draw[:, place]).groupby(codes).nunique()
            assert (levels == 1).all()
        assert not np.allclose(draw, x)


@pytest.mark.slow
def test_trap_28_clustered_labels_do_not_make_a_feature_of_the_target_a_predictor() -> None:
    spec = PREDICTED | {"features": ["n_prompt", "depth"], "draws": 100}
    p = [predictors(source(transferring(0.0, seed)), spec, "score").p for seed in range(120)]
    assert np.mean([value is not None and value < 0.05 for value in p]) <= 0.10


def test_trap_30_the_outcome_is_no_feature_of_itself(tmp_path: Path) -> None:
    features = "[markers, n_prompt, kv.perplexity, n_new, baseline.perplexity, baseline.markers]"
    rest = f"analyses: {{p: {{kind: predictors, condition: kv, high: 8, low: 0, features: {features}}}}}"
    told = faults(
        "+experiment=mine", folder=body(KV, tmp_path, rest=f"readouts: [behaviour, perplexity]\n{rest}")
    )
    for place, name in ((0, "markers"), (2, "perplexity"), (3, "n_new")):
        assert f"features.{place}: {name} of kv is what is to be told, or measured on the same" in told
    assert not any(f"features.{place}" in told for place in (1, 4, 5))


def test_the_area_and_its_variance_are_those_of_mann_whitney_and_delong() -> None:
    random = np.random.default_rng(0)
    y = (random.random(80) < 0.3).astype(float)
    values = np.round(random.normal(size=80) + y, 1)  # with ties
    high, low = values[y > 0], values[y == 0]
    assert auc(values, y) == pytest.approx(stats.mannwhitneyu(high, low).statistic / len(high) / len(low))
    placed = influence(values, y)
    wins = (high[:, None] > low) + 0.5 * (high[:, None] == low)
    area = wins.mean()
    delong = ((wins.mean(1) - area) ** 2).sum() / len(high) ** 2 + ((wins.mean(0) - area) ** 2).sum() / len(
        low
    ) ** 2
    assert placed.mean() == pytest.approx(area)
    assert ((placed - area) ** 2).sum() / len(y) ** 2 == pytest.approx(delong)


def test_the_penalised_regression_is_at_its_minimum_and_finite_when_classes_are_apart() -> None:
    random = np.random.default_rng(1)
    x = random.normal(size=(60, 3))
    y = (x[:, 0] + random.normal(size=60) > 0.5).astype(float)
    weight = np.where(y > 0, 30 / y.sum(), 30 / (60 - y.sum()))

    def loss(beta: np.ndarray) -> float:
        odds = beta[0] + x @ beta[1:]
        fitted = weight * (np.logaddexp(0, odds) - y * odds)
        return float(fitted.sum() + 0.5 * (beta[1:] ** 2).sum())

    best = optimize.minimize(loss, np.zeros(4), method="BFGS", options={"gtol": 1e-8}).x
    assert fit(x[None], y)[0] == pytest.approx(best, abs=1e-3)
    apart = fit(x[None], (x[:, 0] > 0).astype(float))
    assert np.isfinite(apart).all()


# --- variance


def repeated(seed: int = 0, n: int = 300, repeats: int = 4, seeds: float = 0.0) -> Run:
    """Components: donors 1, targets 2, pairs 0.5, draws 3; `seeds` between repeats."""
    design = Design(seed, n=n, donors=50, targets=70)
    base = design.levels(1.0, math.sqrt(2)) + design.noise(math.sqrt(0.5))
    frames = []
    for repeat in range(repeats):
        shift = design.random.normal(scale=math.sqrt(seeds)) if seeds else 0.0
        frames.append(design.rows("kv_only", repeat, score=base + shift + design.noise(math.sqrt(3))))
    return made(pd.concat(frames, ignore_index=True))


def test_planted_components_are_recovered_and_sum_to_one() -> None:
    found = [variance(source(repeated(seed)), {}, "score").parts[0] for seed in range(8)]
    means = {key: np.mean([part.estimates[key] for part in found]) for key in found[0].estimates}
    assert means["donor"] == pytest.approx(1, abs=0.35) and means["target"] == pytest.approx(2, abs=0.5)
    assert means["pair"] == pytest.approx(0.5, abs=0.35) and means["residual"] == pytest.approx(3, abs=0.2)
    assert means["repeat"] == pytest.approx(0, abs=0.03)
    assert all(sum(part.shares.values()) == pytest.approx(1) for part in found)
    assert np.mean([part.icc for part in found]) == pytest.approx(3.5 / 6.5, abs=0.06)


def test_the_anova_part_is_that_of_the_closed_form() -> None:
    y = np.array([[1.0, 2, 4], [3, 3, 5], [0, 2, 1], [6, 5, 8], [2, 2, 3]])
    design = Design(0, n=5, donors=5, targets=5)
    design.donor = design.target = np.arange(5)
    trials = pd.concat([design.rows("kv_only", r, score=y[:, r]) for r in range(3)], ignore_index=True)
    (part,) = variance(source(made(trials)), {}, "score").parts
    rows, columns = y.mean(1), y.mean(0)
    rest = ((y - rows[:, None] - columns + y.mean()) ** 2).sum() / 8
    assert part.estimates["residual"] == pytest.approx(rest)
    assert part.estimates["repeat"] == pytest.approx((5 * columns.var(ddof=1) - rest) / 5)
    assert part.estimates["pair"] == pytest.approx((3 * rows.var(ddof=1) - rest) / 3)
    assert "donor and target cannot be told apart from the pair" in part.note


def test_seeds_that_shift_every_item_are_a_component_of_their_own() -> None:
    (part,) = variance(source(repeated(repeats=10, seeds=2.0)), {}, "score").parts
    assert part.estimates["repeat"] == pytest.approx(2, abs=1.5) and part.seed_sd is not None
    assert part.seed_sd > 0.7
    (still,) = variance(source(repeated(repeats=10)), {}, "score").parts
    assert still.seed_sd is not None and still.seed_sd < 0.2


def test_one_repeat_says_what_it_cannot_tell_apart() -> None:
    found = variance(source(repeated(repeats=1)), {}, "score")
    assert "pairs and draws" in found.sentence((), 0) and "cannot be told apart" in found.sentence((), 0)
    assert found.parts[0].icc is None


def test_a_baseline_has_no_component_of_donors() -> None:
    design = Design(2)
    trials = pd.concat(
        [design.rows("baseline", r, score=design.levels() + design.noise()) for r in range(2)],
        ignore_index=True,
    )
    (part,) = variance(source(made(trials)), {}, "score").parts
    assert "donor" not in part.estimates and "target" in part.estimates


# --- localisation


def layered(peak: float, seed: int = 0, n: int = 60) -> Run:
    design = Design(seed, n=n)
    base = design.levels()
    values, grids = {"baseline": base + design.noise()}, {}
    for layer in range(9):
        name = f"v[v.layers={layer}]"
        grids[name] = {"v.layers": layer}
        values[name] = base + peak * max(0, 3 - abs(layer - 6)) + design.noise()
    return made(design.table(values), grids=grids)


LOCAL = {"of": "v", "axis": "layers", "against": "baseline", "draws": 500}


def test_a_planted_layer_is_found_with_its_depth_and_a_narrow_interval() -> None:
    found = localisation(source(layered(1.5)), LOCAL, "score")
    assert found.layer == 6 and found.depth == pytest.approx(6 / 9)
    assert (found.low, found.high) == (6, 6)
    assert "highest at layer 6 of 9, depth 67%" in found.sentence((), 0)


def test_trap_36_without_a_peak_the_layer_is_wide_open_and_the_best_is_too_good() -> None:
    best, other, spans = [], [], []
    for seed in range(12):
        found = localisation(source(layered(0.0, seed)), LOCAL, "score")
        best.append(found.at_best.value)
        other.append(found.held_out)
        spans.append(found.high - found.low)
    assert np.mean(spans) > 4
    assert np.mean(best) > 2 * abs(np.mean(other)) and np.mean(best) > 0.1


def test_each_cell_is_held_against_the_same_cell_of_another_grid() -> None:
    design = Design(4)
    base = design.levels()
    values, grids = {}, {}
    for layer in range(4):
        for grid in ("random", "v"):
            name = f"{grid}[v.layers={layer}]"
            grids[name] = {"v.layers": layer}
            # Both rise with the layer; only at layer 1 does one do more than the other.
            values[name] = base + 2 * layer + 3 * (grid == "v" and layer == 1) + design.noise()
    run = source(made(design.table(values), grids=grids))
    assert localisation(run, {"of": "v", "axis": "layers"}, "score").layer == 3
    assert localisation(run, {"of": "v", "axis": "layers", "against": "random"}, "score").layer == 1


def test_a_stage_is_analysed_by_its_name_and_what_limits_it_is_repeated(tmp_path: Path) -> None:
    run = staged(tmp_path / "run")
    depth = {"kind": "localisation", "of": "ablate", "axis": "from_layer", "best": "lowest"}
    depth["published"] = "refusal_direction.{model}.0"
    run.manifest["stages"]["candidates"]["in_sample"] = "it was chosen on 8 prompts"
    manifest = {
        **run.manifest,
        "analyses": {
            "depth": depth | {"stage": "candidates"},
            "gone": {"kind": "variance", "stage": "weights"},
            "which": {"kind": "variance"},
        },
    }
    found = {each.name: each for each in studies(Run(run.trials, manifest, run.folder))}
    told = found["depth"].sentence
    assert "lowest at layer 5 of 9, depth 56%" in told and "layers of other models: gemma_2_2b 16" in told
    assert told.endswith("In sample: it was chosen on 8 prompts.") and found["depth"].stage == "candidates"
    assert "gone: no figure: stage weights was left out" in found["gone"].sentence
    assert "expected the stage that it is of: candidates, evaluate and weights" in found["which"].sentence


# --- all kinds together

ANY: Mapping[str, Mapping[str, Any]] = {
    "interaction": {"cells": CELLS},
    "share": {"of": "v_only", "in": "kv_only"},
    "specificity": {"treatment": "kv_only", "controls": ["v_only"]},
    "decomposition": {"of": "score", "into": ["markers", "bonus"]},
    "predictors": {"condition": "kv_only", "high": 8, "low": 0, "features": ["n_prompt"], "draws": 100},
    "variance": {},
    "localisation": {"of": "grid", "axis": "layers"},
}


def with_all(trials: pd.DataFrame) -> Run:
    """A run that declares every kind, over trials of four conditions; two of its cells are a grid as well."""
    frame = trials.assign(markers=trials["score"], bonus=0.0, n_prompt=np.arange(len(trials)) % 7)
    cells = [
        frame[frame["condition"] == name].assign(condition=f"grid[v.layers={layer}]")
        for layer, name in enumerate(("v_only", "both"))
    ]
    whole = pd.concat([frame, *cells], ignore_index=True)
    grids = {f"grid[v.layers={layer}]": {"v.layers": layer} for layer in (0, 1)}
    found = made(whole, {kind: {"kind": kind} | spec for kind, spec in ANY.items()}, grids)
    known = {name: {"label": name, "writes": {}, "grid": {}} for name in CELLS.values()}
    known |= {name: {"label": name, "writes": {}, "grid": axes} for name, axes in grids.items()}
    return Run(whole, {**found.manifest, "conditions": known | found.manifest["conditions"]}, Path("."))


def damaged(how: str) -> pd.DataFrame:
    trials = four(1.0).assign(score=lambda t: t["score"].round().clip(lower=0))
    if how == "all equal":
        return trials.assign(score=2.0)
    if how == "one item":
        return trials[trials["item"] == "0000"]
    if how == "two items":
        return trials[trials["item"].isin(["0000", "0001"])]
    if how == "one condition":
        return trials[trials["condition"] == "baseline"]
    if how == "undefined":
        return trials.assign(score=np.nan)
    if how == "all failed":
        return trials.assign(status="failed", score=np.nan)
    if how == "no donors":
        return trials.assign(donor=None)
    if how == "half undefined":
        return trials.assign(score=trials["score"].where(trials["item"] < "0100"))
    return trials


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "how",
    ["all equal", "one item", "two items", "one condition", "undefined", "all failed", "no donors",
     "half undefined", "whole"],
)  # fmt: skip
def test_every_kind_has_a_sentence_whatever_the_table_and_never_nan(how: str) -> None:
    found = studies(with_all(damaged(how)))
    assert [each.kind for each in found] == list(ANY) == list(KINDS)
    for each in found:
        assert each.sentence.endswith(".") and "nan" not in each.sentence.lower().split()
        assert (each.outcome is None) == ("no figure" in each.sentence)
        text = json.dumps(plain_study(each), allow_nan=False)
        assert json.loads(text)["table"]["columns"] == list(each.table.columns)
        assert all(len(row) == len(each.table.columns) for row in each.table.rows)
    if how in ("undefined", "all failed"):
        assert all(each.outcome is None for each in found)
    if how == "whole":
        assert all(each.outcome is not None for each in found)


def test_tests_of_the_primary_readout_are_corrected_together_and_all_are_marked_exploratory() -> None:
    run = with_all(damaged("whole"))
    declared = dict(run.manifest["analyses"])
    declared["other"] = {
        "kind": "specificity",
        "treatment": "kv_only",
        "controls": ["v_only"],
        "readout": "markers",
    }
    found = {
        each.name: each
        for each in studies(Run(run.trials, {**run.manifest, "analyses": declared}, run.folder))
    }
    assert all(each.exploratory for each in found.values())
    assert all(f"{each.label} (exploratory): " in each.sentence for each in found.values())
    assert {name for name, each in found.items() if each.joint} == {"interaction", "share", "specificity"}
    assert found["interaction"].family == found["specificity"].family == 2
    assert found["other"].family == 1
    assert found["interaction"].outcome is not None and found["specificity"].outcome is not None
    ps = sorted([*found["interaction"].outcome.p_values, *found["specificity"].outcome.p_values])
    corrected = sorted([*found["interaction"].p_holm, *found["specificity"].p_holm])
    assert corrected == pytest.approx([min(1, 2 * ps[0]), max(min(1, 2 * ps[0]), ps[1])])


def test_a_column_that_the_table_lacks_is_a_sentence() -> None:
    run = made(four(1.0), {"it": {"kind": "share", "of": "v_only", "in": "kv_only", "readout": "r_v"}})
    assert one(run).sentence == "it: no figure: the table has no column r_v."


def test_a_run_that_is_still_going_is_analysed_as_far_as_it_is() -> None:
    trials = four(2.0)
    later = trials["item"] >= "0120"
    trials.loc[later, ["status", "score"]] = ["pending", np.nan]
    found = one(made(trials, {"it": {"kind": "interaction", "cells": CELLS}}))
    assert "120 trials" in found.sentence


def test_terminal_and_summary_show_every_analysis() -> None:
    run = made(
        four(2.0),
        {"it": {"kind": "interaction", "cells": CELLS, "label": "V and KV"}, "v": {"kind": "variance"}},
        counts={}, plan_gates=[], published=None, dtype="float32",
    )  # fmt: skip
    summary = summarise(run)
    assert [each["name"] for each in summary["analyses"]] == ["it", "v"]
    stream = io.StringIO()
    print_summary(Console(file=stream, width=110), summary)
    flat = " ".join(stream.getvalue().split())
    told = [" ".join(each["sentence"].split()).partition(". ")[0] for each in summary["analyses"]]
    assert all(first in flat for first in told)  # the first sentence; the rest is in summary.md
    assert all(each["sentence"] in to_markdown(summary) for each in summary["analyses"])


# --- the door

KV = "kv: {kv: {site: kv_cache, layers: all, op: replace, value: donor, align: right}}"


def test_every_kind_that_is_analysed_is_one_that_the_door_knows() -> None:
    assert set(ANALYSES) == set(KINDS)


def test_all_mistakes_of_analyses_are_told_at_once_with_the_nearest_word(tmp_path: Path) -> None:
    rest = """readouts: [behaviour]
analyses:
  a: {kind: interactoin}
  b: {kind: share, of: kv_onyl, in: kv, shares: 1}
  c: {kind: share, of: grdi, in: kv}
  d: {kind: specificity, treatment: kv, controls: [kv, baseline], readout: scoer}
  e: {kind: decomposition, of: score, into: [markers, score]}
  f: {kind: predictors, condition: grid, high: 0, low: 8, features: [n_promt]}
  g: {kind: localisation, of: kv, axis: kv.layers}
  h: {kind: localisation, of: grid, axis: kv.layer, stage: evaluate}
  i: {kind: interaction, cells: {both: kv, first: kv, second: baseline, neither: baseline}}
  j: 3"""
    grid = "grid: {kv: {site: kv_cache, layers: 1, op: replace, value: donor}, grid: {kv.layers: [1, 2]}}"
    told = faults("+experiment=mine", folder=body(f"{KV}\n{grid}", tmp_path, rest=rest))
    for part in (
        "analyses.a.kind: expected one of interaction, share",
        "did you mean 'interaction'",
        "analyses.b.shares",
        "analyses.c.of: expected a condition or grid of the stage (baseline, kv, grid), got 'grdi'",
        "analyses.d.controls.0: kv is the treatment itself",
        "analyses.d.readout: expected a column with one number a trial",
        "analyses.e.into.1: score is the whole itself",
        "analyses.f.condition: 'grid' is a grid of 2 cells",
        "analyses.f.high: expected more than low (8), got 0",
        "analyses.f.features.0: expected a feature",
        "analyses.g.of: expected a grid of the stage",
        "analyses.h.stage: expected a stage that measures",
        "analyses.i.cells: expected four different conditions",
        "analyses.j: expected a mapping",
    ):
        assert part in told, part


def test_what_the_file_declares_is_in_manifest_summary_and_markdown(tmp_path: Path) -> None:
    words = ["+experiment=n300_kv_only", "limit=6", "sampling.max_new_tokens=8", "quiet=true"]
    result = runner.run([*words, "backend.threads=1", "report=false", f"output_root={tmp_path}"])
    assert result.folder is not None
    manifest = json.loads((result.folder / "manifest.json").read_text())
    assert manifest["analyses"]["share"]["in"] == "kv_only"
    names = [each["name"] for each in result.summary["analyses"]]
    assert names == list(manifest["analyses"]) == ["specific", "share", "apart"]
    text = (result.folder / "summary.md").read_text()
    assert all(each["sentence"] in text for each in result.summary["analyses"])
    apart = result.summary["analyses"][2]["result"]["contrasts"]
    assert {(each["condition"], each["against"]) for each in apart} >= {("kv_only", "baseline")}


def test_an_inherited_analysis_is_taken_out_by_null() -> None:
    found = check_experiment(compose(["+experiment=n300_teacher_forced"])).analyses
    assert "specific" in found and not {"apart", "transferability"} & set(found)


def test_experiments_declare_analyses_that_the_door_accepts() -> None:
    kinds = set()
    for name in ("n300_controls", "replicate_10_seeds", "refusal_direction"):
        found = check_experiment(compose([f"+experiment={name}"])).analyses
        assert found, name
        kinds |= {each.kind for each in found.values()}
    assert kinds == set(KINDS)
