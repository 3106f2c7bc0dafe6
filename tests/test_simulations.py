"""What the tests do when they are right to do nothing: error rates under simulation, seeds fixed.

Every bound is the nominal rate and three Monte Carlo standard errors, sqrt(rate (1 - rate) / runs), unless it
says otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from analyses.statistics.bootstrap import two_way
from analyses.statistics.clusters import clustered_mean
from analyses.statistics.corrections import benjamini_hochberg, bonferroni, holm
from analyses.statistics.equivalence import tost
from analyses.statistics.mixed import crossed
from analyses.statistics.permutation import sign_flip
from analyses.statistics.power import minimal_detectable_effect, required_n
from analyses.statistics.proportions import newcombe, wilson
from analyses.statistics.t_tests import paired_t

DONORS, TARGETS, PAIRS, ICC = 65, 99, 300, 0.1
Array = np.ndarray


def published_design(
    runs: int, seed: int, icc: float = ICC, tests: int = 1
) -> Iterator[tuple[Array, Array, Array]]:
    """Runs of the design of the published 300 pairs: 65 donors crossed with 99 targets, `icc` of the variance
    between each, total variance 1, true mean 0. With several tests, columns that share three quarters of each
    part."""
    rng = np.random.default_rng(seed)
    for _ in range(runs):
        donor, target = rng.integers(DONORS, size=PAIRS), rng.integers(TARGETS, size=PAIRS)

        def level(number: int) -> Array:
            shared = rng.normal(size=(number, 1))
            own = rng.normal(size=(number, tests))
            return own if tests == 1 else 0.75**0.5 * shared + 0.25**0.5 * own

        rest = level(PAIRS)
        x = icc**0.5 * (level(DONORS)[donor] + level(TARGETS)[target]) + (1 - 2 * icc) ** 0.5 * rest
        yield x[:, 0] if tests == 1 else x, donor, target


def three_errors(rate: float, runs: int) -> float:
    return 3 * (rate * (1 - rate) / runs) ** 0.5


def rejects(p: float | None) -> bool:
    assert p is not None
    return p < 0.05


def test_trap_28_naive_tests_find_what_is_not_there_and_the_clustered_ones_do_not() -> None:
    """65 donors x 99 targets, 300 pairs, 0.1 of the variance in each: the naive test of a true null rejects
    about 13% of the time, the two-way clustered one about 5%."""
    runs = 2_000
    naive = clustered = one_way = 0
    for x, donor, target in published_design(runs, seed=1):
        naive += rejects(paired_t(x).p)
        one_way += rejects(clustered_mean(x, donor=donor).p)
        clustered += rejects(clustered_mean(x, donor=donor, target=target).p)
    assert naive / runs == pytest.approx(0.135, abs=three_errors(0.135, runs))
    # By donors alone is too little where targets recur as well.
    assert 0.06 < one_way / runs < naive / runs
    # In 6,000 runs it was 5.8%: min(G) - 1 degrees of freedom are a few too many for uneven clusters.
    assert 0.04 < clustered / runs < 0.07


def test_trap_28_the_cross_checks_keep_their_level_too() -> None:
    runs = 250
    rejected = {"bootstrap": 0, "mixed": 0, "sign flip": 0}
    for seed, (x, donor, target) in enumerate(published_design(runs, seed=2)):
        rejected["bootstrap"] += rejects(two_way(x, {"donor": donor}, target, draws=499, seed=seed).p)
        rejected["mixed"] += rejects(crossed(x, {"donor": donor}, target).p)
        labels = {"donor": donor, "target": target}
        rejected["sign flip"] += rejects(sign_flip(x, labels, draws=499, seed=seed).p)
    assert max(rejected.values()) / runs < 0.06 + three_errors(0.06, runs)
    # Naive tests would have had 13%.
    assert max(rejected.values()) / runs < 0.135 - three_errors(0.1, runs)


@pytest.mark.slow
def test_the_cross_checks_keep_their_level_in_many_runs() -> None:
    runs = 1_500
    rejected = {"bootstrap": 0, "mixed": 0, "sign flip": 0}
    for seed, (x, donor, target) in enumerate(published_design(runs, seed=3)):
        rejected["bootstrap"] += rejects(two_way(x, {"donor": donor}, target, draws=499, seed=seed).p)
        rejected["mixed"] += rejects(crossed(x, {"donor": donor}, target).p)
        labels = {"donor": donor, "target": target}
        rejected["sign flip"] += rejects(sign_flip(x, labels, draws=499, seed=seed).p)
    for name, times in rejected.items():
        # The mixed model finds 6.2% in 4,000 runs, the others a little over 5%.
        assert 0.05 - three_errors(0.05, runs) < times / runs < 0.062 + three_errors(0.062, runs), name


def test_without_clusters_nothing_is_lost() -> None:
    """Independent values: the clustered test keeps its level and rejects about as often as the naive one."""
    runs = 800
    null = found = naive = 0
    for x, donor, target in published_design(runs, seed=4, icc=0.0):
        null += rejects(clustered_mean(x, donor=donor, target=target).p)
        found += rejects(clustered_mean(x + 0.15, donor=donor, target=target).p)
        naive += rejects(paired_t(x + 0.15).p)
    assert null / runs == pytest.approx(0.05, abs=three_errors(0.05, runs))
    assert found / runs == pytest.approx(naive / runs, abs=0.05)


def test_trap_32_equivalence_is_claimed_no_more_than_one_time_in_twenty_at_the_margin() -> None:
    """True mean at the margin, where equivalence is false: 0.4 is wide enough for the test to have its whole
    level, 0.15 so narrow that it can hardly ever pass."""
    runs = 1_000
    wide = narrow = naive = inside = 0
    for x, donor, target in published_design(runs, seed=5):
        wide += tost(clustered_mean(x + 0.4, donor=donor, target=target), 0.4).passes is True
        narrow += tost(clustered_mean(x + 0.1, donor=donor, target=target), 0.1).passes is True
        inside += tost(clustered_mean(x, donor=donor, target=target), 0.4).passes is True
        naive += tost(clustered_mean(x + 0.4), 0.4).passes is True
    # As the two-sided test, a little above 0.05.
    assert wide / runs == pytest.approx(0.055, abs=three_errors(0.055, runs))
    assert narrow / runs < 0.05
    assert inside / runs > 0.95
    assert naive / runs > 0.08


def test_trap_31_the_family_wise_error_holds_under_correlated_nulls() -> None:
    """Eight contrasts without an effect, correlated 0.75 as those against one baseline are."""
    runs, m = 500, 8
    any_raw = any_holm = any_bonferroni = 0
    for x, donor, target in published_design(runs, seed=6, tests=m):
        p = [clustered_mean(x[:, j], donor=donor, target=target).p for j in range(m)]
        any_raw += any(each is not None and each < 0.05 for each in p)
        any_holm += any(each is not None and each < 0.05 for each in holm(p))
        any_bonferroni += any(each is not None and each < 0.05 for each in bonferroni(p))
    assert any_raw / runs > 0.1
    assert any_holm / runs <= 0.05 + three_errors(0.05, runs)
    assert any_bonferroni <= any_holm


def test_corrections_keep_their_error_with_true_effects_among_nulls() -> None:
    """Twenty z tests, fifteen of them nulls, equally correlated 0.5."""
    from scipy import stats

    runs, m, nulls = 2_000, 20, 15
    rng = np.random.default_rng(7)
    z = 0.5**0.5 * (rng.normal(size=(runs, 1)) + rng.normal(size=(runs, m)))
    z[:, nulls:] += 3.0
    p = 2 * stats.norm.sf(np.abs(z))
    false_share, any_false, powers = 0.0, 0, np.zeros(3)
    for row in p:
        by_bh, by_holm, by_bonferroni = (
            np.array(correct(row.tolist()), dtype=float) < 0.05
            for correct in (benjamini_hochberg, holm, bonferroni)
        )
        false_share += by_bh[:nulls].sum() / max(1, by_bh.sum())
        any_false += bool(by_holm[:nulls].any())
        powers += [each[nulls:].mean() for each in (by_bh, by_holm, by_bonferroni)]
    assert false_share / runs <= 0.05 * nulls / m + 0.01
    assert any_false / runs <= 0.05 + three_errors(0.05, runs)
    assert powers[0] > powers[1] >= powers[2]


@pytest.mark.parametrize(("share", "n"), [(0.02, 60), (0.5, 20), (0.07, 300)])
def test_wilson_covers_a_share(share: float, n: int) -> None:
    """Over all counts, exactly: the mean coverage near the nominal one, never far below."""
    from scipy import stats

    counts = np.arange(n + 1)
    chances = stats.binom.pmf(counts, n, share)
    inside = [low <= share <= high for low, high in (wilson(k / n, n) for k in counts)]
    covered = float(chances[inside].sum())
    assert 0.92 < covered < 0.99
    half = 1.96 * np.sqrt(counts / n * (1 - counts / n) / n)
    wald = float(chances[np.abs(counts / n - share) <= half].sum())
    assert covered > wald - 0.01


def test_newcombe_covers_a_difference_of_paired_shares() -> None:
    rng = np.random.default_rng(8)
    runs, n, covered = 2_000, 60, 0
    for _ in range(runs):
        both = rng.random(n)
        first, second = (both < 0.3).astype(float), ((both < 0.2) | (both > 0.95)).astype(float)
        low, high = newcombe(first, second, n)
        covered += low <= 0.05 <= high
    assert covered / runs == pytest.approx(0.95, abs=0.025)


def test_trap_31_the_difference_that_is_said_to_be_detectable_is_detected() -> None:
    """With the effect that the design is said to find with 80% power, four of five runs find it."""
    runs, found = 700, 0
    for x, donor, target in published_design(runs, seed=9):
        sizes = [np.bincount(donor).tolist(), np.bincount(target).tolist()]
        sizes = [[m for m in each if m] for each in sizes]
        effect = minimal_detectable_effect(1.0, PAIRS, icc=(ICC, ICC), cluster_sizes=sizes)
        found += rejects(clustered_mean(x + effect, donor=donor, target=target).p)
    assert found / runs == pytest.approx(0.8, abs=three_errors(0.8, runs))
    n = required_n(0.5, 1.0)
    rng = np.random.default_rng(10)
    power = np.mean([rejects(paired_t(rng.normal(0.5, 1, n)).p) for _ in range(1_000)])
    assert power == pytest.approx(0.8, abs=three_errors(0.8, 1_000))
