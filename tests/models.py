"""Tiny random models, made on the spot, for tests."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from backends.contract import Device, ModelSource, Sampling, Value, Write
from backends.positions import Positions

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
}
ALL_LAYERS = tuple(range(4))
GREEDY = Sampling(0.0, 12)
SAMPLED = Sampling(0.9, 12)


def make_model(folder: Path, family: str = "llama", seed: int = 0) -> ModelSource:
    """Save a random model of a family and return where it is."""
    config_class, model_class, more = FAMILIES[family]
    torch.manual_seed(seed)
    model_class(config_class(**SHAPE, **more)).save_pretrained(folder)
    return ModelSource(family, family, str(folder), None, None, 4, 4, 2, 8, 32, 256)


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
