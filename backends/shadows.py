"""What becomes of a write once it has acted: what later writes leave of it, what its receipt tells."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from backends.rowplan import RowPlan, WritePlan
from backends.writes import Write


def keys_ahead(plan: RowPlan, item: WritePlan) -> int:
    """Copied keys whose rotary position lies after that of the first query (only with `rope: keep`)."""
    if (
        item.slots is None
        or item.slots.source is None
        or item.write.rope != "keep"
        or item.write.part == "values"
    ):
        return 0
    return int((item.slots.source > plan.slots).sum())


@dataclass(frozen=True)
class Shadow:
    """Positions of a write that a later one wholly overwrites: prompt positions, and whether every decode
    step."""

    prefill: int = 0
    decode: bool = False


def shadowed(plan: RowPlan, layers: int) -> dict[str, Shadow]:
    """What later writes leave nothing of, per write: later in rank on the same tensor, or in the cache."""
    if len(plan.writes) < 2 and not plan.row.replay_last_token:
        return {item.write.name: Shadow() for item in plan.writes}
    gone = {item.write.name: _overwritten(plan, item) for item in plan.writes}
    for name, targets in _lost_in_cache(plan, layers).items():
        gone[name] |= targets
    decode = {item.write.name: _decode_overwritten(plan, item.write) for item in plan.writes}
    return {name: Shadow(len(targets), decode[name]) for name, targets in gone.items()}


def _later(plan: RowPlan, write: Write) -> list[WritePlan]:
    """Writes at the same site that come after this one and leave nothing of what they cover."""
    return [
        item
        for item in plan.writes
        if item.write.tensor == write.tensor
        and item.write.order > write.order
        and item.write.overwrites
        and (item.write.heads is None or item.write.heads == write.heads)
    ]


def _overwritten(plan: RowPlan, item: WritePlan) -> set[int]:
    if item.prefill is None:
        return set()
    left = set(item.prefill.target.tolist())
    if item.write.tensor == "logits" and plan.row.replay_last_token:
        return left  # the first new token is drawn from the logits of the replayed one
    for layer in item.write.layers:
        covered: set[int] = set()
        for other in _later(plan, item.write):
            if other.prefill is not None and layer in other.write.layers:
                covered |= set(other.prefill.target.tolist())
        left &= covered
    return left


def _decode_overwritten(plan: RowPlan, write: Write) -> bool:
    if write.during == "prefill" or write.hold == "sliding":
        return False
    acting = [
        item.write
        for item in _later(plan, write)
        if item.write.during != "prefill" and item.write.hold != "lockstep" and item.write.min_positions <= 1
    ]
    return all(any(layer in other.layers for other in acting) for layer in write.layers)


def _lost_in_cache(plan: RowPlan, layers: int) -> dict[str, set[int]]:
    """Per write, the prefill positions whose every trace in the cache a kv_cache write overwrites.

    A write at layer l and position p < slots is read later only through keys and values at positions >= p:
    at layer l itself (k_proj, v_proj, resid_pre, embed) and at all layers above. kv_cache writes shadow
    earlier ones slot by slot.
    """
    out: dict[str, set[int]] = {}
    if plan.structural is not None:
        if plan.structural.write.align == "whole":
            for item in plan.writes:
                if item.prefill is not None:
                    out[item.write.name] = {
                        t for t in item.prefill.target.tolist() if t < len(plan.prefill_ids)
                    }
        return out
    ranked = sorted(plan.kv, key=lambda w: w.write.order)
    kv = [w for w in ranked if w.write.overwrites and w.write.heads is None]
    if not kv:
        return out
    slots = plan.slots
    covered = {part: np.zeros((layers, slots), dtype=bool) for part in ("keys", "values")}
    for item in reversed(kv):
        assert item.slots is not None
        parts = ("keys", "values") if item.write.part == "both" else (item.write.part,)
        mine = np.ix_(np.array(item.write.layers), item.slots.target)
        hidden = np.all([covered[part][mine].all(axis=0) for part in parts], axis=0)
        out[item.write.name] = set(item.slots.target[hidden].tolist())
        for part in parts:
            covered[part][mine] = True
    both = covered["keys"] & covered["values"]
    onward = np.logical_and.accumulate(both[:, ::-1], axis=1)[:, ::-1]  # every slot from p on
    above = np.ones((layers + 1, slots), dtype=bool)  # ... in every layer from l on
    above[:layers] = np.logical_and.accumulate(onward[::-1], axis=0)[::-1]
    for item in plan.writes:
        if item.prefill is None:
            continue
        target = item.prefill.target[item.prefill.target < slots]
        gone = np.ones(len(target), dtype=bool)
        for layer in item.write.layers:
            gone &= above[layer + 1][target]
            if item.write.site in ("k_proj", "v_proj"):
                gone &= covered["keys" if item.write.site == "k_proj" else "values"][layer][target]
            elif item.write.tensor in ("embed", "resid_pre"):
                gone &= both[layer][target]
        out[item.write.name] = set(target[gone].tolist())
    return out


def decode_asked(write: Write, forwards: int) -> int:
    """Positions that a write was asked to act on over a row's decode forwards."""
    if write.during == "prefill":
        return 0
    if write.hold == "sliding":
        return forwards * max(1, write.positions.count)
    return forwards
