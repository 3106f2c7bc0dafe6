"""Tiny random models, made on the spot, for tests."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from backends.contract import Device, ModelInfo, ModelSource
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
    # Layer 3 sees everything, the others slide; the two kinds rotate by different frequencies.
    "gemma3_text": (
        Gemma3TextConfig,
        Gemma3ForCausalLM,
        {
            "sliding_window": 7,
            "sliding_window_pattern": 4,
            "rope_theta": 1000.0,
            "rope_local_base_freq": 10.0,
            "query_pre_attn_scalar": 5,
            "final_logit_softcapping": 5.0,
            "pad_token_id": None,
        },
    ),
    # All columns of a head but the last two are rotated.
    "phi3": (
        Phi3Config,
        Phi3ForCausalLM,
        {"sliding_window": 12, "partial_rotary_factor": 0.75, "pad_token_id": None},
    ),
    # Its config.json has neither KV heads nor the width of a head.
    "gpt2": (
        GPT2Config,
        GPT2LMHeadModel,
        {"n_inner": 48},
    ),
    "gpt_neox": (GPTNeoXConfig, GPTNeoXForCausalLM, {"rotary_pct": 0.5}),
    "mixtral": (
        MixtralConfig,
        MixtralForCausalLM,
        {"sliding_window": 9, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
}
# What the config.json of an architecture does not have.
NOT_STATED = {
    "gpt2": ("intermediate_size", "head_dim", "num_key_value_heads"),
    "gpt_neox": ("head_dim", "num_key_value_heads"),
    "phi3": ("head_dim",),
}
ALL_LAYERS = tuple(range(4))
GREEDY = Sampling(0.0, 12)
SAMPLED = Sampling(0.9, 12)


def _is_norm(module: nn.Module) -> bool:
    return type(module).__name__.endswith("Norm")


def make_model(folder: Path, family: str = "llama", seed: int = 0, **changes: object) -> ModelSource:
    """Save a random model of a family and return where it is. changes: keys of its configuration."""
    config_class, model_class, more = FAMILIES[family]
    torch.manual_seed(seed)
    stated = {key: value for key, value in SHAPE.items() if key not in NOT_STATED.get(family, ())}
    own_words = config_class.attribute_map
    config = config_class(**{own_words.get(k, k): v for k, v in {**stated, **more, **changes}.items()})
    model = model_class(config)
    norms = {id(p) for m in model.modules() if _is_norm(m) for p in m.parameters(recurse=False)}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Norms are made as 1 (or as 1 + 0) and biases as 0: one in the wrong place would not show.
            if id(parameter) in norms or name.endswith("bias"):
                parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    kv_heads = getattr(config, "num_key_value_heads", None)
    head_width = getattr(config, "head_dim", None)
    return ModelSource(
        name=family,
        architecture=family,
        path=str(folder),
        hub_id=None,
        revision=None,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        kv_heads=config.num_attention_heads if kv_heads is None else kv_heads,
        head_width=config.hidden_size // config.num_attention_heads if head_width is None else head_width,
        width=config.hidden_size,
        context=config.max_position_embeddings,
    )


CPU = Device("cpu", "float32")


def taken_by(info: ModelInfo, writes: tuple[Write, ...]) -> tuple[Write, ...]:
    """Writes as a model can take them: where positions are not rotary, keys stay as they are."""
    return writes if info.rotary else tuple(replace(each, rope="keep") for each in writes)


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
