"""The slope over a dose and its standard error; what each repeat alone would have said."""

from __future__ import annotations

import io
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from rich.console import Console

from analyses.comparisons.repeats import by_repeat
from analyses.comparisons.trends import slope, trends
from analyses.statistics.clusters import cluster_variance, clustered_mean
from analyses.summary.markdown import to_markdown
from analyses.summary.summary import summarise
from analyses.summary.terminal import print_summary
from analyses.tables.pairs import pair
from analyses.tables.run import Run
from tests.made_run import made_manifest, made_trials

DOSES = ("low", "middle", "high")


def dosed(effect: float, seed: int = 0, blocks: int = 80, donors: int = 6) -> Run:
    """A run in which each dose has donors of its own, with a level each, and targets have one too."""
    rng = np.random.default_rng(seed)
    level = {(dose, d): rng.normal(0, 1) for dose in range(3) for d in range(donors)}
    of_target = rng.normal(0, 2, 12)
    rows = []
    for item in range(blocks):
        target = int(rng.integers(12))
        for dose, name in enumerate(DOSES):
            donor = int(rng.integers(donors))
            value = effect * dose + level[dose, donor] + of_target[target] + rng.normal()
            row = {"stage": "measure", "condition": name, "item": f"{item:04d}", "repeat": 0, "status": "ok"}
            row |= {
                "donor": f"own{item % 9}",
                "target": f"t{target}",
                "score": value,
                "output_ids": [item, dose],
            }
            rows.append(row | {"donor_ids": [("donor", [1]), (name, [dose, donor])]})
    manifest = made_manifest(family="none", trends=[list(DOSES)])
    write = {"site": "kv_cache", "during": "prefill", "has_old": True, "expect": None}
    manifest["conditions"] = {
        name: {"label": name, "words": [], "sampling": {}, "grid": {}, "same_as": None}
        | {"writes": {"kv": write | {"value": {"kind": "source", "role": name, "draws": 1}}}}
        for name in DOSES
    }
    return Run(pd.DataFrame(rows), manifest, Path("."))


def test_a_slope_is_that_of_least_squares_and_its_variance_is_clustered_both_ways() -> None:
    rng = np.random.default_rng(3)
    values, doses = rng.normal(size=(40, 4)) + np.arange(4), (1.0, 2.0, 3.0, 5.0)
    donor, target = rng.integers(5, size=(40, 4)), rng.integers(7, size=40)
    b, se, clusters, _ = slope(values, doses, donor.tolist(), target.tolist())
    dose = np.tile(doses, 40)
    leveled = sm.OLS(values.ravel(), np.column_stack([dose, np.kron(np.eye(40), np.ones((4, 1)))])).fit()
    fit = sm.OLS(values.ravel(), sm.add_constant(dose)).fit()
    assert b == pytest.approx(fit.params[1]) == pytest.approx(leveled.params[0])
    assert clusters == {"donor": 5, "target": 7}

    def one_way(labels: np.ndarray) -> float:
        centred = dose - np.mean(doses)
        scores = pd.Series(centred * fit.resid).groupby(labels).sum()
        many = len(scores)
        return many / (many - 1) * float((scores**2).sum()) / float((centred**2).sum()) ** 2

    of_target = np.repeat(target, 4)
    both = one_way(donor.ravel()) + one_way(of_target) - one_way(donor.ravel() * 100 + of_target)
    assert se**2 == pytest.approx(both)


def test_cluster_variance_is_that_of_a_clustered_mean() -> None:
    rng = np.random.default_rng(0)
    values, donor, target = rng.normal(size=60), rng.integers(6, size=60), rng.integers(9, size=60)
    whole = clustered_mean(values, donor=donor, target=target)
    variance, clusters, note = cluster_variance(values - values.mean(), donor=donor, target=target)
    assert whole.se is not None
    assert (variance**0.5, clusters, note) == (pytest.approx(whole.se), whole.clusters, "")


def test_a_trend_is_found_where_there_is_one_and_its_clusters_are_the_donors_used() -> None:
    run = dosed(2.0)
    (found,) = trends(run.trials, run.manifest)
    assert found.clusters == {"donor": 18, "target": 12} and found.df == 11 and found.n == 80
    assert found.slope is not None and found.ci_low is not None and found.ci_low > 0
    assert found.means[0] < found.means[1] < found.means[2]
    assert "score rises by" in found.sentence and "low, middle and high (dose 1, 2, 3)" in found.sentence


def test_trap_28_donors_that_recur_widen_the_interval_of_a_trend() -> None:
    held = {"used": 0, "forgotten": 0}
    for seed in range(60):
        run = dosed(0.0, seed)
        alone = run.trials.assign(donor=[f"d{i}" for i in range(len(run.trials))])
        alone["donor_ids"] = [[("donor", [1])]] * len(alone)
        for name, trials in (("used", run.trials), ("forgotten", alone)):
            (found,) = trends(trials, run.manifest)
            assert found.ci_low is not None and found.ci_high is not None
            held[name] += found.ci_low < 0 < found.ci_high
    # There is no trend. Six donors a dose are few, so that even the clustered interval is somewhat short.
    assert held["used"] > 45 > held["forgotten"] + 5


def test_a_trend_and_a_contrast_count_the_same_donors() -> None:
    run = dosed(0.5)
    (trend,) = trends(run.trials, run.manifest)
    counted = {}
    for first, second in pairwise(DOSES):
        counted |= pair(run.trials, second, first, "score", run.manifest["conditions"]).test().clusters
    assert counted == {"donor:low": 6, "donor:middle": 6, "donor:high": 6, "target": 12}
    assert trend.clusters["donor"] == sum(counted[f"donor:{name}"] for name in DOSES)


def test_a_dose_that_reads_several_donors_is_clustered_by_the_items_own_and_says_so() -> None:
    run = dosed(0.5)
    high = run.manifest["conditions"]["high"]
    high["writes"]["v_proj"] = {"value": {"kind": "source", "role": "donor", "draws": 1}}
    (found,) = trends(run.trials, run.manifest)
    assert found.clusters["donor"] == 6 + 6 + 9
    assert found.note == "high reads 2 donors: clustered by the item's own"


def test_doses_are_the_numbers_of_a_grid_with_one_axis() -> None:
    run = dosed(1.0)
    conditions = {
        name: body | {"grid": {"kv.alpha": alpha}}
        for (name, body), alpha in zip(run.manifest["conditions"].items(), (0.5, 1.0, 4.0), strict=True)
    }
    (found,) = trends(run.trials, {**run.manifest, "conditions": conditions})
    assert found.doses == (0.5, 1.0, 4.0)


def test_a_trend_without_values_says_why() -> None:
    run = dosed(1.0, blocks=2)
    (found,) = trends(run.trials, run.manifest)
    assert found.slope is None and found.p_holm is None and "fewer than 3" in found.sentence
    (found,) = trends(run.trials.drop(columns="score"), run.manifest)
    assert "no column score" in found.sentence
    with pytest.raises(ValueError, match="doses that differ"):
        slope(np.ones((5, 2)), (1.0, 1.0), [["a", "b"]] * 5, list("abcde"))


def repeated(many: int) -> Run:
    trials = pd.concat([made_trials(seed).assign(repeat=seed) for seed in range(many)], ignore_index=True)
    manifest = made_manifest()
    manifest["experiment"]["repeats"] = many
    return Run(trials, manifest, Path("."))


def test_values_on_a_straight_line_are_not_tested_against_rounding() -> None:
    run = dosed(0.0)
    exact = run.trials.assign(
        score=[0.1 * (DOSES.index(c) + 1) if c in DOSES else 0.0 for c in run.trials["condition"]]
    )
    (found,) = trends(exact, run.manifest)
    assert found.slope is None and found.p is None
    assert "no spread" in found.note


def test_each_repeat_is_what_it_would_be_alone() -> None:
    run = repeated(4)
    found = {each.condition: each for each in by_repeat(run.trials, run.manifest)}
    for seed, row in enumerate(found["kv_only"].rows):
        (alone,) = [c for c in summarise(Run(made_trials(seed), made_manifest(), Path(".")))["contrasts"]
                    if c["condition"] == "kv_only"]  # fmt: skip
        assert (row.repeat, row.n) == (seed, alone["n"])
        assert (row.difference, row.ci_low) == (
            pytest.approx(alone["difference"]),
            pytest.approx(alone["ci_low"]),
        )
    assert (found["kv_only"].excluding_zero, found["kv_only"].of) == (4, 4)
    assert "4 of 4 95% intervals leave out 0" in found["kv_only"].sentence
    # Differences that are all 0 have no interval, which is not one that holds 0.
    assert [row.excludes_zero for row in found["kv_self"].rows] == [None] * 4


def test_one_repeat_has_no_table() -> None:
    assert summarise(Run(made_trials(), made_manifest(), Path(".")))["repeats"] == []


@pytest.mark.parametrize("width", [80, 110])
def test_trends_and_repeats_are_in_both_reports(width: int) -> None:
    for run in (repeated(10), dosed(2.0)):
        summary = summarise(run)
        stream = io.StringIO()
        print_summary(Console(file=stream, width=width, color_system=None), summary)
        text = stream.getvalue()
        assert max(map(len, text.splitlines())) <= width
        told = [each["sentence"] for each in (*summary["trends"], *summary["repeats"])]
        assert told
        markdown = to_markdown(summary)
        for sentence in told:
            assert sentence in " ".join(text.split()) and sentence in markdown
    assert "| `high` | 3 |" in markdown and "## Trends" in markdown
    assert "by repeat" not in text


def test_the_table_by_repeat_has_every_repeat_and_the_count(capsys: pytest.CaptureFixture[str]) -> None:
    summary = summarise(repeated(10))
    print_summary(Console(width=110, color_system=None), summary)
    text = capsys.readouterr().out
    row = next(each for each in summary["repeats"] if each["condition"] == "kv_only")
    last = row["rows"][9]
    assert f"{last['difference']:.2f} ({last['ci_low']:.2f} to {last['ci_high']:.2f})" in text
    assert f"leaves out 0  {row['excluding_zero']} of 10" in " ".join(text.split()).replace("0 10", "0  10")
    assert "## By repeat" in to_markdown(summary) and "| repeat 9 |" in to_markdown(summary)
