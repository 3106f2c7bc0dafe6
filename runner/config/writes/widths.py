"""How wide the rows of a site are, and which sites are divided into heads."""

from __future__ import annotations

from runner.config.spec import ModelSpec

QUERY_SITES = ("q_proj", "head_z", "attention_edge")
KV_SITES = ("k_proj", "v_proj", "kv_cache")


def width_of(site: str, model: ModelSpec) -> int | None:
    """Numbers in a row of a site's tensor; None where only the weights say."""
    if site == "logits":
        return model.vocabulary
    if site in KV_SITES:
        return model.kv_heads * model.head_width
    return model.heads * model.head_width if site in QUERY_SITES else model.width
