"""Shares, correlations, corrections, effect sizes and sample sizes against scipy, statsmodels and closed
forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar as mcnemar_of_statsmodels
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower
from statsmodels.stats.proportion import proportion_confint

from analyses.statistics.clusters import clustered_mean
from analyses.statistics.corrections import benjamini_hochberg, bonferroni, holm
from analyses.statistics.correlation import clustered_products, least_significant, pearson, spearman
from analyses.statistics.equivalence import suggested_margin, tost
from analyses.statistics.power import design_effect, minimal_detectable_effect, required_n
from analyses.statistics.proportions import fisher, mcnemar, newcombe, wilson
from analyses.statistics.t_tests import cohens_d, cohens_d_pooled, unpaired_t


def test_pearson_is_that_of_scipy_with_the_interval_of_fisher() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=45)
    y = 0.5 * x + rng.normal(size=45)
    found, reference = pearson(x, y), stats.pearsonr(x, y)
    assert (found.r, found.p) == pytest.approx((reference.statistic, reference.pvalue))
    interval = reference.confidence_interval(0.95)
    assert (found.ci_low, found.ci_high) == pytest.approx((interval.low, interval.high))
    assert found.n == found.effective_n == 45
    wider = pearson(x, y, effective_n=12)
    assert wider.r == found.r and wider.p is not None and wider.p > (found.p or 1)
    assert wider.ci_low == pytest.approx(math.tanh(math.atanh(found.r or 0) - 1.959964 / 3))
    assert "by an effective n of 12" in wider.method


def test_spearman_is_that_of_scipy_and_knows_ranks_only() -> None:
    rng = np.random.default_rng(2)
    x = rng.integers(0, 9, 60).astype(float)
    y = x + rng.integers(0, 6, 60)
    found, reference = spearman(x, y), stats.spearmanr(x, y)
    assert (found.r, found.p) == pytest.approx((reference.statistic, reference.pvalue))
    assert spearman(np.exp(x), y**3).r == pytest.approx(found.r)
    assert found.r is not None
    half = 1.959964 * ((1 + found.r**2 / 2) / 57) ** 0.5
    assert found.ci_low == pytest.approx(math.tanh(math.atanh(found.r) - half))


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000), st.floats(0.01, 100), st.floats(-100, 100))
def test_a_correlation_does_not_mind_units_nor_order(seed: int, factor: float, shift: float) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=20)
    y = x + rng.normal(size=20)
    order = rng.permutation(20)
    found, other = pearson(x, y), pearson(factor * y[order] + shift, x[order])
    assert other.r == pytest.approx(found.r) and other.ci_low == pytest.approx(found.ci_low)
    turned = pearson(x, -y)
    assert turned.r == pytest.approx(-(found.r or 0)) and turned.p == pytest.approx(found.p)


def test_trap_28_a_correlation_of_few_clusters_has_an_effective_n() -> None:
    rng = np.random.default_rng(19)
    donor = np.repeat(np.arange(10), 12)
    x, y = rng.normal(size=10)[donor], rng.normal(size=10)[donor]
    many = clustered_mean(clustered_products(x, y), donor=donor).effective_n
    assert many == pytest.approx(10, rel=0.15)
    naive, honest = pearson(x, y), pearson(x, y, effective_n=many)
    # Columns that have nothing to do with each other, but a level for each of ten donors.
    assert naive.p is not None and honest.p is not None and naive.p < 0.01 < 0.2 < honest.p
    assert clustered_products(x, y).mean() == pytest.approx(naive.r)


def test_trap_31_a_criterion_on_three_points_can_hardly_be_met() -> None:
    assert least_significant(3) == pytest.approx(0.9969, abs=1e-4)
    assert least_significant(2) is None
    for n in (5, 30, 300):
        bar = least_significant(n, 0.01)
        assert bar is not None
        t = bar * ((n - 2) / (1 - bar**2)) ** 0.5
        assert 2 * stats.t.sf(t, n - 2) == pytest.approx(0.01)
    found = pearson([1.0, 2.0, 3.0], [1.0, 2.1, 2.8])
    assert found.r is not None and found.r > 0.7 and found.p is not None and found.p > 0.05
    assert found.ci_low is None and "an interval needs 4 pairs" in found.note


def test_exact_correlations_and_columns_without_spread() -> None:
    line = pearson([1.0, 2.0, 3.0, 4.0], [2.0, 4.0, 6.0, 8.0])
    assert line.r == pytest.approx(1) and line.ci_low is None and "on one line" in line.note
    flat = pearson([1.0, 1.0, 1.0, 1.0], [2.0, 4.0, 6.0, 8.0])
    assert flat.r is None and "values of one column are equal" in flat.note
    dropped = pearson([1.0, 2.0, math.nan, 4.0, 5.0], [2.0, math.nan, 6.0, 8.0, 1.0])
    assert dropped.n == 3 and "2 of 5 pairs undefined and left out" in dropped.note
    with pytest.raises(ValueError, match="got 2 and 3"):
        pearson([1.0, 2.0], [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="effective_n: expected 3 to 4, got 9"):
        pearson([1.0, 2.0, 3.0, 4.0], [2.0, 4.0, 6.0, 9.0], effective_n=9)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.none() | st.floats(0, 1), min_size=1, max_size=12))
def test_corrections_keep_the_declared_family(p: list[float | None]) -> None:
    filled = [1.0 if each is None else each for each in p]
    for correct in (holm, bonferroni, benjamini_hochberg):
        # A test that could not be made counts as one that found nothing.
        found, whole = correct(p), correct(filled)
        assert found == [None if each is None else whole[i] for i, each in enumerate(p)]
        assert all(
            each is None or before is None or before <= each for before, each in zip(p, found, strict=True)
        )
    reference = multipletests(filled, method="fdr_bh")[1]
    assert benjamini_hochberg(filled) == pytest.approx(reference.tolist())
    assert bonferroni(filled) == pytest.approx([min(1.0, len(p) * each) for each in filled])
    for by_bh, by_holm, by_bonferroni in zip(
        *(f(filled) for f in (benjamini_hochberg, holm, bonferroni)), strict=True
    ):
        assert by_bh is not None and by_holm is not None and by_bonferroni is not None
        assert by_bh <= by_holm + 1e-12 and by_holm <= by_bonferroni + 1e-12


@pytest.mark.parametrize("seed", range(6))
def test_corrections_are_those_of_statsmodels(seed: int) -> None:
    p = (np.random.default_rng(seed).uniform(size=2 + seed) ** 3).tolist()
    for correct, name in ((holm, "holm"), (bonferroni, "bonferroni"), (benjamini_hochberg, "fdr_bh")):
        assert correct(p) == pytest.approx(multipletests(p, method=name)[1].tolist())
        with pytest.raises(ValueError, match=r"0\.\.1"):
            correct([0.5, 1.5])
        with pytest.raises(ValueError, match=r"0\.\.1"):
            correct([math.nan])


def test_fisher_is_the_lady_tasting_tea() -> None:
    found = fisher(3, 4, 1, 4)
    assert found.p == pytest.approx(34 / 70) and found.odds_ratio == 9 and found.difference == 0.5
    for table in ((12, 40, 25, 38), (0, 9, 4, 11), (5, 5, 5, 5)):
        a, n, c, m = table
        assert fisher(*table).p == pytest.approx(stats.fisher_exact([[a, n - a], [c, m - c]])[1])
    assert fisher(5, 5, 1, 4).odds_ratio is None and "division by 0" in fisher(5, 5, 1, 4).note
    assert fisher(0, 0, 1, 4).p is None and "without a trial" in fisher(0, 0, 1, 4).note
    with pytest.raises(ValueError, match="got 6 of 5"):
        fisher(6, 5, 0, 3)


def test_mcnemar_is_that_of_statsmodels() -> None:
    rng = np.random.default_rng(4)
    first, second = (rng.random(80) < 0.4).astype(float), (rng.random(80) < 0.6).astype(float)
    table = [[int(((first == a) & (second == b)).sum()) for b in (1, 0)] for a in (1, 0)]
    assert mcnemar(first, second) == pytest.approx(mcnemar_of_statsmodels(table, exact=True).pvalue)
    assert mcnemar(first, first) == 1.0 and mcnemar(np.empty(0), np.empty(0)) == 1.0
    for wrong in ([0.0, math.nan], [0.0, 2.0]):
        with pytest.raises(ValueError, match="0 or 1"):
            mcnemar(np.array(wrong), np.array([0.0, 1.0]))
        with pytest.raises(ValueError, match="0 or 1"):
            newcombe(np.array([0.0, 1.0]), np.array(wrong), 2)
    with pytest.raises(ValueError, match="got 2 and 3"):
        mcnemar(np.zeros(2), np.zeros(3))


@pytest.mark.parametrize(("ones", "n"), [(0, 10), (3, 17), (17, 17), (150, 300), (2, 7.5)])
def test_wilson_is_that_of_statsmodels(ones: float, n: float) -> None:
    for confidence in (0.9, 0.95):
        reference = proportion_confint(ones, n, alpha=1 - confidence, method="wilson")
        assert wilson(ones / n, n, confidence) == pytest.approx(reference, abs=1e-12)


def test_trap_29_effect_sizes_of_paired_and_of_pooled_spread_are_named_apart() -> None:
    rng = np.random.default_rng(5)
    level = rng.normal(0, 3, 50)
    first, second = level + rng.normal(0.5, 1, 50), level + rng.normal(0, 1, 50)
    paired, pooled = cohens_d(first - second, ddof=1), cohens_d_pooled(first, second, ddof=1)
    sd = ((first.var(ddof=1) + second.var(ddof=1)) / 2) ** 0.5
    assert pooled == pytest.approx((first.mean() - second.mean()) / sd)
    # What the items have in common is in the pooled spread and not in that of the differences.
    assert paired is not None and pooled is not None and paired > 1.5 * pooled
    assert pooled == pytest.approx(unpaired_t(first, second, pooled=True).d_ddof1)
    assert cohens_d_pooled(first, second, ddof=0) == pytest.approx(
        unpaired_t(first, second, pooled=True).d_ddof0
    )
    assert cohens_d_pooled([1.0], second, ddof=1) is None
    assert cohens_d_pooled([2.0, 2.0], [1.0, 1.0], ddof=1) is None
    assert cohens_d_pooled([2.0, math.nan], [1.0, 3.0], ddof=1) is None


def test_trap_32_a_suggested_margin_is_a_third_of_a_known_effect() -> None:
    assert suggested_margin(-4.2) == pytest.approx(1.4) and suggested_margin(0.9) == pytest.approx(0.3)
    for nothing in (None, 0.0, math.nan, math.inf):
        assert suggested_margin(nothing) is None
    # No margin, no claim: the test has no default.
    with pytest.raises(TypeError):
        tost(clustered_mean([1.0, 2.0, 4.0]))  # type: ignore[call-arg]


@pytest.mark.parametrize(("effect", "sd"), [(0.5, 1.0), (-0.3, 1.0), (0.6, 2.95), (4.0, 1.0)])
def test_trap_31_the_number_needed_is_that_of_statsmodels(effect: float, sd: float) -> None:
    reference = TTestPower().solve_power(effect_size=abs(effect) / sd, alpha=0.05, power=0.8)
    assert required_n(effect, sd) == max(3, math.ceil(reference - 1e-6))


def test_trap_31_the_number_needed_finds_the_effect_and_one_less_does_not() -> None:
    n = required_n(0.4, 1.0, alpha=0.01, power=0.9)
    assert minimal_detectable_effect(1.0, n, alpha=0.01, power=0.9) <= 0.4
    assert minimal_detectable_effect(1.0, n - 1, alpha=0.01, power=0.9) > 0.4
    clustered = required_n(0.4, 1.0, icc=(0.1, 0.1), per_cluster=(5, 3))
    assert clustered > 1.5 * required_n(0.4, 1.0)
    assert required_n(0.4, 1.0, icc=(0.0,), per_cluster=(1,)) == required_n(0.4, 1.0)
    # Sixty pairs, five to a donor and three to a target.
    assert design_effect(60, (0.1, 0.2), ([5] * 12, [3] * 20)) == pytest.approx(1 + 0.1 * 4 + 0.2 * 2)
    with pytest.raises(ValueError, match="other than 0"):
        required_n(0.0, 1.0)
    with pytest.raises(ValueError, match="per_cluster >= 1"):
        required_n(0.4, 1.0, icc=(0.1,), per_cluster=(0.5,))
    with pytest.raises(ValueError, match="one icc per clustered dimension"):
        required_n(0.4, 1.0, icc=(0.1,))
