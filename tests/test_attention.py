"""Attention of single queries is torch's own function, computed otherwise; texts that are judged need no
mask."""

from __future__ import annotations

import dataclasses
import random
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from backends.contract import Device
from backends.measures import ScoreRow
from backends.probes import likelihood
from backends.rows import Row
from backends.torch import forward
from backends.torch.attention import GROUPED, grouped_attention
from backends.torch.backend import TorchBackend
from backends.torch.forward import call, new_cache, pad_left, prefill, token_geometry
from backends.torch.hooks import Board
from backends.torch.loading import load
from backends.torch.score import continuations
from backends.torch.score.continuations import perplexity
from tests.models import CPU, GREEDY, VOCABULARY, make_model, prompt


def cache_window(rows: int, kv_heads: int, slots: int, width: int, start: int) -> torch.Tensor:
    """Slots of a cache that has more of them on either side."""
    return torch.randn(rows, kv_heads, start + slots + 3, width)[:, :, start : start + slots]


@settings(max_examples=60, deadline=None)
@given(
    rows=st.sampled_from([1, 2, 5, 33]),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 3),
    slots=st.integers(1, 40),
    start=st.integers(0, 4),
    masked=st.sampled_from(["none", "all heads", "per head"]),
    seed=st.integers(0, 2**31),
)
def test_a_single_query_gets_what_the_formula_says(rows, kv_heads, group, slots, start, masked, seed):
    torch.manual_seed(seed)
    width, heads = 8, kv_heads * group
    query = torch.randn(rows, 1, heads, width).transpose(1, 2)
    keys, values = (cache_window(rows, kv_heads, slots, width, start) for _ in range(2))
    hidden = torch.rand(rows, 1 if masked == "all heads" else heads, 1, slots) < 0.4
    hidden[..., -1] = False  # a token sees itself
    mask = None if masked == "none" else torch.zeros(hidden.shape).masked_fill(hidden, -torch.inf)
    found, _ = grouped_attention(torch.nn.Module(), query, keys, values, mask, scaling=0.3)
    of_head = [head // group for head in range(heads)]
    scores = torch.einsum("rhqd,rhkd->rhqk", query.double(), keys[:, of_head].double()) * 0.3
    weights = (scores if mask is None else scores + mask).softmax(-1)
    expected = torch.einsum("rhqk,rhkd->rqhd", weights, values[:, of_head].double())
    assert found.shape == (rows, 1, heads, width)
    assert torch.allclose(found.double(), expected, atol=1e-5)


@pytest.mark.parametrize("case", ["queries", "bool", "bfloat16", "bias"])
def test_all_else_is_left_to_transformers(case):
    torch.manual_seed(0)
    queries = 4 if case == "queries" else 1
    dtype = torch.bfloat16 if case == "bfloat16" else torch.float32
    query = torch.randn(3, 4, queries, 8, dtype=dtype)
    keys, values = torch.randn(2, 3, 2, 9, 8, dtype=dtype)
    mask = torch.rand(3, 1, queries, 9) < 0.7
    mask[..., 0] = True
    asked = mask
    if case != "bool":
        asked = torch.zeros(mask.shape, dtype=dtype).masked_fill(~mask, -torch.inf)
    more = {"position_bias": torch.randn(3, 4, 1, 9)} if case == "bias" else {}
    module = SimpleNamespace(num_key_value_groups=2, is_causal=True)
    found = grouped_attention(module, query, keys, values, asked, **more)[0]
    assert torch.equal(found, sdpa_attention_forward(module, query, keys, values, asked, **more)[0])
    with pytest.raises(ValueError, match="softcap"):
        grouped_attention(module, query, keys, values, asked, softcap=30.0)


def test_only_fused_attention_in_float32_is_taken_over(tmp_path):
    def chosen(family: str, device: Device) -> str:
        source = make_model(tmp_path / family, family)
        return str(load(source, device).model.config._attn_implementation)

    assert chosen("llama", CPU) == GROUPED
    assert chosen("llama", dataclasses.replace(CPU, attention="eager")) == "eager"
    assert chosen("llama", dataclasses.replace(CPU, dtype="bfloat16")) == "sdpa"
    assert chosen("gemma2", CPU) == "eager"


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3_text", "gpt_neox"])
def test_a_decode_step_is_that_of_the_fused_attention(tmp_path, family):
    loaded = load(make_model(tmp_path, family), CPU)
    rng = random.Random(3)
    sequences = [prompt(rng, length) for length in (5, 22, 13)]
    _, pads = pad_left(loaded, sequences)
    ends = torch.tensor([len(ids) for ids in sequences])

    def step() -> torch.Tensor:
        cache = new_cache(loaded, len(sequences), 30)
        with torch.inference_mode():
            prefill(loaded, sequences, cache)
            tokens = torch.tensor([[3], [9], [50]])
            return call(loaded, tokens, token_geometry(ends, pads, 23), cache)[:, -1]

    ours = step()
    loaded.model.set_attn_implementation("sdpa")
    theirs = step()
    loaded.model.set_attn_implementation(GROUPED)
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_a_query_whose_keys_are_all_cut_gets_what_the_fused_attention_gives_it(tmp_path):
    loaded = load(make_model(tmp_path), CPU)
    ids = prompt(random.Random(4), 9)
    board = Board(loaded)

    def step() -> torch.Tensor:
        cache = new_cache(loaded, 1, 12)
        with torch.inference_mode(), board.armed((), [1]):
            prefill(loaded, [ids], cache)
            board.edges = {1: torch.zeros_like}
            at = token_geometry(torch.tensor([9]), torch.tensor([0]), 10)
            return call(loaded, torch.tensor([[7]]), at, cache)[:, -1]

    cut = step()
    loaded.model.set_attn_implementation("sdpa")
    assert torch.allclose(cut, step(), atol=1e-5)
    loaded.model.set_attn_implementation(GROUPED)


def test_a_model_that_transformers_itself_runs_still_masks(tmp_path):
    source = make_model(tmp_path)
    loaded = load(source, CPU)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    rng = random.Random(5)
    ids, pads = pad_left(loaded, [prompt(rng, 4), prompt(rng, 11)])
    mask = (torch.arange(11)[None] >= pads[:, None]).long()
    arguments = {"attention_mask": mask, "max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    found, expected = (model.generate(ids, eos_token_id=None, **arguments) for model in (loaded.model, plain))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3_text", "gpt2"])
def test_perplexity_of_texts_of_all_lengths_and_of_equal_ones(tmp_path, family, monkeypatch):
    source = make_model(tmp_path, family)
    loaded = load(source, CPU)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    rng = random.Random(6)
    rows = [
        ScoreRow(Row(prompt(rng, before), GREEDY), prompt(rng, after))
        for before, after in ((1, 9), (20, 1), (7, 25), (13, 13), (2, 2))
    ]
    rows = [*rows, ScoreRow(Row(prompt(rng, 3), GREEDY)), *rows[::-1]]
    asked: list[int] = []
    inside = continuations.call_whole

    def counted(loaded: forward.Loaded, ids: torch.Tensor) -> torch.Tensor:
        asked.append(len(ids))
        return inside(loaded, ids)

    monkeypatch.setattr(continuations, "call_whole", counted)
    found = perplexity(loaded, rows, 40)
    assert sum(asked) == 5 and len(asked) > 1
    for row, value in zip(rows, found, strict=True):
        if not row.continuation:
            assert value is None
            continue
        before = len(row.row.ids)
        with torch.inference_mode():
            logits = plain(torch.tensor([[*row.row.ids, *row.continuation]])).logits[0].double()
        logps = logits.log_softmax(-1)[before - 1 : -1].gather(-1, torch.tensor(row.continuation)[:, None])
        assert value == pytest.approx(likelihood.perplexity(logps[:, 0].numpy()), rel=1e-4)


def test_perplexity_leaves_no_hook_behind(tmp_path):
    backend = TorchBackend(make_model(tmp_path), CPU)
    ids = prompt(random.Random(7), 8)
    before = backend.decode([Row(ids, GREEDY)])[0].output_ids
    with pytest.raises(IndexError):
        perplexity(load(make_model(tmp_path), CPU), [ScoreRow(Row(ids, GREEDY), (VOCABULARY + 5,))], 100)
    assert backend.decode([Row(ids, GREEDY)])[0].output_ids == before
