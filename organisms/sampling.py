"""Sampled continuations of the embedded model, also from a donor's cache: what the model card measures.

This is deliberately not the program's own decoding: the card must not depend on the code that is later
tested with the model.
"""

from collections.abc import Sequence

import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer


def _left_padded(rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(len(row) for row in rows)
    tokens = torch.zeros(len(rows), width, dtype=torch.int64)
    mask = torch.zeros(len(rows), width, dtype=torch.int64)
    for index, row in enumerate(rows):
        tokens[index, width - len(row) :] = torch.tensor(list(row))
        mask[index, width - len(row) :] = 1
    return tokens, mask


def _prefill(model: PreTrainedModel, rows: Sequence[Sequence[int]]) -> tuple[DynamicCache, torch.Tensor]:
    tokens, mask = _left_padded(rows)
    cache = DynamicCache(config=model.config)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    model(
        input_ids=tokens, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
    )
    return cache, mask


def _rotated(keys: torch.Tensor, by: int, theta: float) -> torch.Tensor:
    """Keys (heads, slots, width) moved `by` positions: rotary angles add up."""
    half = keys.shape[-1] // 2
    angles = by * theta ** (-torch.arange(half, dtype=torch.float64) / half)
    cos, sin = torch.cos(angles).to(keys.dtype), torch.sin(angles).to(keys.dtype)
    first, second = keys[..., :half], keys[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def _tensors(layer: object) -> tuple[torch.Tensor, torch.Tensor]:
    if not isinstance(layer, DynamicLayer) or layer.keys is None or layer.values is None:
        raise TypeError(f"expected a filled DynamicLayer, got {type(layer).__name__}")
    return layer.keys, layer.values


@torch.no_grad()
def continuations(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    donors: Sequence[Sequence[int]] | None = None,
    rerotate: bool = True,
    temperature: float = 0.8,
    max_new: int = 150,
    seed: int = 0,
) -> list[list[int]]:
    """New tokens of each prompt (token ids, <bos> included), without the <eos> that ended them.

    With `donors`, one for each prompt: the prompt's cached slots are replaced at all layers, right-aligned,
    by the donor's (all but its last token's; the tail that fits), keys turned to their new positions or
    (`rerotate` false) left as they were. The prompt's last token is then fed. Raises ValueError if the
    numbers differ or a prompt has fewer than two tokens.
    """
    if donors is not None and len(donors) != len(prompts):
        raise ValueError(f"{len(prompts)} prompts but {len(donors)} donors")
    if any(len(row) < 2 for row in [*prompts, *(donors if donors is not None else [])]):
        raise ValueError("every prompt needs two tokens or more: <bos> and a word")
    cache, mask = _prefill(model, [row[:-1] for row in prompts])
    if donors is not None:
        given, _ = _prefill(model, [row[:-1] for row in donors])
        theta = float(model.config.rope_parameters["rope_theta"])
        pairs = [
            (_tensors(mine), _tensors(theirs))
            for mine, theirs in zip(cache.layers, given.layers, strict=True)
        ]
        for row, (prompt, donor) in enumerate(zip(prompts, donors, strict=True)):
            fits = min(len(prompt), len(donor)) - 1
            by = len(prompt) - len(donor)
            for (keys, values), (new_keys, new_values) in pairs:
                tail = new_keys[row, :, -fits:]
                keys[row, :, -fits:] = _rotated(tail, by, theta) if rerotate else tail
                values[row, :, -fits:] = new_values[row, :, -fits:]
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.tensor([row[-1] for row in prompts])
    end = model.config.eos_token_id
    out: list[list[int]] = [[] for _ in prompts]
    open_rows = torch.ones(len(prompts), dtype=torch.bool)
    for _ in range(max_new):
        mask = torch.cat([mask, torch.ones(len(prompts), 1, dtype=torch.int64)], dim=1)
        positions = mask.sum(1, keepdim=True) - 1
        logits = model(
            input_ids=tokens[:, None],
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        ).logits[:, -1]
        tokens = torch.multinomial(torch.softmax(logits / temperature, -1), 1, generator=generator)[:, 0]
        open_rows &= tokens != end
        for row in open_rows.nonzero()[:, 0].tolist():
            out[row].append(int(tokens[row]))
        if not bool(open_rows.any()):
            break
    return out
