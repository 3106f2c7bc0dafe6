"""The definitions of probes on numbers worked out by hand, and the torch kernels against the definitions."""

from __future__ import annotations

import math
import random
from typing import get_args

import numpy as np
import pytest
import torch

from backends.measures import Probe, ProbeKind
from backends.probes import distribution, geometry, kinds, lens, likelihood, ranking
from backends.torch.score import reductions
from backends.torch.score.reductions import TokenSets

# Probabilities 1/2, 1/4, 1/8, 1/8, and a shift that no distribution notices.
LOGITS = np.log(np.array([0.5, 0.25, 0.125, 0.125])) + 3


def test_the_probability_of_a_set_of_tokens():
    assert distribution.next_token(LOGITS, [1, 2]) == pytest.approx(0.375)
    assert distribution.next_token(LOGITS, [1, 2, 1]) == pytest.approx(0.375)  # once each
    assert distribution.next_token(np.stack([LOGITS, -LOGITS]), [0]).shape == (2,)
    with pytest.raises(ValueError, match="at least one token"):
        distribution.next_token(LOGITS, [])


def test_log_odds_are_against_a_set_or_against_all_others():
    assert distribution.log_odds(LOGITS, [0], [1]) == pytest.approx(math.log(2))
    assert distribution.log_odds(LOGITS, [1, 2]) == pytest.approx(math.log(0.375 / 0.625))
    shifted = LOGITS + 100
    assert distribution.log_odds(shifted, [1, 2]) == pytest.approx(
        distribution.log_odds(LOGITS, [1, 2]), abs=1e-4
    )
    # 1 - p is 0 in float32 here; what the others have is not.
    assert distribution.log_odds(np.array([50.0, 0, 0]), [0]) == pytest.approx(50 - math.log(2))


def test_log_odds_against_a_set_do_not_notice_all_others():
    moved = LOGITS + np.array([0, 0, 7, -4])
    assert distribution.log_odds(moved, [0], [1]) == pytest.approx(distribution.log_odds(LOGITS, [0], [1]))
    assert distribution.log_odds(moved, [0]) != pytest.approx(distribution.log_odds(LOGITS, [0]))


def test_the_rank_counts_what_is_strictly_better():
    assert [int(ranking.rank(LOGITS, [t])) for t in range(4)] == [0, 1, 2, 2]  # 2 and 3 tie
    assert ranking.rank(LOGITS, [3, 1]) == 1  # the best of the set
    for monotone in (np.tanh, np.exp, lambda x: 0.1 * x):
        assert ranking.rank(monotone(LOGITS), [2]) == 2


def test_accuracy_is_rank_0_ties_included():
    assert [float(ranking.accuracy(LOGITS, [t])) for t in range(4)] == [1, 0, 0, 0]
    assert ranking.accuracy(LOGITS, [3, 0]) == 1
    tied = np.array([2.0, 2.0, 1.0])
    assert [float(ranking.accuracy(tied, [t])) for t in range(3)] == [1, 1, 0]
    assert ranking.accuracy(np.stack([LOGITS, -LOGITS]), [0]).tolist() == [1, 0]


def test_the_best_tokens_come_in_order_and_ties_by_id():
    ids, probs = ranking.top_k(np.array([1.0, 5.0, 1.0, 5.0, 0.0]), 3)
    assert ids.tolist() == [1, 3, 0]
    assert probs == pytest.approx(np.exp([5.0, 5.0, 1.0]) / np.exp([1.0, 5, 1, 5, 0]).sum(), rel=1e-6)


def test_the_divergence_of_two_distributions():
    half, quarter = np.log([0.5, 0.5]), np.log([0.25, 0.75])
    assert distribution.kl(half, quarter) == pytest.approx(
        0.5 * math.log(2) + 0.5 * math.log(2 / 3), rel=1e-6
    )
    assert distribution.kl(quarter, half) == pytest.approx(
        0.25 * math.log(0.5) + 0.75 * math.log(1.5), rel=1e-6
    )
    assert distribution.kl(LOGITS, LOGITS) == 0
    never = np.array([0.0, 0.0, -np.inf])
    assert distribution.kl(never, np.array([0.0, -np.inf, -np.inf])) == np.inf
    assert distribution.kl(np.array([0.0, -np.inf, -np.inf]), never) == pytest.approx(math.log(2))


def test_no_rounding_makes_a_divergence_negative():
    rng = np.random.default_rng(1)
    clean = rng.normal(0, 6, (400, 50)).astype(np.float32)
    near = clean + rng.normal(0, 1e-6, clean.shape).astype(np.float32)
    assert (distribution.kl(clean, near) >= 0).all()
    assert (reductions.kl(torch.from_numpy(clean), torch.from_numpy(near)) >= 0).all()


def test_likelihoods_of_given_tokens():
    logits = np.log(np.array([[0.5, 0.25, 0.25], [0.125, 0.125, 0.75]]))
    logps = likelihood.token_log_probabilities(logits, np.array([0, 1]))
    assert logps == pytest.approx([math.log(0.5), math.log(0.125)], rel=1e-6)
    assert likelihood.logprob(logps) == pytest.approx(math.log(0.0625), rel=1e-6)
    assert likelihood.cross_entropy(logps) == pytest.approx(math.log(4), rel=1e-6)
    assert likelihood.perplexity(logps) == pytest.approx(4, rel=1e-6)
    for function in (likelihood.logprob, likelihood.cross_entropy, likelihood.perplexity):
        assert function(np.array([])) is None


def test_participation_ratios_worked_out_by_hand():
    assert geometry.participation_ratio(3 * np.eye(4, 7)) == pytest.approx(4)  # orthogonal, of equal length
    assert geometry.participation_ratio(np.outer([1, -2, 5], [3, 1, 4, 1])) == pytest.approx(1)  # parallel
    two = np.array([[2.0, 0, 0], [0, 1, 0]])  # singular values 2 and 1: (4 + 1)^2 / (16 + 1)
    assert geometry.participation_ratio(two) == pytest.approx(25 / 17)
    assert geometry.participation_ratio(two.T) == pytest.approx(25 / 17)
    assert geometry.participation_ratio(two * 1e25) == pytest.approx(25 / 17)
    assert np.isnan(geometry.participation_ratio(np.zeros((3, 4))))
    assert np.isnan(geometry.participation_ratio(np.array([[1.0, np.inf], [0.0, 1.0]])))


def test_participation_ratios_are_those_of_the_singular_values_as_published():
    rows = np.random.default_rng(2).normal(1.5, 1, (6, 16, 40)).astype(np.float32)
    squares = np.linalg.svd(rows, compute_uv=False) ** 2
    published = squares.sum(-1) ** 2 / (squares**2).sum(-1)
    assert geometry.participation_ratio(rows) == pytest.approx(published, rel=1e-5)


def test_trap_20_what_cannot_move_a_participation_ratio():
    rng = np.random.default_rng(3)
    rows = rng.normal(1, 1, (16, 24))
    value = geometry.participation_ratio(rows)
    turn = np.linalg.qr(rng.normal(size=(24, 24)))[0]
    signs = rng.choice([-1, 1], 16)[:, None]
    for same in (rng.permutation(rows), signs * rows, rows @ turn, 7 * rows):
        assert geometry.participation_ratio(same) == pytest.approx(value, rel=1e-5)
    assert geometry.participation_ratio(rows - rows.mean(0)) > 2 * value  # centred it is another measure


def test_trap_21_a_window_does_not_shrink():
    rows = np.random.default_rng(4).normal(size=(5, 8))
    found = geometry.geometry(rows, 2 * np.eye(5, 8), 5)
    assert found.late == pytest.approx(5)
    assert found.r_v == pytest.approx(5 / found.early)
    with pytest.raises(ValueError, match="window of 6 is longer than a prompt of 5"):
        geometry.geometry(rows, rows, 6)


def test_a_lens_reads_every_layer():
    found = lens.readings(np.stack([LOGITS, LOGITS[::-1]]), [0])
    assert found.rank.tolist() == [0, 2]
    assert found.prob == pytest.approx([0.5, 0.125])
    assert found.top.tolist() == [0, 3]


def test_every_kind_has_a_version_and_columns_of_its_own():
    assert set(kinds.VERSIONS) == set(get_args(ProbeKind))
    probe = Probe("geometry", "r_v", layers=(1, 3), windows=(16, 8, 32))
    assert kinds.columns(probe) == ("r_v", "r_v.early", "r_v.late", "r_v.w8", "r_v.w32")
    assert kinds.columns(Probe("lens", "l", tokens="a")) == ("l.rank", "l.prob", "l.top")
    assert kinds.columns(Probe("patchscope", "p")) == ("p.top",)
    assert kinds.columns(Probe("top_k", "t")) == ("t.ids", "t.probs")
    assert kinds.columns(Probe("logprob", "c")) == ("c", "c.tokens")


# The kernels, against the definitions


@pytest.fixture(scope="module")
def many_logits() -> np.ndarray:
    """Logits with ties, tokens that cannot come, and near-certainties."""
    rng = np.random.default_rng(5)
    logits = rng.normal(0, 4, (60, 37)).astype(np.float32)
    logits[10:20] = np.round(logits[10:20])  # many ties
    logits[20:24] = 1.5  # nothing but ties
    logits[30, 5:30] = -np.inf
    logits[31, 7] = 60.0
    return logits


@pytest.mark.parametrize("name", ["next_token", "log_odds", "rank", "accuracy"])
def test_kernels_of_token_sets_are_the_definitions(many_logits, name):
    rng = random.Random(6)
    sets = [[rng.randrange(37) for _ in range(rng.randrange(1, 6))] for _ in many_logits]
    padded = TokenSets.of(sets, 37, torch.device("cpu"))
    given = torch.from_numpy(many_logits)
    kernel, definition = getattr(reductions, name), {**vars(distribution), **vars(ranking)}[name]
    found = kernel(given, padded, None) if name == "log_odds" else kernel(given, padded)
    expected = [float(definition(row, tokens)) for row, tokens in zip(many_logits, sets, strict=True)]
    assert found.tolist() == pytest.approx(expected, rel=1e-5, abs=1e-6)
    if name == "log_odds":
        others = sets[1:] + sets[:1]
        found = kernel(given, padded, TokenSets.of(others, 37, torch.device("cpu")))
        expected = [float(definition(r, a, b)) for r, a, b in zip(many_logits, sets, others, strict=True)]
        assert found.tolist() == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_other_kernels_are_the_definitions(many_logits):
    given = torch.from_numpy(many_logits)
    for count in (1, 5, 37):
        ids, probs = ranking.top_k(many_logits, count)
        found_ids, found_probs = reductions.top_k(given, count)
        assert found_ids.tolist() == ids.tolist()
        assert found_probs.numpy() == pytest.approx(probs, rel=1e-5, abs=1e-7)
    assert reductions.best_token(given).tolist() == ranking.top_k(many_logits, 1)[0][:, 0].tolist()
    moved = many_logits[::-1].copy()
    assert reductions.kl(given, torch.from_numpy(moved)).numpy() == pytest.approx(
        distribution.kl(many_logits, moved), rel=1e-9
    )
    tokens = np.arange(60) % 37
    logps = likelihood.token_log_probabilities(many_logits, tokens)
    found = reductions.token_log_probabilities(given, torch.from_numpy(tokens))
    assert found.numpy() == pytest.approx(logps, rel=1e-5, abs=1e-5)


def test_a_row_without_tokens_has_no_value(many_logits):
    sets = TokenSets.of([[], [1, 2], []], 37, torch.device("cpu"))
    given = torch.from_numpy(many_logits[:3])
    assert torch.isnan(reductions.next_token(given, sets)).tolist() == [True, False, True]
    assert torch.isnan(reductions.log_odds(given, sets, None)).tolist() == [True, False, True]
    assert reductions.rank(given, sets).tolist()[::2] == [-1, -1]
    assert torch.isnan(reductions.accuracy(given, sets)).tolist() == [True, False, True]
