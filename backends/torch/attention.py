"""Attention of forwards with one query a row, as every decode step is: what transformers' `sdpa` computes,
with the query heads of a KV head together, and without a mask made anew in every layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

# Under this name transformers finds the function; outside, results say `sdpa`, which it computes.
GROUPED = "patchbay_grouped"
# Up to so many KV heads, of all rows together, the fused attention is faster than three products.
_FEW = 32


def takes_over(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether single queries of a model that runs `sdpa` are attended here: in float32 on a CPU. Elsewhere
    torch's own kernels round otherwise, or are faster."""
    return dtype == torch.float32 and device.type == "cpu"


def grouped_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **more: Any,
) -> tuple[torch.Tensor, None]:
    """softmax(query keys^T * scaling + mask) values, [rows, queries, heads, width], as transformers'
    `sdpa_attention_forward` defines it.

    query: [rows, heads, queries, width]; key, value: [rows, kv heads, slots, width], of which no copy is made
    where they are views of a cache; attention_mask: float32, added to the scores, or bool, or None, [rows, 1
    or heads, queries, slots]. One query a row with numbers for a mask or none is computed here, its heads
    grouped over the KV heads that they read; everything else is transformers' own, and so is what `more`
    asks for: biases, caps.
    """
    rows, heads, queries, width = query.shape
    added = attention_mask is None or attention_mask.dtype == query.dtype == torch.float32
    if queries != 1 or not added or dropout > 0 or _asks_for_more(more):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **more
        )
    kv_heads, slots = key.shape[1], key.shape[2]
    group = heads // kv_heads
    grouped = query.reshape(rows, kv_heads, group, width)
    mask = attention_mask
    if mask is not None and mask.shape[1] != 1:
        mask = mask.view(-1, kv_heads, group, slots)
    if rows * kv_heads <= _FEW:
        found = nn.functional.scaled_dot_product_attention(
            grouped, key, value, attn_mask=mask, scale=scaling, dropout_p=0.0
        )
        return found.reshape(rows, 1, heads, value.shape[-1]), None
    scaled = grouped.flatten(0, 1) * (width**-0.5 if scaling is None else scaling)
    # A window of a cache's slots flattens to a view: its rows and heads lie at one distance.
    scores = torch.bmm(scaled, key.flatten(0, 1).transpose(1, 2))
    if mask is not None:
        by_head = scores.view(rows, kv_heads, group, slots)
        by_head += mask
    weights = scores.softmax(-1)
    return torch.bmm(weights, value.flatten(0, 1)).view(rows, 1, heads, value.shape[-1]), None


# What transformers passes to every attention function and what changes nothing here: a single query is the
# latest, and windows are in its mask.
_WITHOUT_EFFECT = ("is_causal", "sliding_window", "position_ids", "use_cache")


def _asks_for_more(more: dict[str, Any]) -> bool:
    return any(
        value is not None and value is not False and name not in _WITHOUT_EFFECT
        for name, value in more.items()
    )


AttentionInterface.register(GROUPED, grouped_attention)
AttentionMaskInterface.register(GROUPED, sdpa_mask)
