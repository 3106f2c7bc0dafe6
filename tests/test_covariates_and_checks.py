"""Differences adjusted for covariates, and checks with a known outcome, on figures whose answer is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm

from analyses.comparisons.checks import Check, checks
from analyses.comparisons.contrasts import contrasts
from analyses.comparisons.covariates import adjust
from analyses.statistics.clusters import clustered_mean
from analyses.summary.markdown import to_markdown
from analyses.summary.summary import summarise
from analyses.tables.pairs import Paired
from analyses.tables.run import Run
from tests.made_run import N, made_manifest, made_trials

RNG = np.random.default_rng(7)


def paired(difference: np.ndarray, targets: int = 15, donors: int | None = 12) -> Paired:
    n = len(difference)
    rng = np.random.default_rng(1)
    labels = {} if donors is None else {"donor": pd.Series([f"d{k}" for k in rng.integers(donors, size=n)])}
    target = pd.Series([f"t{k}" for k in rng.integers(targets, size=n)])
    return Paired(difference, np.zeros(n), labels, target, n, n, "")


# --- covariates


def test_a_readout_that_depends_on_length_alone_has_adjusted_difference_0() -> None:
    gap = RNG.integers(3, 20, 80).astype(float)
    exact = adjust(paired(0.5 * gap), {"n_prompt": gap})
    assert exact.test is not None and exact.test.mean == pytest.approx(0, abs=1e-12)
    assert exact.slopes == {"n_prompt": pytest.approx(0.5)} and exact.test.p is None
    noisy = 0.5 * gap + RNG.normal(0, 1, 80)
    found, plain = adjust(paired(noisy), {"n_prompt": gap}), paired(noisy).test()
    assert plain.ci_low is not None and plain.ci_low > 0
    assert found.test is not None and found.test.ci_low is not None and found.test.ci_high is not None
    assert found.test.ci_low < 0 < found.test.ci_high


def test_an_effect_beside_length_is_what_is_left() -> None:
    gap = RNG.integers(-8, 9, 200).astype(float)
    found = adjust(paired(2.0 + 0.3 * gap + RNG.normal(0, 0.2, 200)), {"n_prompt": gap})
    assert found.test is not None and found.test.mean == pytest.approx(2.0, abs=0.05)
    assert found.slopes["n_prompt"] == pytest.approx(0.3, abs=0.02) and found.note == ""


def test_without_a_gap_the_adjusted_difference_is_the_plain_one() -> None:
    values = paired(RNG.normal(1, 1, 60))
    found = adjust(values, {"n_prompt": np.zeros(60)})
    plain = values.test()
    assert found.test is not None and "no pair differs in n_prompt" in found.note
    for field in ("mean", "se", "df", "p", "ci_low", "ci_high", "effective_n"):
        assert getattr(found.test, field) == pytest.approx(getattr(plain, field)), field


def test_the_standard_error_is_that_of_a_clustered_regression() -> None:
    gap, other = RNG.normal(2, 3, 150), RNG.normal(0, 1, 150)
    values = paired(1 + gap - other + RNG.normal(0, 2, 150), targets=20, donors=None)
    found = adjust(values, {"n_prompt": gap, "n_new": other})
    design = sm.add_constant(np.column_stack([gap, other]))
    groups = pd.factorize(values.target)[0]
    known = sm.OLS(values.difference, design).fit(cov_type="cluster", cov_kwds={"groups": groups})
    assert found.test is not None
    assert found.test.mean == pytest.approx(known.params[0])
    assert found.test.se == pytest.approx(known.bse[0])
    assert list(found.slopes.values()) == pytest.approx(list(known.params[1:]))


def test_two_ways_of_clusters_are_those_of_the_mean_of_its_scores() -> None:
    gap = RNG.normal(0, 1, 90)
    values = paired(gap + RNG.normal(0, 1, 90))
    found = adjust(values, {"n_prompt": gap})
    assert found.test is not None and set(found.test.clusters) == {"donor", "target"}
    mean = clustered_mean(values.difference, donor=values.donors, target=values.target)
    assert found.test.df == mean.df and found.test.method == mean.method


@pytest.mark.parametrize(
    ("gaps", "told"),
    [
        ({"n_prompt": np.full(30, 4.0)}, "every pair differs by 4.00 in n_prompt"),
        ({"a": np.arange(30.0), "b": 2 * np.arange(30.0)}, "a and b go up and down together"),
    ],
)
def test_what_cannot_be_told_apart_is_not_adjusted(gaps: dict[str, np.ndarray], told: str) -> None:
    found = adjust(paired(RNG.normal(0, 1, 30)), gaps)
    assert found.test is None and told in found.note


def test_too_few_pairs_are_not_adjusted() -> None:
    found = adjust(paired(np.array([1.0, 2.0, 4.0])), {"n_prompt": np.array([1.0, 2.0, 3.0])})
    assert found.test is None and "too few" in found.note


def test_a_line_followed_beyond_the_pairs_is_said() -> None:
    gap = RNG.integers(10, 20, 50).astype(float)
    assert "followed outside" in adjust(paired(RNG.normal(0, 1, 50)), {"n_prompt": gap}).note
    gap[0] = np.nan
    assert "1 of 50 pairs without a covariate" in adjust(paired(RNG.normal(0, 1, 50)), {"x": gap}).note


def test_contrasts_stand_unadjusted_and_adjusted_in_summary_and_markdown() -> None:
    trials = made_trials()
    long = trials["condition"].eq("kv_only")
    trials["n_prompt"] = 20 + 9 * long + np.tile(np.arange(N), 5) % 7 * np.where(long, 2, 1)
    manifest = made_manifest(covariates=["n_prompt"])
    found = {each.condition: each for each in contrasts(trials, manifest)}
    plain = {each.condition: each for each in contrasts(trials, made_manifest())}
    for name, each in found.items():
        assert each.test == plain[name].test and each.p_holm == plain[name].p_holm
        assert each.adjusted is not None and plain[name].adjusted is None
    summary = summarise(Run(trials, manifest, Path(".")))
    flat = {each["condition"]: each["adjusted"] for each in summary["contrasts"]}
    assert flat["kv_only"]["gaps"]["n_prompt"] == pytest.approx(9 + np.mean(np.arange(N) % 7))
    assert flat["kv_self"]["gaps"]["n_prompt"] == 0 and flat["kv_only"]["p_holm"] is not None
    text = to_markdown(summary)
    assert "### Adjusted" in text and flat["kv_only"]["sentence"] in text


# --- checks


def check(**body: Any) -> dict[str, Any]:
    """A check as the manifest has it."""
    whole = {"of": "kv_only", "readout": "score", "expect": "higher", "against": "baseline", "value": None}
    whole |= {"entry": None, "than_entry": None, "within": 0.0} | body
    whole["column"] = whole["readout"].partition("[")[0]
    whole.setdefault("than", whole["readout"])
    whole["than_column"] = whole["than"].partition("[")[0]
    return whole


def judged(trials: pd.DataFrame | None = None, **body: Any) -> Check:
    manifest = made_manifest(checks={"it": check(**body)})
    (found,) = checks(made_trials() if trials is None else trials, manifest)
    return found


@pytest.mark.parametrize(
    ("body", "verdict"),
    [
        ({"expect": "higher"}, "met"),
        ({"expect": "lower"}, "not met"),
        ({"expect": "same"}, "not met"),
        ({"expect": "different"}, "met"),
        ({"expect": "different", "within": 50.0}, "not met"),
        ({"of": "kv_self", "expect": "same"}, "met"),
        ({"of": "kv_self", "expect": "different"}, "not met"),
        ({"of": "kv_self", "expect": "higher"}, "not met"),
        ({"of": "kv_plain", "expect": "higher"}, "not met"),
        ({"of": "kv_plain", "expect": "same", "within": 1.0}, "met"),
        ({"expect": "lower", "against": "kv_only", "value": 50.0}, "met"),
        ({"expect": "higher", "against": "kv_only", "than": "strict"}, "met"),
        ({"expect": "higher", "against": "kv_only", "readout": "bonus", "value": 0.0}, "not met"),
        ({"readout": "nothing"}, "undecided"),
    ],
)
def test_each_expectation_has_its_verdict(body: dict[str, Any], verdict: str) -> None:
    found = judged(**body)
    assert found.verdict == verdict, found.sentence


def test_an_entry_of_a_list_is_compared_and_a_missing_one_left_out() -> None:
    trials = made_trials()
    ranks = [np.array([9, 4, 0]) if i % 2 else np.array([9, 4, 1]) for i in range(len(trials))]
    trials["lens.rank"] = ranks
    trials.at[0, "lens.rank"] = None
    own = {"against": "kv_only", "readout": "lens.rank[first]", "entry": 0}
    assert judged(trials, **own, than="lens.rank[8]", than_entry=-1).verdict == "met"
    same = {"of": "baseline", "against": "baseline", "readout": "lens.rank[first]", "entry": 0}
    found = judged(trials, **same, expect="same", value=9.0)
    assert (found.verdict, found.n) == ("met", N - 1)
    assert found.sentence.startswith("it: lens.rank[first] of baseline differs from 9 in 0 of 59 trials")


def test_tests_of_checks_are_corrected_together() -> None:
    names = {str(k): check(of="kv_only") for k in range(4)}
    alone, together = judged(), checks(made_trials(), made_manifest(checks=names))
    assert alone.p_holm is not None and alone.test is not None and alone.test.p is not None
    assert [each.p_holm for each in together] == [pytest.approx(min(1.0, 4 * alone.test.p))] * 4


def test_the_same_trial_in_both_sides_is_clustered_by_its_own_donor_and_target() -> None:
    found = judged(against="kv_only", than="strict")
    assert found.test is not None and set(found.test.clusters) == {"donor", "target"}


def test_checks_are_in_the_summary_and_in_markdown() -> None:
    named = {"rises": check(), "stays": check(expect="same")}
    summary = summarise(Run(made_trials(), made_manifest(checks=named), Path(".")))
    assert [(each["name"], each["verdict"]) for each in summary["checks"]] == [
        ("rises", "met"),
        ("stays", "not met"),
    ]
    text = to_markdown(summary)
    assert "## Checks" in text and "- **not met**: stays: " in text
    assert "## Checks" not in to_markdown(summarise(Run(made_trials(), made_manifest(), Path("."))))
