"""Means of activations taken by hand, without the stage machinery: what an artefact is held against."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np

from backends.contract import Backend
from backends.hub import fetch
from backends.rows import GREEDY, Row
from backends.tokenizer import Tokenizer
from runner.config.check import check
from runner.config.compose import compose
from runner.config.folders import conf_dir
from runner.config.resolve import resolve
from runner.model_source import load_backend, model_source
from runner.prompts.banks import read_bank


@cache
def organism() -> tuple[Backend, Tokenizer]:
    """The embedded model, answering requests."""
    words = ["+experiment=validation", "limit=1"]
    design = resolve(check(compose(words, None)))
    source = fetch(model_source(design))
    return load_backend(source, design), Tokenizer.load(source, True)


def means_by_hand(items: Sequence[Sequence[str]], positions: Sequence[int]) -> np.ndarray:
    """Mean resid_pre of donors less that of targets, [positions, layers, width], in float64, one prompt at a
    time. items: ids of donor and target."""
    backend, tokenizer = organism()
    bank = read_bank("refusal", conf_dir() / "prompts" / "banks" / "organism" / "refusal.jsonl")
    texts = {prompt.id: prompt.text for prompt in bank.prompts}
    layers = range(backend.info.layers)

    def state(identity: str) -> np.ndarray:
        row = Row(tokenizer.encode(texts[identity]), GREEDY)
        found = backend.capture([row], [("resid_pre", layer) for layer in layers])[0].activations
        return np.stack([found["resid_pre", layer][list(positions)] for layer in layers], axis=1)

    sides = [np.mean([state(item[side]).astype(np.float64) for item in items], axis=0) for side in (0, 1)]
    difference: np.ndarray = sides[0] - sides[1]
    return difference
