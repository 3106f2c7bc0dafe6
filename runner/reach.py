"""Which states of a prompt and its continuation a write can change: positions, layers, sites; no tensors.

Blocks are taken to be sequential, and attention to be causal and unlimited. Where a model's attention has a
window, or its blocks are parallel, less depends on a write than stands here, never more: what is said to be
out of reach is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from backends.rowplan import RowPlan
from backends.writes import Write

Mask = NDArray[np.bool_]
# What these are matched to is what they replace, so that an earlier write is not gone.
_DEPENDS = ("random", "orthogonal")


@dataclass(frozen=True)
class Flow:
    """What one write can change in one row of T prompt tokens.

    at: (site, layer) -> [T], whether the state at each prompt position can differ; logits: [T]. Positions
    0..T-2 are those of the prefill; the last is that of the forward that feeds the last prompt token (again,
    where it is replayed), after cache writes. onward: whether a decode step can differ.
    """

    at: Mapping[tuple[str, int], Mask]
    logits: Mask
    onward: bool


def flow_of(
    plan: RowPlan, write: Write, layers: int, *, others: bool = True, everywhere: bool = False
) -> Flow:
    """What `write` can change in the row of a plan, on a model of `layers` layers.

    others: whether what another write of the row wholly overwrites on another tensor counts as gone. Two
    writes on one tensor, and cache slots, are left to the receipts, which count them as shadowed.
    everywhere: as if it were at every position of the prompt.
    """
    prompt, before = len(plan.row.ids), len(plan.prefill_ids)
    item = plan.plan_of(write)
    touched = _touched(plan, write, everywhere)
    gone = _overwritten(plan, write, prompt) if others else {}
    states = _forward(before, layers, _cut(touched, 0, before), _cut(gone, 0, before), None)
    cached = {
        part: np.array([bool(states[f"{part}_proj", layer].any()) for layer in range(layers)])
        for part in "kv"
    }
    if item.slots is not None and len(item.slots.target):
        for part, name in (("k", "keys"), ("v", "values")):
            if write.part in (name, "both"):
                cached[part][list(write.layers)] = True
    if plan.row.replay_last_token:
        # The token fed again is the first decode forward: writes on the prompt do not touch it.
        acts = write.during != "prefill" and write.min_positions <= 1
        spots = [(write.tensor, layer) for layer in write.layers] if acts else []
        last = _forward(1, layers, {spot: np.ones(1, bool) for spot in spots}, {}, (plan.slots, cached))
    else:
        here = (_cut(touched, prompt - 1, prompt), _cut(gone, prompt - 1, prompt))
        last = _forward(1, layers, *here, (plan.slots, cached))
    whole = {spot: np.append(states[spot][: prompt - 1], last[spot]) for spot in last}
    kept = any(bool(last[f"{part}_proj", layer][0]) for part in "kv" for layer in range(layers))
    onward = write.during != "prefill" or kept or any(bool(each.any()) for each in cached.values())
    return Flow(whole, whole["logits", layers - 1], onward)


def _forward(
    count: int,
    layers: int,
    touched: Mapping[tuple[str, int], Mask],
    gone: Mapping[tuple[str, int], Mask],
    cache: tuple[int, Mapping[str, Mask]] | None,
) -> dict[tuple[str, int], Mask]:
    """One forward over `count` positions. cache: the number of slots before them, and per layer whether a
    key (`k`) or value (`v`) in one of them differs."""
    nothing = np.zeros(count, bool)
    slots, keys, values = (0, None, None) if cache is None else (cache[0], cache[1]["k"], cache[1]["v"])
    # Over a single key the softmax is 1, whatever query and key are.
    several = np.arange(count) + slots > 0
    states: dict[tuple[str, int], Mask] = {}

    def at(site: str, layer: int, before: Mask) -> Mask:
        spot = (site, layer)
        found = (before & ~gone.get(spot, nothing)) | touched.get(spot, nothing)
        states[spot] = found
        return found

    x = at("embed", 0, nothing)
    for layer in range(layers):
        x = at("resid_pre", layer, x)
        q, k, v = (at(site, layer, x) for site in ("q_proj", "k_proj", "v_proj"))
        weights = q | np.logical_or.accumulate(k) | touched.get(("attention_edge", layer), nothing)
        mixed = np.logical_or.accumulate(v)
        if keys is not None and values is not None:
            weights, mixed = weights | keys[layer], mixed | values[layer]
        z = at("head_z", layer, (weights & several) | mixed)
        normed = at("attn_out_normed", layer, at("attn_out", layer, z))
        middle = at("resid_mid", layer, x | normed)
        out = at("mlp_out_normed", layer, at("mlp_out", layer, middle))
        x = at("resid_post", layer, middle | out)
    at("logits", layers - 1, x)
    return states


def written_positions(plan: RowPlan, write: Write) -> Mask:
    """The prompt positions [T] that a write changes in place; of attention_edge the queries that have an edge
    to lose. Empty for kv_cache and for writes in decode alone."""
    found = np.zeros(len(plan.row.ids), bool)
    pairs = plan.plan_of(write).prefill
    if pairs is None or write.during == "decode":
        return found
    found[pairs.target[pairs.target < len(found)]] = True
    keys = plan.plan_of(write).keys
    if keys is not None:
        found[: keys.min(initial=len(found))] = False
    return found


def overwrites(write: Write) -> bool:
    """Whether a write leaves nothing of the tensor at its positions: single heads, and features that are set
    to zero, are parts of it."""
    return write.overwrites and write.heads is None and write.features is None


def _touched(plan: RowPlan, write: Write, everywhere: bool) -> dict[tuple[str, int], Mask]:
    if write.site == "kv_cache":
        return {}
    positions = np.ones(len(plan.row.ids), bool) if everywhere else written_positions(plan, write)
    return {(write.tensor, layer): positions for layer in write.layers}


def _overwritten(plan: RowPlan, write: Write, prompt: int) -> dict[tuple[str, int], Mask]:
    """Per site and layer, the positions of which the row's other writes leave nothing."""
    found: dict[tuple[str, int], Mask] = {}
    for item in plan.writes:
        other = item.write
        matched = other.value.kind in _DEPENDS and other.value.constant is None
        whole = overwrites(other) and not matched
        if other == write or not whole or other.site == "kv_cache":
            continue
        for layer in other.layers:
            spot = (other.tensor, layer)
            if write.tensor == other.tensor and layer in write.layers:
                continue
            found[spot] = found.get(spot, np.zeros(prompt, bool)) | written_positions(plan, other)
    return found


def _cut(masks: Mapping[tuple[str, int], Mask], start: int, stop: int) -> dict[tuple[str, int], Mask]:
    return {spot: mask[start:stop] for spot, mask in masks.items()}
