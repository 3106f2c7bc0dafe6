"""The models that are measured: the organism, and random ones made on the spot."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

from backends.contract import ModelSource
from organisms import weights_dir

_TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True)
class Shape:
    """Sizes of a model of the Llama architecture."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_width: int
    inner: int
    vocabulary: int
    context: int = 1024

    def products(self) -> list[tuple[int, int]]:
        """(rows, columns) of the matrices of one block that a token is multiplied by."""
        queries, keys = self.heads * self.head_width, self.kv_heads * self.head_width
        up = [(self.width, self.inner)] * 2
        attention = [(self.width, queries), (self.width, keys), (self.width, keys), (queries, self.width)]
        return [*attention, *up, (self.inner, self.width)]

    def all_products(self) -> list[tuple[int, int]]:
        """Those of all blocks, and the unembedding."""
        return [*self.products() * self.layers, (self.width, self.vocabulary)]

    @staticmethod
    def of(config: Any) -> Shape:
        """The shape that a transformers configuration states."""
        return Shape(
            config.num_hidden_layers,
            config.hidden_size,
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
            config.intermediate_size,
            config.vocab_size,
            config.max_position_embeddings,
        )

    def config(self, **more: Any) -> LlamaConfig:
        """A configuration of this shape whose text never ends by itself."""
        return LlamaConfig(
            num_hidden_layers=self.layers,
            hidden_size=self.width,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            head_dim=self.head_width,
            intermediate_size=self.inner,
            vocab_size=self.vocabulary,
            max_position_embeddings=self.context,
            bos_token_id=2,
            eos_token_id=None,
            pad_token_id=None,
            **more,
        )


TINY = Shape(3, 32, 4, 2, 8, 48, 934)
NARROW = {
    "random 8 x 128": Shape(8, 128, 8, 4, 16, 384, 934),
    "random 32 x 128": Shape(32, 128, 8, 4, 16, 384, 934),
}


def source_of(folder: Path, shape: Shape, name: str = "made", architecture: str = "llama") -> ModelSource:
    """What the backend loads from a folder."""
    return ModelSource(
        name=name,
        architecture=architecture,
        path=str(folder),
        hub_id=None,
        revision=None,
        layers=shape.layers,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        head_width=shape.head_width,
        width=shape.width,
        context=shape.context,
    )


def make_random(folder: Path, shape: Shape, seed: int = 0) -> ModelSource:
    """Save a random Llama with the organism's tokenizer, whose text never ends by itself."""
    torch.manual_seed(seed)
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    model = LlamaForCausalLM(shape.config(initializer_range=0.2))
    model.save_pretrained(folder)
    for name in _TOKENIZER:
        shutil.copy(weights_dir() / name, folder / name)
    return source_of(folder, shape)


def organism_without_end(folder: Path) -> ModelSource:
    """A copy of the organism that knows no end of text, so that all rows run to their last token."""
    shutil.copytree(weights_dir(), folder, ignore=shutil.ignore_patterns("midway"), dirs_exist_ok=True)
    for name in ("config.json", "generation_config.json"):
        told = json.loads((folder / name).read_text(encoding="utf-8"))
        (folder / name).write_text(json.dumps(told | {"eos_token_id": None}), encoding="utf-8")
    shape = Shape.of(LlamaConfig.from_pretrained(folder))
    return source_of(folder, shape, "organism")


def plain_model(source: ModelSource) -> Any:
    """transformers' own model of a source, float32 and untouched by anything of ours."""
    model: Any = AutoModelForCausalLM.from_pretrained(
        str(source.path), dtype=torch.float32, attn_implementation="sdpa", use_safetensors=True
    )
    model.eval()
    model.requires_grad_(False)
    return model


def overrides(source: ModelSource) -> list[str]:
    """The words that give a run this model in place of the organism."""
    sizes = ("layers", "heads", "kv_heads", "head_width", "width", "context")
    told = [f"model.{name}={getattr(source, name)}" for name in sizes]
    last = source.layers - 1
    landmarks = f"model.landmarks={{early:0,relay:{last // 2},late:{last}}}"
    return ["model.source=local", f"model.path={source.path}", landmarks, *told]


def prompts(count: int, shortest: int = 8, longest: int = 17, seed: int = 0) -> list[tuple[int, ...]]:
    """Random prompts of the organism's words, as long as its own are."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(shortest, longest + 1, count)
    return [(2, *map(int, rng.integers(10, 930, length - 1))) for length in lengths]


def shape_of(source: ModelSource) -> Shape:
    """The shape of a model in a folder."""
    return Shape.of(LlamaConfig.from_pretrained(str(source.path)))


def total(shapes: Sequence[tuple[int, int]]) -> int:
    """Multiplications and additions for one token."""
    return sum(2 * rows * columns for rows, columns in shapes)
