"""Tiny random models, made on the spot, for tests."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from backends.contract import Device, ModelSource
from backends.positions import Positions
from backends.rows import Sampling
from backends.writes import Value, Write

VOCABULARY = 120
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "initializer_range": 0.3,
}
FAMILIES = {
    "llama": (LlamaConfig, LlamaForCausalLM, {}),
    "mistral": (MistralConfig, MistralForCausalLM, {"sliding_window": 12}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {"use_sliding_window": False}),
    # Two layers see everything, two through a window; heads are wider than the model.
    "qwen3": (
        Qwen3Config,
        Qwen3ForCausalLM,
        {"use_sliding_window": True, "sliding_window": 10, "max_window_layers": 2, "head_dim": 16},
    ),
    # Layers 0 and 2 slide. Caps this low bend the scores and logits of a model this small.
    "gemma2": (
        Gemma2Config,
        Gemma2ForCausalLM,
        {
            "sliding_window": 7,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 5.0,
            "query_pre_attn_scalar": 5,
            "pad_token_id": None,
        },
    ),
}
ALL_LAYERS = tuple(range(4))
GREEDY = Sampling(0.0, 12)
SAMPLED = Sampling(0.9, 12)


def make_model(folder: Path, family: str = "llama", seed: int = 0, **changes: object) -> ModelSource:
    """Save a random model of a family and return where it is. changes: keys of its configuration."""
    config_class, model_class, more = FAMILIES[family]
    torch.manual_seed(seed)
    config = config_class(**{**SHAPE, **more, **changes})
    model = model_class(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:  # made as 1 (or as 1 + 0), so that a norm in the wrong place would not show
                parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return ModelSource(
        name=family,
        architecture=family,
        path=str(folder),
        hub_id=None,
        revision=None,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_width=config.head_dim,
        width=config.hidden_size,
        context=config.max_position_embeddings,
    )


CPU = Device("cpu", "float32")


def prompt(rng: random.Random, length: int) -> tuple[int, ...]:
    """A random prompt with BOS; no end-of-text token inside."""
    return (0, *(rng.randrange(2, VOCABULARY) for _ in range(length - 1)))


def write(
    name: str,
    site: str,
    layers: tuple[int, ...] = ALL_LAYERS,
    *,
    value: str = "source",
    role: str = "donor",
    positions: str = "all",
    during: str = "prefill",
    op: str = "replace",
    draws: int = 1,
    **more,
) -> Write:
    """A write with short defaults."""
    kind = "none" if op == "zero" else value
    role = "" if kind in ("random", "none") else role
    return Write(name, site, layers, op, Value(kind, role, draws), Positions.parse(positions), during, **more)
