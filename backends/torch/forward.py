"""One forward over a left-padded batch, with every mask and position explicit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from backends.torch.attention import takes_over
from backends.torch.cache import SlotCache
from backends.torch.loading import FULL, SLIDING, Loaded

ALL = 0  # as a number of positions to keep: of all of them


@dataclass(frozen=True)
class Geometry:
    """Where the tokens of a forward stand, and which keys each may see, sliding windows aside.

    positions: of the queries, [rows, queries]; keys: positions of the keys, [rows, keys]; allowed: bool
    [rows, queries, keys].
    """

    positions: torch.Tensor
    keys: torch.Tensor
    allowed: torch.Tensor


def attention_masks(loaded: Loaded, at: Geometry) -> torch.Tensor | dict[str, torch.Tensor]:
    """Masks [rows, 1, queries, keys] in the form that the attention implementation reads, bool or numbers to
    add to the scores: one, or, where sliding layers and others alternate, one for each kind."""
    masks = {window: _mask(loaded, at, window) for window in dict.fromkeys(loaded.windows)}
    if len(masks) == 1:
        return masks[loaded.windows[0]]
    return {FULL if window is None else SLIDING: mask for window, mask in masks.items()}


def _mask(loaded: Loaded, at: Geometry, window: int | None) -> torch.Tensor:
    seen = at.allowed
    if window is not None:
        seen = seen & (at.positions[:, :, None] - at.keys[:, None, :] < window)
    mask, dtype = seen[:, None], loaded.model.dtype
    if loaded.info.attention != "sdpa":
        floor = torch.finfo(dtype).min
    elif takes_over(dtype, mask.device):
        floor = -torch.inf  # what the fused attention would make of a bool mask, once in every layer
    else:
        return mask
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, floor)


def call(
    loaded: Loaded, ids: torch.Tensor, at: Geometry, cache: SlotCache | None, keep: int = 1
) -> torch.Tensor:
    """Logits [rows, keep, vocabulary] of the last `keep` positions, or ALL. ids: [rows, queries]."""
    logits: torch.Tensor = loaded.model(
        input_ids=ids,
        attention_mask=attention_masks(loaded, at),
        position_ids=at.positions,
        past_key_values=cache,
        use_cache=cache is not None,
        logits_to_keep=keep,
    ).logits
    return logits


def call_whole(loaded: Loaded, ids: torch.Tensor) -> torch.Tensor:
    """Logits [rows, queries, vocabulary] of whole texts, ids [rows, queries], each of which begins in the
    first column: they need no mask but that a token sees none behind it, which transformers adds, or leaves
    to the fused attention."""
    logits: torch.Tensor = loaded.model(input_ids=ids, use_cache=False, logits_to_keep=ALL).logits
    return logits


def new_cache(loaded: Loaded, rows: int, slots: int) -> SlotCache:
    """Empty slots for a batch."""
    return SlotCache.empty(loaded.layer_places, rows, loaded.info.kv_heads, slots, loaded.info.head_width)


def pad_left(loaded: Loaded, sequences: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids [rows, longest] and the padding [rows] in front of each."""
    lengths = np.array([len(s) for s in sequences])
    longest = int(lengths.max())
    ids = np.zeros((len(sequences), longest), dtype=np.int64)
    ids[np.arange(longest) >= longest - lengths[:, None]] = [token for s in sequences for token in s]
    return torch.from_numpy(ids).to(loaded.device), torch.from_numpy(longest - lengths).to(loaded.device)


def prompt_geometry(pads: torch.Tensor, length: int, past: int = 0) -> Geometry:
    """Positions and causal sight of left-padded prompts of `length` tokens, padding included.

    past: cached tokens that all rows share, in front of the padding. A padding query sees itself alone, so
    that no softmax is empty; no real query ever sees padding.
    """
    slot = torch.arange(length, device=pads.device)
    positions = past + (slot[None, :] - pads[:, None]).clamp_min(0)
    real = slot[None, :] >= pads[:, None]
    causal = slot[:, None] >= slot[None, :]
    allowed = causal[None] & real[:, None, :]
    allowed = allowed | torch.eye(length, dtype=torch.bool, device=pads.device)[None]
    shared = torch.arange(past, device=pads.device).expand(len(pads), -1)
    return Geometry(
        positions=positions,
        keys=torch.cat([shared, positions], dim=-1),
        allowed=torch.cat([real[:, :, None].expand(-1, -1, past), allowed], dim=-1),
    )


def token_geometry(positions: torch.Tensor, pads: torch.Tensor, slots: int) -> Geometry:
    """One token a row, at `positions` [rows], which sees its row's slots: all `slots` but the padding
    [rows]."""
    keys = torch.arange(slots, device=pads.device)[None, :] - pads[:, None]
    return Geometry(positions[:, None], keys, (keys >= 0)[:, None])


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
    return call(loaded, ids, prompt_geometry(pads, ids.shape[1], past), cache, keep), pads
