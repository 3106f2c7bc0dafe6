"""One forward over a left-padded batch, with every mask and position explicit."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from backends.torch.cache import SlotCache
from backends.torch.loading import Loaded


def attention_mask(loaded: Loaded, allowed: torch.Tensor) -> torch.Tensor:
    """A boolean mask [rows, queries, keys] in the form that the attention implementation reads."""
    mask = allowed[:, None]
    if loaded.info.attention == "sdpa":
        return mask
    floor = torch.finfo(loaded.model.dtype).min
    return torch.zeros(mask.shape, dtype=loaded.model.dtype, device=mask.device).masked_fill(~mask, floor)


def within_window(loaded: Loaded, queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor | bool:
    """True where a key is close enough for the model's sliding window (positions broadcast)."""
    return True if loaded.window is None else (queries - keys) < loaded.window


def call(
    loaded: Loaded,
    ids: torch.Tensor,
    positions: torch.Tensor,
    allowed: torch.Tensor,
    cache: SlotCache | None,
    keep: int = 1,
) -> torch.Tensor:
    """Logits [rows, keep, vocabulary] of the last `keep` positions.

    ids, positions: [rows, queries]; allowed: bool [rows, queries, keys].
    """
    return _run(loaded, {"input_ids": ids}, positions, allowed, cache, keep)


def call_embedded(
    loaded: Loaded,
    embeddings: torch.Tensor,
    positions: torch.Tensor,
    allowed: torch.Tensor,
    cache: SlotCache | None,
) -> torch.Tensor:
    """As `call`, from embeddings [rows, queries, width] in place of token ids."""
    return _run(loaded, {"inputs_embeds": embeddings}, positions, allowed, cache, 1)


def _run(
    loaded: Loaded,
    inputs: dict[str, torch.Tensor],
    positions: torch.Tensor,
    allowed: torch.Tensor,
    cache: SlotCache | None,
    keep: int,
) -> torch.Tensor:
    logits: torch.Tensor = loaded.model(
        **inputs,
        attention_mask=attention_mask(loaded, allowed),
        position_ids=positions,
        past_key_values=cache,
        use_cache=cache is not None,
        logits_to_keep=keep,
    ).logits
    return logits


def new_cache(loaded: Loaded, rows: int, slots: int) -> SlotCache:
    """Empty slots for a batch."""
    return SlotCache.empty(loaded.layer_places, rows, loaded.info.kv_heads, slots, loaded.info.head_width)


def pad_left(loaded: Loaded, sequences: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids [rows, longest] and the padding [rows] in front of each."""
    longest = max(len(s) for s in sequences)
    ids = torch.zeros(len(sequences), longest, dtype=torch.int64)
    for index, sequence in enumerate(sequences):
        if sequence:
            ids[index, longest - len(sequence) :] = torch.tensor(sequence)
    pads = torch.tensor([longest - len(s) for s in sequences], dtype=torch.int64)
    return ids.to(loaded.device), pads.to(loaded.device)


def prompt_geometry(
    loaded: Loaded, pads: torch.Tensor, length: int, past: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions [rows, length] and the causal mask [rows, length, past + length] of left-padded prompts.

    past: cached tokens that all rows share, in front of the padding. A padding query sees itself alone, so
    that no softmax is empty; no real query ever sees padding.
    """
    slot = torch.arange(length, device=pads.device)
    positions = past + (slot[None, :] - pads[:, None]).clamp_min(0)
    real = slot[None, :] >= pads[:, None]
    causal = slot[:, None] >= slot[None, :]
    near = within_window(loaded, slot[:, None], slot[None, :])
    allowed = causal[None] & real[:, None, :] & near
    allowed = allowed | torch.eye(length, dtype=torch.bool, device=pads.device)[None]
    if past:
        shared = real[:, :, None] & within_window(
            loaded, positions[:, :, None], torch.arange(past, device=pads.device)[None, None, :]
        )
        allowed = torch.cat([shared.expand(-1, -1, past), allowed], dim=-1)
    return positions, allowed


def prefill(
    loaded: Loaded,
    sequences: Sequence[Sequence[int]],
    cache: SlotCache | None,
    keep: int = 1,
    past: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run whole prompts, or what follows `past` shared tokens that the cache already holds; returns logits
    of the last `keep` positions and the padding [rows]."""
    ids, pads = pad_left(loaded, sequences)
    positions, allowed = prompt_geometry(loaded, pads, ids.shape[1], past)
    return call(loaded, ids, positions, allowed, cache, keep), pads
