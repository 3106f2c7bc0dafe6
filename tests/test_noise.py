"""Sampling noise: equal in every backend, and right in distribution."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from backends import noise
from backends.rows import Row, Sampling
from backends.torch import sampling


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=5), st.integers(0, 10_000), st.integers(1, 500)
)
def test_torch_repeats_the_reference_bit_for_bit(streams, step, count):
    expected = noise.uniform(noise.step_keys(np.array(streams, np.uint64), step), count)
    high, low = sampling.split_stream(streams, torch.device("cpu"))
    keys = sampling.keys_at(high, low, torch.tensor(step))
    found = sampling.uniform(keys, sampling.token_hash(count, torch.device("cpu")))
    assert (found.numpy() == expected).all()
    assert expected.min() > 0 and expected.max() < 1


def test_uniforms_are_uniform_over_tokens_steps_and_streams():
    streams = np.array([noise.stream_of("s", i) for i in range(40)], np.uint64)
    over_tokens = noise.uniform(noise.step_keys(streams[:1], 3), 20_000)[0]
    over_steps = np.array([noise.uniform(noise.step_keys(streams[:1], t), 8)[0, 5] for t in range(5_000)])
    over_streams = noise.uniform(noise.step_keys(streams, 0), 500)[:, ::7].ravel()
    for sample in (over_tokens, over_steps, over_streams):
        assert stats.kstest(sample, "uniform").pvalue > 1e-3


def draws(logits: torch.Tensor, settings_: Sampling, count: int) -> np.ndarray:
    rows = [Row((0,), settings_, stream=noise.stream_of("draw", i)) for i in range(count)]
    sampler = sampling.Sampler.of(rows, len(logits), torch.device("cpu"))
    return sampler.draw(logits.expand(count, -1), 0)[0].numpy()


def test_gumbel_max_samples_the_softmax():
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, 0.5, 1.5])
    for temperature in (1.0, 0.7):
        tokens = draws(logits, Sampling(temperature, 1), 20_000)
        expected = (logits.double() / temperature).softmax(-1).numpy() * len(tokens)
        assert stats.chisquare(np.bincount(tokens, minlength=6), expected).pvalue > 1e-3


def test_top_k_and_top_p_cut_what_they_should():
    logits = torch.log(torch.tensor([0.4, 0.3, 0.2, 0.06, 0.04]))
    assert set(draws(logits, Sampling(1.0, 1, top_k=2), 500)) == {0, 1}
    assert set(draws(logits, Sampling(1.0, 1, top_p=0.65), 500)) == {0, 1}
    assert set(draws(logits, Sampling(1.0, 1, top_p=0.75), 500)) == {0, 1, 2}
    assert set(draws(logits, Sampling(1.0, 1, top_k=1), 50)) == {0}
    kept = np.bincount(draws(logits, Sampling(1.0, 1, top_k=2), 10_000), minlength=2)
    assert stats.chisquare(kept, [10_000 * 4 / 7, 10_000 * 3 / 7]).pvalue > 1e-3


def test_trap_25_one_batch_holds_rows_of_different_samplers():
    logits = torch.log(torch.tensor([0.5, 0.3, 0.2])).expand(2000, -1)
    rows = [
        Row((0,), Sampling(1.0, 1, top_k=1) if i % 2 else Sampling(1.0, 1), stream=noise.stream_of(i))
        for i in range(2000)
    ]
    tokens = sampling.Sampler.of(rows, 3, torch.device("cpu")).draw(logits, 0)[0].numpy()
    assert set(tokens[1::2]) == {0} and set(tokens[::2]) == {0, 1, 2}


def test_trap_17_temperature_zero_is_greedy():
    logits = torch.tensor([1.0, 1.01, 0.0])
    assert set(draws(logits, Sampling(0.0, 1), 200)) == {1}


@given(st.integers(0, 2**64 - 1), st.integers(1, 200))
def test_permutations_are_permutations_and_fixed_by_their_stream(stream, count):
    found = noise.permutation(stream, count)
    assert sorted(found) == list(range(count))
    assert (found == noise.permutation(stream, count)).all()


def test_a_small_change_of_logits_changes_few_tokens():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4000, 50, generator=generator)
    rows = [Row((0,), Sampling(1.0, 1), stream=noise.stream_of(i)) for i in range(4000)]
    sampler = sampling.Sampler.of(rows, 50, torch.device("cpu"))
    before = sampler.draw(logits, 0)[0]
    after = sampler.draw(logits + 0.01 * torch.randn(4000, 50, generator=generator), 0)[0]
    assert (before != after).float().mean() < 0.03


def plain_draw(
    sampler: sampling.Sampler, streams: list[int], logits: torch.Tensor, step: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The draw as one formula over whole rows, its noise from the reference in numpy."""
    hot = sampler.temperature > 0
    scale = torch.where(hot, sampler.temperature, torch.ones_like(sampler.temperature))
    scores = sampling.truncate(logits / scale[:, None], sampler.top_k, sampler.top_p, hot)
    keys = noise.step_keys(np.array(streams, np.uint64), step)
    uniforms = torch.from_numpy(noise.uniform(keys, logits.shape[1]))
    scores = torch.where(hot[:, None], scores + -torch.log(-torch.log(uniforms)), scores)
    best, index = scores.topk(2, dim=-1)
    return index[:, 0], (best[:, 0] - best[:, 1]) * scale, torch.isfinite(best[:, 0])


SETTINGS = (
    Sampling(0.0, 1),
    Sampling(1.0, 1),
    Sampling(0.8, 1, top_k=5),
    Sampling(1.3, 1, top_p=0.7),
    Sampling(1e-3, 1, top_k=1),
    Sampling(50.0, 1, top_k=40, top_p=0.9),
)
STRANGE = ("none", "ties", "all equal", "cut off", "not a number", "infinite")


@settings(max_examples=80, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(SETTINGS), st.sampled_from(STRANGE), st.integers(0, 2**64 - 1)),
        min_size=1,
        max_size=6,
    ),
    st.sampled_from([2, 3, 17, 934, 5000]),
    st.integers(0, 2000),
    st.integers(0, 2**31),
    st.sampled_from([64, 2000, sampling._CHUNK]),
)
def test_a_draw_is_the_plain_formula_bit_for_bit(rows, vocabulary, step, seed, chunk):
    streams = [stream for _, _, stream in rows]
    sampler = sampling.Sampler.of(
        [Row((0,), asked, stream=stream) for asked, _, stream in rows], vocabulary, torch.device("cpu")
    )
    logits = 5 * torch.randn(len(rows), vocabulary, generator=torch.Generator().manual_seed(seed))
    for row, (_, strange, _) in zip(logits, rows, strict=True):
        if strange == "ties":
            row.round_()
        elif strange == "all equal":
            row.fill_(1.5)
        elif strange == "cut off":
            row[1:] = -torch.inf
        elif strange != "none":
            row[-1] = torch.nan if strange == "not a number" else torch.inf
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "_CHUNK", chunk)
        found = sampler.draw(logits.clone(), step)
        each = sampler.draw(logits.clone(), torch.full((len(rows),), step))
    expected = plain_draw(sampler, streams, logits, step)
    for ours, again, theirs in zip(found, each, expected, strict=True):
        assert torch.equal(ours, again) or torch.isnan(theirs).any()
        assert torch.equal(torch.nan_to_num(ours.double()), torch.nan_to_num(theirs.double()))


def test_a_step_is_each_row_s_own_and_the_logits_stay_as_they_were():
    rows = [Row((0,), Sampling(1.0, 9), stream=noise.stream_of("steps", i)) for i in range(40)]
    sampler = sampling.Sampler.of(rows, 300, torch.device("cpu"))
    logits = torch.randn(40, 300)
    before = logits.clone()
    mixed = sampler.draw(logits, torch.arange(40) % 3)[0]
    alone = torch.stack([sampler.draw(logits, step)[0] for step in range(3)])
    assert torch.equal(mixed, alone[torch.arange(40) % 3, torch.arange(40)])
    assert len(set(map(tuple, alone.tolist()))) == 3
    assert torch.equal(logits, before)
