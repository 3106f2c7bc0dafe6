"""The cache that a batch decodes from: the target's own slots, with the kv_cache writes of each row
applied."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from backends.contract import BackendError
from backends.needs import CACHED
from backends.rowplan import RowPlan, WritePlan, noise_stream
from backends.rows import SourceRun
from backends.torch.cache import SlotCache, SlotLayer, rotate
from backends.torch.edits import Tallies
from backends.torch.loading import MOVING, Loaded
from backends.torch.sampling import keys_at, split_stream
from backends.torch.sources import Sources
from backends.torch.touches import Tally, matched_noise, operate, relative_change
from backends.writes import Write


@dataclass(frozen=True)
class Prefilled:
    """The prefilled caches of a batch's distinct prompts. row_of: for each row of the batch, its row here.
    shared: slots of a common prefix, which stand in front of the padding."""

    cache: SlotCache | None
    row_of: torch.Tensor
    length: int
    shared: int = 0


@dataclass(frozen=True)
class SlotMap:
    """Where each slot of the new cache comes from. index: [rows, slots] into the (left-padded) origin;
    chosen: bool [rows, slots]; shift: [rows, slots] positions that a key moves by."""

    index: torch.Tensor
    chosen: torch.Tensor
    shift: torch.Tensor


def check_rope(loaded: Loaded, writes: Sequence[Write]) -> None:
    """Keys can be moved only where positions are rotary, with frequencies that are fixed. Raises BackendError
    otherwise."""
    moving = any(write.moves_keys for write in writes)
    fixed = loaded.layout.facts.fixes_keys
    if moving and fixed is not None:
        raise BackendError(f"model '{loaded.info.name}': {fixed}")
    if moving and loaded.rotary_kind in MOVING:
        raise BackendError(
            f"model '{loaded.info.name}': its keys cannot be re-rotated (rotary embedding: "
            f"{loaded.rotary_kind}, whose frequencies depend on the length of the text); use rope: keep"
        )


def assemble(
    loaded: Loaded,
    sources: Sources,
    plans: Sequence[RowPlan],
    before: Prefilled,
    extra: int,
    tallies: Tallies,
    structural: bool = True,
    running: Sequence[int] | None = None,
) -> tuple[SlotCache, torch.Tensor]:
    """The batch's cache with room for `extra` further tokens, and the padding [rows] in front of each row.

    Rows are left-padded, so that the last slot of all rows is the same. Without structural writes (align
    whole, concat) their rows have the target's own cache. running: per layer, how many rows, the first of the
    batch, will ever read their slots; the others have none. None: all.
    """
    slots = [plan.slots if structural else len(plan.prefill_ids) for plan in plans]
    total = max(slots)
    pads = torch.tensor([total - s for s in slots], dtype=torch.int64, device=loaded.device)
    outside = torch.arange(total, device=loaded.device)[None] < pads[:, None]
    padded = bool(outside.any())
    moving = before.shared > 0 or before.length != total
    if moving or (structural and any(plan.structural is not None for plan in plans)):
        base = _base_map(plans, before, slots, total, structural)
    else:
        base = None
    groups = _groups(plans, structural)
    maps = {write: _write_map(plans, write, rows, total, slots) for write, rows in groups.items()}
    for write in groups:
        tallies.setdefault(("prefill", write), Tally(len(write.layers), len(plans), loaded.device))
    layers = []
    for layer in range(loaded.info.layers):
        device, dtype = loaded.layer_places[layer]
        shape = (len(plans), loaded.info.kv_heads, total + extra, loaded.info.head_width)
        pair = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(2)]
        if before.cache is not None and before.length:
            old = before.cache.slot_layer(layer)
            rows = before.row_of.to(device)
            count = len(plans) if running is None else running[layer]
            for side, (part, origin) in enumerate((("keys", old.keys), ("values", old.values))):
                assert origin is not None
                if base is None:
                    # No copy on the way: the slots stand in their order, behind the padding.
                    into = pair[side][:count, :, :total]
                    torch.index_select(origin, 0, rows[:count], out=into)
                    if padded:
                        into.masked_fill_(outside.to(device)[:count, None, :, None], 0)
                    continue
                taken = _gather(origin, rows, base, device)
                if part == "keys" and bool(base.shift.any()):
                    taken = _turn(loaded, layer, taken, base.shift)
                pair[side][:, :, :total] = torch.where(base.chosen.to(device)[:, None, :, None], taken, 0)
        for write, rows_of_write in groups.items():
            if layer in write.layers:
                _apply(
                    loaded,
                    sources,
                    plans,
                    write,
                    rows_of_write,
                    maps[write],
                    layer,
                    pair,
                    total,
                    tallies,
                    pads,
                )
        layers.append(SlotLayer(pair[0], pair[1], total))
    return SlotCache(layers), pads


def _groups(plans: Sequence[RowPlan], structural: bool) -> dict[Write, list[int]]:
    groups: dict[Write, list[int]] = {}
    for index, plan in enumerate(plans):
        for item in plan.kv:
            if structural or item.write.has_old:
                groups.setdefault(item.write, []).append(index)
    return dict(sorted(groups.items(), key=lambda entry: entry[0].order))


def _base_map(
    plans: Sequence[RowPlan], before: Prefilled, slots: Sequence[int], total: int, with_structural: bool
) -> SlotMap:
    index = np.zeros((len(plans), total), dtype=np.int64)
    chosen = np.zeros((len(plans), total), dtype=bool)
    shift = np.zeros((len(plans), total), dtype=np.int64)
    for row, plan in enumerate(plans):
        structural = plan.structural if with_structural else None
        own = len(plan.prefill_ids)
        if structural is not None and structural.write.align == "whole":
            continue
        origin = np.arange(before.length - own, before.length)
        origin[: before.shared] = np.arange(before.shared)
        index[row, total - own :] = origin
        chosen[row, total - own :] = True
        if structural is not None and structural.write.rope == "rerotate":
            shift[row, total - own :] = slots[row] - own
    return SlotMap(torch.from_numpy(index), torch.from_numpy(chosen), torch.from_numpy(shift))


def _write_map(
    plans: Sequence[RowPlan], write: Write, rows: Sequence[int], total: int, slots: Sequence[int]
) -> tuple[SlotMap, list[SourceRun]]:
    """The slot map of one write, for its rows, into the tokens of its distinct sources side by side; and
    those sources."""
    first: dict[SourceRun, int] = {}
    filled = 0
    index = np.zeros((len(rows), total), dtype=np.int64)
    chosen = np.zeros((len(rows), total), dtype=bool)
    shift = np.zeros((len(rows), total), dtype=np.int64)
    for place, row in enumerate(rows):
        item = _item(plans[row], write)
        assert item.slots is not None
        target = item.slots.target + (total - slots[row])
        chosen[place, target] = True
        if item.source is not None and item.slots.source is not None:
            if item.source not in first:
                first[item.source] = filled
                filled += len(item.source.ids)
            index[place, target] = item.slots.source + first[item.source]
            if write.rope == "rerotate":
                shift[place, target] = item.slots.target - item.slots.source
    found = SlotMap(torch.from_numpy(index), torch.from_numpy(chosen), torch.from_numpy(shift))
    return found, list(first)


def _item(plan: RowPlan, write: Write) -> WritePlan:
    return plan.plan_of(write)


def _gather(origin: torch.Tensor, rows: torch.Tensor, at: SlotMap, device: torch.device) -> torch.Tensor:
    """origin [n, heads, slots, width] -> [rows, heads, new slots, width]."""
    index = at.index.to(device)[:, None, :, None].expand(-1, origin.shape[1], -1, origin.shape[3])
    return origin[rows].gather(2, index)


def _turn(loaded: Loaded, layer: int, keys: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    assert loaded.inverse_frequencies is not None
    moved = shift.to(keys.device)
    turned = rotate(keys, moved, loaded.inverse_frequencies[layer])
    return torch.where(
        (moved != 0)[:, None, :, None], turned, keys
    )  # an unmoved key stays as it is, bit for bit


def _apply(
    loaded: Loaded,
    sources: Sources,
    plans: Sequence[RowPlan],
    write: Write,
    rows: Sequence[int],
    mapped: tuple[SlotMap, list[SourceRun]],
    layer: int,
    pair: list[torch.Tensor],
    total: int,
    tallies: Tallies,
    pads: torch.Tensor,
) -> None:
    at, distinct = mapped
    device = pair[0].device
    index = torch.tensor(rows, device=device)
    chosen = at.chosen.to(device)
    place = write.layers.index(layer)
    heads = torch.ones(loaded.info.kv_heads, dtype=torch.bool, device=device)
    if write.heads is not None:
        heads[:] = False
        heads[list(write.heads.indices)] = True
    changes = []
    for side, part in enumerate(("keys", "values")):
        if write.part not in (part, "both"):
            continue
        old = pair[side][index, :, :total]
        value = None
        if write.value.kind == "random":
            value = _random(plans, write, rows, layer, part, old, pads)
        elif write.value.has_source:
            flat = _side_by_side(sources, distinct, layer, side).to(device)
            value = flat[:, at.index.to(device)].transpose(0, 1)
            if part == "keys" and bool(at.shift.any()):
                value = _turn(loaded, layer, value, at.shift)
        new = operate(write.op, old, value, write.alpha)
        new = torch.where(chosen[:, None, :, None] & heads[None, :, None, None], new, old)
        pair[side][index, :, :total] = new
        limited = (old[:, heads], new[:, heads])
        changes.append(relative_change(*(t.transpose(1, 2).flatten(2) for t in limited)))
    flat = chosen.nonzero()
    tallies[("prefill", write)].add(place, index[flat[:, 0]], torch.stack(changes).mean(0)[chosen], None)


def _side_by_side(sources: Sources, distinct: Sequence[SourceRun], layer: int, side: int) -> torch.Tensor:
    """Distinct sources' keys (side 0) or values (1) of a layer: [kv heads, tokens of all, width]."""
    spot = (CACHED[side], layer)
    return torch.cat([sources.get(run).sites[spot] for run in distinct], dim=1)


def _random(
    plans: Sequence[RowPlan],
    write: Write,
    rows: Sequence[int],
    layer: int,
    part: str,
    old: torch.Tensor,
    pads: torch.Tensor,
) -> torch.Tensor:
    count, heads, slots, width = old.shape
    high, low = split_stream([noise_stream(plans[r].row, write, layer, part) for r in rows], old.device)
    at = torch.arange(slots, device=old.device)[None, :] - pads.to(old.device)[torch.tensor(rows)][:, None]
    keys = keys_at(high[:, None], low[:, None], at.clamp_min(0)).flatten()
    flat = old.transpose(1, 2).reshape(count * slots, heads * width)
    return matched_noise(flat, keys, width).view(count, slots, heads, width).transpose(1, 2)
