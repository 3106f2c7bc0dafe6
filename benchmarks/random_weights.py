"""Large models without any files of weights: only a config.json, and random numbers made on the device."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from backends.contract import ModelSource
from backends.torch import loading
from benchmarks.made_models import TINY, Shape, source_of


@dataclass(frozen=True)
class Large:
    """A published model's shape. architecture: transformers' word for it; yaml: our file for the model;
    rope: base of its rotary embedding."""

    name: str
    architecture: str
    yaml: str
    shape: Shape
    rope: float

    def tiny(self) -> Large:
        """The same in small, for machines without a GPU."""
        return replace(self, shape=replace(TINY, vocabulary=2048))


MODELS = (
    Large(
        "Mistral-7B shape",
        "mistral",
        "mistral_7b_instruct_v0_2",
        Shape(32, 4096, 32, 8, 128, 14336, 32000, 4096),
        1e6,
    ),
    Large(
        "Llama-3.1-8B shape",
        "llama",
        "llama_3_1_8b",
        Shape(32, 4096, 32, 8, 128, 14336, 128256, 4096),
        5e5,
    ),
)


def write_folder(folder: Path, large: Large, texts: list[str]) -> ModelSource:
    """A folder with the model's config.json and a tokenizer learnt from the texts: bytes and their pairs,
    which cuts English about as fine as the published ones. The model's text never ends by itself."""
    folder.mkdir(parents=True)
    told = large.shape.config(dtype="bfloat16").to_dict() | {
        "model_type": large.architecture,
        "architectures": [f"{large.architecture.capitalize()}ForCausalLM"],
        "rope_parameters": {"rope_type": "default", "rope_theta": large.rope},
    }
    if large.architecture == "mistral":
        told["sliding_window"] = None
    (folder / "config.json").write_text(json.dumps(told), encoding="utf-8")
    _tokenizer(texts, large.shape.vocabulary).save(str(folder / "tokenizer.json"))
    words = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<bos>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(words), encoding="utf-8")
    return source_of(folder, large.shape, large.yaml, large.architecture)


def _tokenizer(texts: list[str], most: int) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=min(most, 8000),
        special_tokens=["<pad>", "<unk>", "<bos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


@contextmanager
def random_weights(seed: int = 0) -> Iterator[None]:
    """While it lasts, loading a model makes one of its config.json with random weights, on the device at
    once, in place of reading files."""

    def made(path: str, *, dtype: torch.dtype, attn_implementation: str, **_: object) -> tuple[Any, Any]:
        config = AutoConfig.from_pretrained(path)
        torch.manual_seed(seed)
        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
            model = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
                config, dtype=dtype, attn_implementation=attn_implementation
            )
        return model, {"missing_keys": [], "unexpected_keys": [], "mismatched_keys": []}

    with (
        patch.object(AutoModelForCausalLM, "from_pretrained", made),
        patch.object(loading, "of_weights", lambda folder: f"random weights {seed}"),
    ):
        yield
