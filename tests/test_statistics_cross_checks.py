"""The cross-checks of a clustered mean: signed ranks, sign flips, bootstrap, mixed model and bounds, each
against an independent implementation or the definition written out."""

from __future__ import annotations

from itertools import product

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from analyses.statistics.bootstrap import two_way
from analyses.statistics.bounds import invalid_bounds
from analyses.statistics.clusters import clustered_mean
from analyses.statistics.mixed import crossed
from analyses.statistics.permutation import sign_flip
from analyses.statistics.ranks import wilcoxon
from analyses.statistics.t_tests import paired_t

Array = np.ndarray
# Depression scores of nine patients at a first and a second visit: Hollander and Wolfe (1999), table 3.1.
FIRST = [1.83, 0.50, 1.62, 2.48, 1.68, 1.88, 1.55, 3.06, 1.30]
SECOND = [0.878, 0.647, 0.598, 2.05, 1.06, 1.29, 1.06, 3.14, 1.29]


def nested(seed: int, n: int = 90, donors: int = 9, targets: int = 13) -> tuple[Array, Array, Array]:
    """n values with levels of donors and targets, mean about 0.3."""
    rng = np.random.default_rng(seed)
    donor, target = rng.integers(donors, size=n), rng.integers(targets, size=n)
    x = 0.3 + rng.normal(0, 0.7, donors)[donor] + rng.normal(0, 0.5, targets)[target] + rng.normal(size=n)
    return x, donor, target


def test_signed_ranks_are_those_of_a_published_example() -> None:
    found = wilcoxon(np.subtract(FIRST, SECOND))
    assert (found.n, found.nonzero, found.statistic) == (9, 9, 40)
    assert found.p == pytest.approx(0.0390625)
    assert found.estimate == pytest.approx(0.46)
    gaps = np.subtract(FIRST, SECOND)
    means = sorted((gaps[i] + gaps[j]) / 2 for i in range(9) for j in range(i, 9))
    # The sixth of the 45 means from either end: P(W <= 5) is below 0.025 and P(W <= 6) is not.
    assert (found.ci_low, found.ci_high) == pytest.approx((means[5], means[-6]))
    assert found.rank_biserial == pytest.approx((40 - 5) / 45)


def test_signed_ranks_are_those_of_scipy_with_ties_and_zeros() -> None:
    x = np.random.default_rng(1).integers(-3, 6, 80).astype(float)
    found = wilcoxon(x)
    assert found.p == pytest.approx(stats.wilcoxon(x).pvalue)
    assert found.nonzero == (x != 0).sum() < found.n == 80
    few = x[x != 0][:9]
    exact = stats.wilcoxon(few, method=stats.PermutationMethod(n_resamples=10_000))
    assert wilcoxon(few).p == pytest.approx(exact.pvalue)
    without_ties = few + np.arange(9) / 100
    assert wilcoxon(without_ties).p == pytest.approx(stats.wilcoxon(without_ties, method="exact").pvalue)
    # Equal but for rounding is equal.
    assert wilcoxon(x * 0.1 + 0.7 - 0.7).p == pytest.approx(found.p)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000), st.integers(6, 60), st.floats(-20, 20))
def test_the_rank_estimate_moves_with_the_values_and_turns_with_their_sign(
    seed: int, n: int, shift: float
) -> None:
    x = np.random.default_rng(seed).normal(0.4, 1, n)
    found, moved, turned = wilcoxon(x), wilcoxon(x + shift), wilcoxon(-x)
    assert found.estimate is not None and found.ci_low is not None and found.ci_high is not None
    assert found.ci_low <= found.estimate <= found.ci_high
    assert moved.estimate == pytest.approx(found.estimate + shift)
    assert (moved.ci_low, moved.ci_high) == pytest.approx((found.ci_low + shift, found.ci_high + shift))
    assert turned.p == pytest.approx(found.p) and turned.estimate == pytest.approx(-found.estimate)
    assert (turned.ci_low, turned.ci_high) == pytest.approx((-found.ci_high, -found.ci_low))


def test_signed_ranks_of_many_and_of_few_pairs_say_what_is_missing() -> None:
    x = np.random.default_rng(2).normal(0.2, 1, 4_000)
    many, few = wilcoxon(x), wilcoxon([0.3, 1.0, -0.2, 0.9])
    assert many.estimate == pytest.approx(0.2, abs=0.05) and many.ci_low is None
    assert "no interval" in many.note and "too few pairs for an interval of 95%" in few.note


def test_sign_flips_are_those_of_scipy() -> None:
    x = np.random.default_rng(3).normal(0.5, 1, 9)
    found = sign_flip(x)
    reference = stats.permutation_test((x,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert found.exact and found.draws == 2**9 and found.p == pytest.approx(reference.pvalue)
    assert found.least_p == 2 / 2**9 and found.estimate == pytest.approx(x.mean())


def test_sign_flips_of_clusters_go_through_every_pattern() -> None:
    x, donor, _ = nested(14, donors=8)
    found = sign_flip(x, donor)
    means = [abs(np.mean(x * np.array(signs)[donor])) for signs in product((1, -1), repeat=8)]
    expected = np.mean([mean >= abs(x.mean()) * (1 - 1e-9) for mean in means])
    assert found.units == 8 and found.p == pytest.approx(expected)
    # As few as they are, the units say less than the values do.
    alone = sign_flip(x)
    assert alone.p is not None and found.p is not None and alone.p < found.p


def test_trap_28_sign_flips_with_two_ways_compare_clustered_ts() -> None:
    x, donor, target = nested(5, donors=7)
    labels = {"donor": donor, "target": target}
    found = sign_flip(x, labels)
    ts = [
        clustered_mean(x * np.array(signs)[donor], donor=donor, target=target).t
        for signs in product((1, -1), repeat=7)
    ]
    observed = clustered_mean(x, donor=donor, target=target).t
    assert observed is not None
    expected = np.mean([abs(t or 0) >= abs(observed) * (1 - 1e-9) for t in ts])
    assert found.exact and found.p == pytest.approx(expected)
    assert found.method == "signs flip by donor, studentised by donor x target"
    third = {"donor": donor, "donor:role": (donor * 5 + target) % 11, "target": target}
    of_three = [
        clustered_mean(
            x * np.array(signs)[donor],
            donor={"donor": donor, "donor:role": [f"r{i}" for i in third["donor:role"]]},
            target=target,
        ).t
        for signs in product((1, -1), repeat=7)
    ]
    bar = abs(of_three[0] or 0) * (1 - 1e-9)
    assert sign_flip(x, third).p == pytest.approx(np.mean([abs(t or 0) >= bar for t in of_three]))


@pytest.mark.parametrize("units", [40, 6_000])
def test_drawn_sign_flips_and_their_normal_limit_agree_with_the_t_test(units: int) -> None:
    x = np.random.default_rng(units).normal(1.5 / units**0.5, 1, units)
    found, naive = sign_flip(x, seed=1), paired_t(x)
    assert found.p == pytest.approx(naive.p, abs=0.02) and not found.exact
    assert found.draws == (10_000 if units == 40 else 0)
    assert sign_flip(x, seed=1) == found
    if units == 40:
        assert sign_flip(x, seed=2).p != found.p


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000))
def test_sign_flips_do_not_mind_signs_units_or_names(seed: int) -> None:
    x, donor, target = nested(seed, n=30, donors=6, targets=8)
    order = np.random.default_rng(seed).permutation(len(x))
    for labels in (None, {"donor": donor}, {"donor": donor, "target": target}):
        found = sign_flip(x, labels, draws=500)
        assert sign_flip(-x, labels, draws=500).p == found.p
        assert sign_flip(3 * x, labels, draws=500).p == pytest.approx(found.p, abs=1e-12)
        if labels is not None:
            moved = {name: [f"{name}{i}" for i in each[order]] for name, each in labels.items()}
            assert sign_flip(x[order], moved, draws=500).p == pytest.approx(found.p)


def copied(x: Array, labels: dict[str, Array], draws: int, seed: int) -> list[float]:
    """The bootstrap written out: every value copied, each copy of a cluster a cluster of its own."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(draws):
        times = {
            name: np.bincount(rng.integers(each.max() + 1, size=each.max() + 1), minlength=each.max() + 1)
            for name, each in labels.items()
        }
        rows = [
            (value - x.mean(), *copies)
            for value, *codes in zip(x, *labels.values(), strict=True)
            for copies in product(
                *([(c, i) for i in range(times[name][c])] for name, c in zip(labels, codes, strict=True))
            )
        ]
        if len(rows) < 3:
            continue
        values, *clusters = zip(*rows, strict=True)
        named = dict(zip(labels, clusters, strict=True))
        target = named.pop("target")
        # Names apart, so that no cluster stands in two dimensions.
        donors = {name: [(name, c) for c in each] for name, each in named.items()}
        t = clustered_mean(values, donor=donors, target=target).t
        found += [] if t is None else [t]
    return found


@pytest.mark.parametrize("three", [False, True])
def test_the_bootstrap_is_that_of_copied_clusters(three: bool) -> None:
    x, donor, target = nested(6, n=48, donors=12, targets=14)
    third = {"donor:role": np.random.default_rng(1).integers(10, size=48)} if three else {}
    labels = {"donor": donor, **third, "target": target}
    labels = {name: pd.factorize(each)[0] for name, each in labels.items()}
    donors = {name: each for name, each in labels.items() if name != "target"}
    ts = copied(x, labels, draws=800, seed=2)
    found = two_way(x, donors, target, draws=4_000, seed=3)
    named = {name: [f"{name}{i}" for i in each] for name, each in donors.items()}
    se = clustered_mean(x, donor=named, target=target).se
    assert se is not None and found.ci_low is not None and found.ci_high is not None
    for end, tail in ((found.ci_low, 0.975), (found.ci_high, 0.025)):
        t = (x.mean() - end) / se
        # The share of the copies' t beyond it is 0.025, but for its Monte Carlo error (0.0045 and 0.0025).
        assert np.mean(np.array(ts) < t) == pytest.approx(tail, abs=0.02)


def test_the_bootstrap_agrees_with_the_clustered_interval_where_clusters_are_many() -> None:
    x, donor, target = nested(7, n=900, donors=150, targets=200)
    found, clustered = two_way(x, {"donor": donor}, target), clustered_mean(x, donor=donor, target=target)
    assert found.estimate == clustered.mean and found.clusters == clustered.clusters
    assert clustered.se is not None and found.se is not None
    assert found.ci_low == pytest.approx(clustered.ci_low, abs=0.25 * clustered.se)
    assert found.ci_high == pytest.approx(clustered.ci_high, abs=0.25 * clustered.se)
    # The resampled means count the noise of single values three times.
    assert found.se > 1.1 * clustered.se
    assert two_way(x, {"donor": donor}, target) == found
    one = two_way(x, {"donor": donor}, None)
    assert one.method == "studentised bootstrap of donor" and one.p is not None
    assert two_way(x, None, None).method == "studentised bootstrap of value"


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 10_000), st.floats(-9, 9))
def test_the_bootstrap_moves_with_its_values(seed: int, shift: float) -> None:
    x, donor, target = nested(seed, n=40)
    found = two_way(x, {"donor": donor}, target, draws=300)
    moved = two_way(x + shift, {"donor": donor}, target, draws=300)
    assert found.ci_low is not None and found.ci_high is not None and found.p is not None
    ends = (found.ci_low + shift, found.ci_high + shift)
    assert (moved.ci_low, moved.ci_high) == pytest.approx(ends, abs=1e-9)
    assert (found.p < 0.05) == (found.ci_low > 0 or found.ci_high < 0) or abs(found.p - 0.05) < 0.01


def test_the_mixed_model_is_that_of_statsmodels() -> None:
    x, donor, target = nested(8, n=200, donors=15, targets=25)
    found = crossed(x, {"donor": donor}, target)
    frame = pd.DataFrame({"y": x, "d": donor, "t": target, "all": 1})
    reference = sm.MixedLM.from_formula(
        "y ~ 1", groups="all", re_formula="0", vc_formula={"d": "0 + C(d)", "t": "0 + C(t)"}, data=frame
    ).fit(reml=True)
    assert found.components is not None and found.shares is not None and found.residual is not None
    assert found.estimate == pytest.approx(reference.params["Intercept"], abs=1e-4)
    assert found.se == pytest.approx(reference.bse["Intercept"], rel=1e-3)
    assert [found.components[name] for name in ("donor", "target")] == pytest.approx(
        reference.vcomp, rel=5e-3
    )
    assert found.residual == pytest.approx(reference.scale, rel=2e-3)
    whole = sum(found.components.values()) + found.residual
    assert found.shares["donor"] == pytest.approx(found.components["donor"] / whole)


def test_a_balanced_mixed_model_is_the_analysis_of_variance() -> None:
    rng = np.random.default_rng(9)
    donor = np.repeat(np.arange(12), 5)
    x = 0.4 + rng.normal(0, 1, 12)[donor] + rng.normal(size=60)
    found = crossed(x, {"donor": donor}, None)
    reference = stats.ttest_1samp(x.reshape(12, 5).mean(axis=1), 0)
    between = 5 * x.reshape(12, 5).mean(axis=1).var(ddof=1)
    within = x.reshape(12, 5).var(axis=1, ddof=1).mean()
    assert found.t == pytest.approx(reference.statistic, rel=1e-4)
    assert found.df == pytest.approx(11, rel=1e-3) and found.p == pytest.approx(reference.pvalue, rel=1e-3)
    assert found.components is not None
    assert found.components["donor"] == pytest.approx((between - within) / 5, rel=1e-3)
    assert found.residual == pytest.approx(within, rel=1e-3)


def test_without_variance_between_clusters_the_mixed_model_is_the_t_test() -> None:
    rng = np.random.default_rng(10)
    x = rng.normal(0.3, 1, 60)
    donor = np.tile(np.arange(10), 6)
    # Every donor with the same mean: less variance between donors than chance gives.
    x = x - np.array([x[donor == d].mean() for d in range(10)])[donor] + x.mean()
    found, naive = crossed(x, {"donor": donor}, None), paired_t(x)
    assert found.components == {"donor": 0.0} and "no variance is left between the donors" in found.note
    assert found.se == pytest.approx(naive.sd / 60**0.5 if naive.sd else None)
    assert found.df == pytest.approx(59, rel=1e-3) and found.p == pytest.approx(naive.p, rel=1e-3)


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 10_000), st.floats(-9, 9), st.sampled_from([1e-3, 1.0, 250.0]))
def test_the_mixed_model_moves_and_stretches_with_its_values(seed: int, shift: float, factor: float) -> None:
    x, donor, target = nested(seed, n=70)
    order = np.random.default_rng(seed).permutation(len(x))
    found = crossed(x, {"donor": donor}, target)
    moved = crossed(factor * x[order] + shift, {"donor": target[order]}, donor[order])
    assert found.estimate is not None and found.se is not None
    assert moved.estimate == pytest.approx(factor * found.estimate + shift, rel=1e-3, abs=1e-4 * factor)
    assert moved.se == pytest.approx(factor * found.se, rel=2e-3)


def test_a_mixed_model_is_left_out_with_a_sentence() -> None:
    x, donor, target = nested(11)
    assert "90 values: a mixed model is made for 50 at most" in crossed(x, {"donor": donor}, target, 50).note
    assert crossed(x, {"donor": donor}, target, 50).p is None
    assert "fewer than 3 clusters (donor)" in crossed(x, {"donor": donor % 2}, target).note
    own = crossed(x, {"donor": np.arange(90)}, target)
    assert "every value has its own donor: part of the residual" in own.note and own.p is not None
    assert own.se == pytest.approx(crossed(x, None, target).se)
    assert "no dimension has clusters" in crossed(x, {"donor": np.arange(90)}, None).note
    exact = crossed(np.random.default_rng(1).normal(size=12)[donor], {"donor": donor}, None)
    assert exact.p is None and "no variance is left within" in exact.note
    wide = np.arange(4_000)
    values = np.random.default_rng(1).normal(size=4_000)
    assert "too many for a mixed model" in crossed(values, {"donor": wide // 2}, wide // 2 % 1_999).note


def test_trap_35_bounds_hold_whatever_the_invalid_values_are() -> None:
    rng = np.random.default_rng(12)
    first, second = rng.normal(1, 1, 40), rng.normal(0, 1, 40)
    donor, target = np.arange(40) % 9, np.arange(40) % 7
    holes_first, holes_second = [3, 8, 21], [8, 30]
    first[holes_first], second[holes_second] = np.nan, np.nan
    found = invalid_bounds(first, second, {"donor": donor}, target)
    assert (found.invalid, found.n) == (5, 40) and found.estimate.n == 36
    assert found.low is not None and found.high is not None
    assert found.low.mean is not None and found.high.mean is not None
    assert found.least is not None and found.greatest is not None
    seen = np.concatenate([first, second])
    assert (found.least, found.greatest) == (np.nanmin(seen), np.nanmax(seen))
    for _ in range(50):
        a, b = first.copy(), second.copy()
        a[holes_first] = rng.uniform(found.least, found.greatest, 3)
        b[holes_second] = rng.uniform(found.least, found.greatest, 2)
        assert found.low.mean <= np.mean(a - b) <= found.high.mean
    a, b = first.copy(), second.copy()
    a[holes_first], b[holes_second] = found.least, found.greatest
    assert found.low == clustered_mean(a - b, donor=donor, target=target)


def test_trap_35_bounds_say_whether_the_verdict_survives() -> None:
    rng = np.random.default_rng(13)
    first, second = rng.normal(3, 1, 60), rng.normal(0, 1, 60)
    one = first.copy()
    one[0] = np.nan
    sure = invalid_bounds(one, second)
    assert sure.sign_survives is True and sure.verdict_survives is True
    several, many = first.copy(), first.copy()
    several[:30], many[:45] = np.nan, np.nan
    assert invalid_bounds(several, second).sign_survives is True
    for unsure in (invalid_bounds(several, second), invalid_bounds(many, second)):
        assert unsure.estimate.p is not None and unsure.estimate.p < 1e-6
        assert unsure.verdict_survives is False
    assert invalid_bounds(many, second).sign_survives is False
    none = invalid_bounds(first, second)
    assert none.low is None and "every pair is complete" in none.note
    assert none.estimate == clustered_mean(first - second)
    nothing = invalid_bounds([np.nan] * 4, [1.0, 0.0, 1.0, 1.0])
    assert nothing.sign_survives is None and "no pair is complete" in nothing.note
    share = invalid_bounds([1, 1, 1, np.nan], [0, 1, 1, 1], limits=(0, 1))
    assert share.low is not None and share.high is not None
    assert (share.low.mean, share.high.mean) == (0.0, 0.25)
    with pytest.raises(ValueError, match=r"limits: expected values in 0\.\.1, got 0\.\.3"):
        invalid_bounds([3.0, np.nan], [0.0, 1.0], limits=(0, 1))
    with pytest.raises(ValueError, match="expected pairs, got 2 and 3"):
        invalid_bounds([1.0, 2.0], [1.0, 2.0, 3.0])
