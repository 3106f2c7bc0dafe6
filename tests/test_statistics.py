"""Statistics against independent implementations, in degenerate cases and under simulation."""

from __future__ import annotations

import math
from collections import Counter
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.power import TTestPower
from statsmodels.stats.sandwich_covariance import cov_cluster, cov_cluster_2groups
from statsmodels.stats.weightstats import ttost_paired

from analyses.comparisons.contrasts import contrasts
from analyses.statistics.clusters import ClusteredMean, clustered_mean, in_words
from analyses.statistics.corrections import holm
from analyses.statistics.describe import describe
from analyses.statistics.equivalence import tost
from analyses.statistics.power import detectable, minimal_detectable_effect
from analyses.statistics.t_tests import cohens_d, from_moments, paired_t, unpaired_t
from analyses.tables.pairs import donor_labels, pair, roles_read


def crossed(
    seed: int, n: int, donors: int, targets: int, sd: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """n values with donor effects and target effects of the given sd and noise of sd 1, true mean 0."""
    rng = np.random.default_rng(seed)
    donor, target = rng.integers(donors, size=n), rng.integers(targets, size=n)
    effects = rng.normal(0, sd, donors)[donor] + rng.normal(0, sd, targets)[target]
    return effects + rng.normal(size=n), donor, target


def test_trap_28_two_way_variance_is_that_of_statsmodels() -> None:
    x, donor, target = crossed(3, 120, 15, 22, 0.8)
    model = sm.OLS(x, np.ones(len(x))).fit()
    reference = float(cov_cluster_2groups(model, donor, target)[0][0, 0]) ** 0.5
    result = clustered_mean(x, donor=donor, target=target)
    assert result.se == pytest.approx(reference, rel=1e-12)
    assert result.df == 14 and result.clusters == {"donor": 15, "target": 22}
    assert result.mean is not None and result.t == pytest.approx(result.mean / reference)
    assert result.p == pytest.approx(2 * stats.t.sf(abs(result.mean / reference), 14))
    low, high = stats.t.interval(0.95, 14, loc=result.mean, scale=reference)
    assert (result.ci_low, result.ci_high) == pytest.approx((low, high))
    assert result.effective_n == pytest.approx(x.var(ddof=1) / reference**2)


def test_one_way_variance_is_that_of_statsmodels() -> None:
    x, donor, _ = crossed(4, 80, 12, 9, 0.8)
    model = sm.OLS(x, np.ones(len(x))).fit()
    result = clustered_mean(x, donor=donor)
    assert result.se == pytest.approx(float(cov_cluster(model, donor)[0, 0]) ** 0.5, rel=1e-12)
    assert result.df == 11 and result.method == "clustered by donor"


@pytest.mark.parametrize("labels", [{}, {"donor": range(40)}, {"donor": range(40), "target": range(40)}])
def test_without_shared_clusters_the_test_is_the_ordinary_t_test(labels: dict[str, range]) -> None:
    x = np.random.default_rng(5).normal(0.4, 1, 40)
    result = clustered_mean(x, donor=labels.get("donor"), target=labels.get("target"))
    reference = stats.ttest_1samp(x, 0)
    assert (result.t, result.p) == pytest.approx((reference.statistic, reference.pvalue))
    assert result.df == 39 and result.effective_n == pytest.approx(40)


def test_trap_28_the_same_values_from_fewer_clusters_are_less_certain() -> None:
    x = np.repeat(np.random.default_rng(6).normal(0.3, 1, 10), 30)
    naive, clustered = paired_t(x), clustered_mean(x, donor=np.repeat(range(10), 30))
    assert naive.p is not None and clustered.p is not None
    assert naive.p < 1e-3 < 0.05 < clustered.p
    # Thirty copies of ten values are worth ten values (9 of them: the sd of copies has another ddof).
    assert clustered.effective_n == pytest.approx(10, rel=0.11)


def test_a_two_way_variance_that_is_not_positive_falls_back_and_says_so() -> None:
    x = np.array([1.0, -1.0, -1.0, 1.0, 0.5, -0.5])
    donor, target = [0, 0, 1, 1, 2, 2], [0, 1, 0, 1, 0, 1]
    result = clustered_mean(x, donor=donor, target=target)
    one_way = max(
        found.se for found in (clustered_mean(x, donor=donor), clustered_mean(x, target=target)) if found.se
    )
    assert "not positive" in result.note and result.se == pytest.approx(one_way)
    assert result.method == "larger of the one-way clustered variances"


def test_values_that_cancel_within_every_cluster_give_no_standard_error() -> None:
    result = clustered_mean([1.0, -1.0, 2.0, -2.0], donor=[0, 0, 1, 1])
    assert result.p is None and "cancel out" in result.note


def test_one_cluster_only_says_nothing_about_others() -> None:
    x = np.random.default_rng(7).normal(size=30)
    target = [i % 10 for i in range(30)]
    result = clustered_mean(x, donor=["d"] * 30, target=target)
    assert result.se == clustered_mean(x, target=target).se and "one donor only" in result.note
    alone = clustered_mean(x, donor=["d"] * 30, target=["t"] * 30)
    assert alone.p is None and "same clusters" in alone.note


def test_missing_labels_are_clusters_of_their_own() -> None:
    x = np.random.default_rng(8).normal(size=6)
    result = clustered_mean(x, donor=["a", "a", "b", None, None, "b"])
    assert result.clusters == {"donor": 4} and "2 values without a donor" in result.note
    unlabelled = clustered_mean(x, donor=[None] * 6)
    assert unlabelled.se == clustered_mean(x).se and "no donor is recorded" in unlabelled.note


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([], "0 values"),
        ([1.0], "fewer than 3"),
        ([1.0, 2.0], "fewer than 3"),
        ([2.0, 2.0, 2.0, 2.0], "all 4 values are equal"),
        ([0.0] * 300, "all 300 values are equal"),
        ([math.nan, 1.0, 2.0], "1 of 3 values undefined"),
    ],
)
def test_trap_35_what_cannot_be_tested_has_no_p_and_a_reason(values: list[float], words: str) -> None:
    result = clustered_mean(values, donor=list(range(len(values))), target=[0] * len(values))
    assert result.p is None and result.se is None and words in result.note
    naive = paired_t(values)
    assert naive.p is None and naive.note
    equal = tost(result, 0.5)
    assert equal.passes is None and equal.note == result.note


def test_trap_29_undefined_values_are_left_out_and_counted() -> None:
    x = np.array([1.0, 2.0, math.nan, 4.0, 5.5])
    result = clustered_mean(x, donor=list("abcde"))
    assert result.n == 4 and result.mean == pytest.approx(3.125)
    assert "1 of 5 values undefined and left out" in result.note and result.p is not None


def test_labels_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match="donor: expected 3 labels"):
        clustered_mean([1.0, 2.0, 3.0], donor=[1, 2])


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.floats(-50, 50))
def test_invariances_of_the_clustered_mean(seed: int, constant: float) -> None:
    x, donor, target = crossed(seed, 40, 8, 9, 0.6)
    plain = clustered_mean(x, donor=donor, target=target)
    order = np.random.default_rng(seed).permutation(len(x))
    permuted = clustered_mean(x[order], donor=donor[order], target=target[order])
    swapped = clustered_mean(x, donor=target, target=donor)
    renamed = clustered_mean(x, donor=[f"d{i}" for i in donor], target=target)
    shifted = clustered_mean(x + constant, donor=donor, target=target)
    assert plain.se is not None and plain.mean is not None
    for other in (permuted, swapped, renamed, shifted):
        assert other.se == pytest.approx(plain.se, rel=1e-6) and other.df == plain.df
    assert shifted.mean == pytest.approx(plain.mean + constant)
    negative = clustered_mean(-x, donor=donor, target=target)
    assert negative.p == pytest.approx(plain.p) and negative.ci_low == pytest.approx(-(plain.ci_high or 0))


def test_trap_29_effect_sizes_name_their_ddof() -> None:
    x = np.array([1.0, 2.0, 4.0, 4.0])
    assert cohens_d(x, ddof=1) == pytest.approx(x.mean() / x.std(ddof=1))
    assert cohens_d(x, ddof=0) == pytest.approx(x.mean() / x.std(ddof=0))
    assert cohens_d([3.0, 3.0, 3.0], ddof=1) is None
    test = paired_t(x)
    assert (test.d_ddof1, test.d_ddof0) == pytest.approx((x.mean() / x.std(ddof=1), x.mean() / x.std()))


def test_naive_tests_are_those_of_scipy() -> None:
    rng = np.random.default_rng(9)
    a, b = rng.normal(0.5, 1, 30), rng.normal(0, 2, 22)
    one = paired_t(a)
    reference = stats.ttest_1samp(a, 0)
    assert (one.t, one.p, one.df) == pytest.approx((reference.statistic, reference.pvalue, 29))
    interval = reference.confidence_interval()
    assert (one.ci_low, one.ci_high) == pytest.approx((interval.low, interval.high))
    assert from_moments(float(a.mean()), float(a.std(ddof=1)), 30).p == pytest.approx(reference.pvalue)
    for pooled in (True, False):
        two = unpaired_t(a, b, pooled=pooled)
        independent = stats.ttest_ind(a, b, equal_var=pooled)
        assert (two.t, two.p) == pytest.approx((independent.statistic, independent.pvalue))
        assert two.df == pytest.approx(independent.df)
    assert unpaired_t([1.0], b, pooled=True).p is None
    assert unpaired_t([1.0, 1.0], [2.0, 2.0], pooled=False).note == "no spread in either arm, no test"


def test_trap_31_holm_keeps_the_declared_family_whole() -> None:
    assert holm([0.01, None, 0.04]) == [pytest.approx(0.03), None, pytest.approx(0.08)]
    assert holm([]) == []
    with pytest.raises(ValueError, match=r"0\.\.1"):
        holm([1.2])


def test_trap_32_equivalence_needs_its_margin_and_a_tight_interval() -> None:
    rng = np.random.default_rng(10)
    x = rng.normal(0.05, 1, 400)
    test = clustered_mean(x)
    result = tost(test, 0.3)
    reference = ttost_paired(x, np.zeros_like(x), -0.3, 0.3)
    assert result.p == pytest.approx(reference[0]) and result.passes is True
    assert result.ci_low is not None and result.ci_high is not None
    assert -0.3 < result.ci_low < result.ci_high < 0.3
    few = clustered_mean(x[:12])
    assert few.p is not None and few.p > 0.05
    assert tost(few, 0.3).passes is False
    with pytest.raises(ValueError, match="margin"):
        tost(test, 0.0)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 1000), st.floats(0.05, 2))
def test_equivalence_passes_exactly_where_its_interval_lies_within_the_margin(
    seed: int, margin: float
) -> None:
    x, donor, target = crossed(seed, 60, 12, 12, 0.3)
    result = tost(clustered_mean(x, donor=donor, target=target), margin)
    assert result.ci_low is not None and result.ci_high is not None
    assert result.passes == (-margin < result.ci_low and result.ci_high < margin)


def test_trap_31_detectable_effect_is_that_of_statsmodels() -> None:
    for n, sd in ((12, 1.0), (45, 2.0), (300, 2.95)):
        reference = sd * TTestPower().solve_power(nobs=n, alpha=0.05, power=0.8)
        assert minimal_detectable_effect(sd, n) == pytest.approx(reference, rel=1e-5)


def test_trap_31_clusters_make_small_effects_undetectable() -> None:
    n = 300
    donors, targets = [n // 60] * 60, [n // 100] * 100
    plain = minimal_detectable_effect(2.95, n)
    crossed_design = minimal_detectable_effect(2.95, n, icc=(0.3, 0.2), cluster_sizes=(donors, targets))
    assert crossed_design > 1.5 * plain
    uneven = [n - 59] + [1] * 59
    assert minimal_detectable_effect(2.95, n, icc=(0.3,), cluster_sizes=(uneven,)) > crossed_design
    same = minimal_detectable_effect(2.95, n, icc=(0.0,), cluster_sizes=([1] * n,))
    assert same == pytest.approx(plain)
    # A power curve that starts far out: one degree of freedom.
    assert 15 < detectable(1.0, 1) < 18
    with pytest.raises(ValueError, match="icc: expected"):
        minimal_detectable_effect(2.95, n, icc=(1.2,), cluster_sizes=(donors,))
    with pytest.raises(ValueError, match="sum to 300"):
        minimal_detectable_effect(2.95, n, icc=(0.1,), cluster_sizes=([5, 5],))


def test_description_of_a_sample() -> None:
    found = describe([0, 0, 5, 8, 11, math.nan])
    assert (found.n, found.missing, found.median) == (5, 1, 5) and found.mean == pytest.approx(4.8)
    assert found.sd == pytest.approx(np.std([0, 0, 5, 8, 11], ddof=1))
    assert (found.minimum, found.maximum) == (0, 11)
    # The moderate share includes the strong one, as published.
    assert (found.strong, found.moderate, found.none) == (0.4, 0.6, 0.4)
    assert found.note == "1 of 6 values undefined and left out"
    assert describe([]).mean is None and describe([]).note == "no value"
    assert describe([3.0]).sd is None and "no spread" in describe([3.0]).note


def trials(values: dict[str, list[float | None]]) -> pd.DataFrame:
    """Conditions with one trial per item; a value of None is an invalid trial."""
    rows = [
        {
            "stage": "measure",
            "condition": name,
            "item": f"{i:04d}",
            "repeat": 0,
            "donor": f"d{i % 3}",
            "target": f"t{i % 2}",
            "status": "invalid" if value is None else "ok",
            "score": math.nan if value is None else value,
        }
        for name, listed in values.items()
        for i, value in enumerate(listed)
    ]
    return pd.DataFrame(rows)


def test_trap_29_pairing_is_on_shared_items_and_says_what_it_dropped() -> None:
    frame = trials({"a": [1.0, 2.0, None, 4.0, 9.0], "b": [0.0, 0.5, 1.0, math.nan, 2.0]})
    paired = pair(frame.sample(frac=1, random_state=1), "a", "b", "score")
    assert list(paired.difference) == [1.0, 1.5, 7.0]
    first, *others = paired.donors["donor"]
    assert list(paired.donors) == ["donor"] and others == [others[0]] * 2 and first != others[0]
    first, second, third = paired.target
    assert first == third != second
    assert paired.dropped == (
        "1 of 4 trials of a and 1 of 4 trials of b had no valid partner and were left out; 3 pairs remain."
    )
    assert pair(frame, "a", "a", "score").dropped == ""


def test_two_trials_of_one_item_cannot_be_paired() -> None:
    frame = trials({"a": [1.0, 2.0], "b": [0.0, 0.5]})
    with pytest.raises(ValueError, match="a: two valid trials of item 0000, repeat 0"):
        pair(pd.concat([frame, frame]), "a", "b", "score")
    with pytest.raises(KeyError, match="scores"):
        pair(frame, "a", "b", "scores")


def reads(*values: dict[str, Any], prompt: str = "target") -> dict[str, Any]:
    """A condition of a manifest with a write for each value."""
    return {"prompt": prompt, "writes": {f"w{i}": {"value": value} for i, value in enumerate(values)}}


def source(role: str) -> dict[str, Any]:
    return {"kind": "source", "role": role, "draws": 1}


ARMS = {
    "baseline": reads(),
    "own": reads(source("donor")),
    "low": reads(source("low")),
    "high": reads(source("high")),
    "other": reads(source("other_donor")),
}


def with_roles(seed: int, sd: float = 1.5, n: int = 150, few: int = 20) -> pd.DataFrame:
    """A run without any difference between `low` and `high`, nor between `own` and `other`. Donors have a
    level each: of `low` and `high` there are `few`, the other donor of an item is another item's own."""
    rng = np.random.default_rng(seed)
    own, target = rng.integers(60, size=n), rng.integers(90, size=n)
    at = {"donor": own, "other_donor": (own + rng.integers(1, 60, size=n)) % 60}
    at |= {"low": rng.integers(few, size=n), "high": few + rng.integers(few, size=n)}
    levels = {role: rng.normal(0, sd, 60) for role in ("donor", "low", "high")}
    levels["other_donor"] = levels["donor"]
    frames = []
    for name, arm in ARMS.items():
        roles = roles_read(arm)
        score = rng.normal(0, 0.7, 90)[target] + rng.normal(size=n)
        for role in roles:
            score = score + levels[role][at[role]]
        kept = ("donor", *roles)
        frame = pd.DataFrame(
            {
                "stage": "measure",
                "condition": name,
                "item": [f"{i:04d}" for i in range(n)],
                "repeat": 0,
                "donor": [f"d{i}" for i in own],
                "target": [f"t{i}" for i in target],
                "donor_ids": [
                    [(r, [r == "low" or r == "high", int(at[r][i])]) for r in dict.fromkeys(kept)]
                    for i in range(n)
                ],
                "status": "ok",
                "score": score,
            }
        )
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        (reads(), ()),
        (reads(prompt="donor"), ("donor",)),
        (reads(source("l1"), prompt="donor+target"), ("donor", "l1")),
        (reads(source("self"), {"kind": "random", "role": "", "draws": 2}), ()),
        (reads(source("l1"), source("donor"), source("l1")), ("donor", "l1")),
        (reads({"kind": "shuffled_sequence", "role": "other_donor", "draws": 1}), ("other_donor",)),
    ],
)
def test_the_donors_that_a_condition_reads(condition: dict[str, Any], expected: tuple[str, ...]) -> None:
    assert roles_read(condition) == expected


@pytest.mark.parametrize(
    ("first", "second", "dimensions"),
    [
        ("own", "baseline", ["donor"]),
        ("low", "baseline", ["donor:low"]),
        ("own", "low", ["donor", "donor:low"]),
        ("high", "low", ["donor:high", "donor:low"]),
        ("own", "other", ["donor", "other_donor"]),
        ("own", "own", ["donor"]),
        ("baseline", "baseline", ["donor"]),
    ],
)
def test_trap_28_a_difference_is_clustered_by_the_donors_that_were_read(
    first: str, second: str, dimensions: list[str]
) -> None:
    frame = with_roles(0)
    paired = pair(frame, first, second, "score", ARMS)
    assert list(paired.donors) == dimensions
    rows = frame[frame["condition"] == first].set_index("item")
    for name, labels in paired.donors.items():
        role = name.removeprefix("donor:")
        column = rows["donor_ids"].map(lambda ids, role=role: dict(ids).get(role))
        if column.notna().all():
            assert labels.nunique() == column.map(tuple).nunique()
    clusters = paired.test().clusters
    assert list(clusters) == [*dimensions, "target"] and paired.test().df in (
        None,
        min(clusters.values()) - 1,
    )


def test_a_donor_of_another_item_has_the_name_that_it_has_there() -> None:
    frame = with_roles(1)
    rows = frame[frame["condition"] == "other"]
    labels = donor_labels(rows, "other_donor")
    tokens = {name: dict(ids)["donor"] for name, ids in zip(rows["donor"], rows["donor_ids"], strict=True)}
    told = [name for name in labels if isinstance(name, str)]
    assert len(told) > 100 and set(told) <= set(tokens)
    for name, ids in zip(labels, rows["donor_ids"], strict=True):
        assert dict(ids)["other_donor"] == tokens[name] if name in tokens else isinstance(name, tuple)


def test_without_role_donors_the_test_is_that_by_the_items_own_donor_and_target() -> None:
    frame = with_roles(2)
    plain = frame.drop(columns="donor_ids")
    for trials, first in (
        (frame, "own"),
        (frame, "baseline"),
        (plain, "own"),
        (plain, "low"),
        (plain, "other"),
    ):
        for second in ("own", "baseline"):
            paired = pair(trials, first, second, "score", ARMS)
            rows = frame[frame["condition"] == first]
            own, target = rows["donor"].tolist(), rows["target"].tolist()
            assert paired.test() == clustered_mean(paired.difference, donor=own, target=target)


def test_without_conditions_every_recorded_donor_counts() -> None:
    frame = with_roles(3)
    assert list(pair(frame, "low", "baseline", "score").donors) == ["donor", "donor:low"]
    assert list(pair(frame, "own", "baseline", "score").donors) == ["donor"]


def test_trap_28_donors_in_a_role_that_recur_make_the_interval_honest() -> None:
    """No true difference: `role` has two arms with 20 donors each, `base` one against no donor, and in
    `other` the second arm reads the own donor of another item, whose level cancels in part."""
    runs, n = 250, 150
    held: Counter[tuple[str, str]] = Counter()
    width: Counter[tuple[str, str]] = Counter()
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        own, target = rng.integers(60, size=n), rng.integers(90, size=n)
        a, b, others = rng.integers(20, size=n), rng.integers(20, size=n), (own + rng.integers(1, 60, n)) % 60
        level = rng.normal(0, 1.5, (3, 60))
        rest = rng.normal(0, 0.7, 90)[target] + rng.normal(0, 1.4, n)
        cases: dict[str, tuple[np.ndarray, dict[str, Any]]] = {
            "role": (level[0][a] - level[1][b] + rest, {"donor:a": a, "donor:b": [f"b{i}" for i in b]}),
            "base": (level[0][a] + rest, {"donor:a": a}),
            "other": (level[2][own] - level[2][others] + rest, {"donor": own, "other_donor": others}),
        }
        for name, (x, read) in cases.items():
            for by, donor in (("read", read), ("own", own)):
                test = clustered_mean(x, donor=donor, target=target)
                assert test.ci_low is not None and test.ci_high is not None
                held[name, by] += test.ci_low < 0 < test.ci_high
                width[name, by] += test.ci_high - test.ci_low
    for name in ("role", "base"):
        assert held[name, "own"] / runs < 0.8 and 0.91 < held[name, "read"] / runs < 0.99
    assert 0.91 < held["other", "read"] / runs < 0.99
    assert width["other", "read"] < 0.9 * width["other", "own"]


def test_three_way_variance_is_inclusion_and_exclusion_of_those_of_statsmodels() -> None:
    rng = np.random.default_rng(11)
    labels = {name: rng.integers(g, size=90) for name, g in (("a", 8), ("b", 11), ("target", 14))}
    x = rng.normal(size=90) + sum(rng.normal(size=20)[given] for given in labels.values())
    model = sm.OLS(x, np.ones(90)).fit()
    expected = 0.0
    for size in (1, 2, 3):
        for chosen in combinations(labels.values(), size):
            joint = pd.factorize(pd.Series(list(zip(*chosen, strict=True)), dtype=object))[0]
            expected -= (-1) ** size * float(cov_cluster(model, joint)[0, 0])
    donors = {name: [f"{name}{i}" for i in labels[name]] for name in ("a", "b")}
    result = clustered_mean(x, donor=donors, target=labels["target"])
    assert result.se == pytest.approx(expected**0.5, rel=1e-12)
    assert result.df == 7 and result.clusters == {"a": 8, "b": 11, "target": 14}
    assert result.method == "three-way clustered (a x b x target)"
    assert result.effective_n == pytest.approx(min(90, x.var(ddof=1) / expected))


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000))
def test_a_donor_in_two_dimensions_adds_the_covariance_of_those_that_share_it(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, level = 40, rng.normal(0, 1.5, 12)
    first, second, target = (rng.integers(g, size=n) for g in (12, 12, 15))
    x = level[first] - level[second] + rng.normal(size=n)
    apart = clustered_mean(x, donor={"a": first, "b": 100 + second}, target=target)
    shared = clustered_mean(x, donor={"a": first, "b": second}, target=target)
    u = x - x.mean()
    across = 0.0
    for i in range(n):
        for j in range(n):
            same = first[i] == first[j] or second[i] == second[j] or target[i] == target[j]
            if not same and (first[i] == second[j] or second[i] == first[j]):
                across += u[i] * u[j] / n**2
    assert apart.se is not None and shared.se is not None
    if "not positive" not in apart.note:
        lowest = min(apart.se**2, x.var(ddof=1) / n)
        assert shared.se**2 == pytest.approx(max(apart.se**2 + across, lowest))
    assert shared.df == apart.df and list(shared.clusters) == ["a", "b", "target"]
    turned = clustered_mean(x, donor={"b": second, "a": first}, target=target)
    # Repeats of the same items bring no further donors, so that they widen nothing.
    twice = clustered_mean(
        np.tile(x, 2), donor={"a": np.tile(first, 2), "b": np.tile(second, 2)}, target=np.tile(target, 2)
    )
    assert turned.se == pytest.approx(shared.se)
    assert twice.se is not None and twice.se <= shared.se * (1 + 1e-9)


def test_a_dimension_that_says_the_same_changes_nothing() -> None:
    x, donor, target = crossed(12, 80, 10, 14, 0.7)
    plain = clustered_mean(x, donor=donor, target=target)
    assert clustered_mean(x, donor={"donor": donor, "donor:same": donor}, target=target) == plain
    renamed = clustered_mean(x, donor={"donor": donor, "donor:twin": [f"p{i}" for i in donor]}, target=target)
    assert renamed.se == pytest.approx(plain.se) and renamed.df == plain.df


def test_a_contrast_names_the_donors_of_a_role() -> None:
    manifest = {
        "conditions": ARMS,
        "contrasts": {"family": "none", "primary": "score", "extra": [["high", "low"], ["own", "other"]]},
    }
    frame = with_roles(4)
    roles, other = contrasts(frame, manifest)
    targets = frame["target"].nunique()
    assert f"20 donors of high x 20 donors of low x {targets} targets, effective n " in roles.sentence
    assert roles.test is not None and roles.test.df == 19
    assert other.test is not None
    assert f"donors x {other.test.clusters['other_donor']} other_donors x " in other.sentence
    assert in_words({"donor": 1, "donor:l1": 1, "target": 1200}) == "1 donor x 1 donor of l1 x 1,200 targets"


def test_a_result_is_frozen() -> None:
    result = clustered_mean([1.0, 2.0, 4.0])
    assert isinstance(result, ClusteredMean)
    with pytest.raises(AttributeError):
        result.p = 0.0  # type: ignore[misc]
