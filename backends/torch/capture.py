"""Activations of whole prompts, clean or with prefill writes, from their beginning or from a start."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from backends.contract import BackendError, Reduce, Start
from backends.rowplan import RowPlan
from backends.torch.cache import SlotCache
from backends.torch.edits import Prompted, Tallies, prompt_touches
from backends.torch.forward import new_cache, pad_left, prefill, prompt_geometry
from backends.torch.hooks import Board, Spot, keep_in
from backends.torch.loading import Loaded
from backends.torch.prefix import PrefixRun, check_start, expanded, last_token_from
from backends.torch.sources import Sources

Found = dict[tuple[str, int], torch.Tensor]


@torch.inference_mode()
def capture_prompts(
    loaded: Loaded,
    board: Board,
    sources: Sources,
    plans: Sequence[RowPlan],
    sites: Sequence[tuple[str, int]],
    start: Start | None,
) -> list[Found]:
    """Per row, (site, layer) -> [positions computed, width]. Raises as `TorchBackend.capture` does."""
    prompts = [plan.row.ids for plan in plans]
    writes = [w for plan in plans for w in plan.row.writes]
    if any(w.site == "kv_cache" for w in writes):
        raise BackendError("capture: kv_cache writes come after the prompt, where nothing is captured")
    past, cache = 0, new_cache(loaded, len(plans), max(map(len, prompts)))
    if start is not None:
        check_start(start, prompts, writes, loaded.info.layers)
        assert isinstance(start.prefix.handle, PrefixRun)
        past = min(len(start.prefix.ids), *(len(ids) - 1 for ids in prompts))
        more = max(map(len, prompts)) - past
        cache = expanded(loaded, start.prefix.handle, len(plans), past, more)
    longest = max(map(len, prompts))
    entries = []
    for index, plan in enumerate(plans):
        for item in plan.writes:
            if item.prefill is not None:
                if (item.prefill.target < past).any():
                    raise BackendError(f"start: {item.write.name} would write into the prefix")
                entries.append(
                    Prompted(plan, item, item.prefill, index, index, longest - len(plan.row.ids) - past)
                )
    wanted: list[Spot] = [(site, layer) for site, layer in sites if site != "kv_cache"]
    seen: dict[Spot, torch.Tensor] = {}
    with board.armed({(w.site, layer) for w in writes for layer in w.layers} | set(wanted)):
        tallies: Tallies = {}
        board.touches = prompt_touches(loaded, sources, entries, tallies, len(plans))
        for spot in wanted:
            board.taps[spot] = keep_in(seen, spot)
        rest = [ids[past:] for ids in prompts]
        if start is not None and start.layer > 0:
            _, pads = pad_left(loaded, rest)
            last_token_from(loaded, start, cache, prompt_geometry(pads, 1, past))
        else:
            _, pads = prefill(loaded, rest, cache, past=past)
    return [_row(cache, seen, sites, index, past, pad) for index, pad in enumerate(pads.tolist())]


def _row(
    cache: SlotCache,
    seen: dict[Spot, torch.Tensor],
    sites: Sequence[tuple[str, int]],
    index: int,
    past: int,
    pad: int,
) -> Found:
    found: Found = {}
    for site, layer in sites:
        if site == "kv_cache":
            slots = cache.slot_layer(layer)
            assert slots.keys is not None and slots.values is not None
            both = [t[index, :, past + pad :].transpose(0, 1).flatten(1) for t in (slots.keys, slots.values)]
            found[(site, layer)] = torch.cat(both, dim=-1)
        elif (site, layer) in seen:
            found[(site, layer)] = seen[(site, layer)][index, pad:]
        else:
            raise BackendError(f"capture: {site} of layer {layer} lies below the layer started from")
    return found


def reduced(activations: torch.Tensor, reduce: Reduce) -> np.ndarray:
    """A row's activations [positions, width] as a numpy array: all, the last, or their mean in float64."""
    if reduce == "mean":
        return np.asarray(activations.double().mean(dim=0).cpu().numpy())
    chosen = activations[-1] if reduce == "last" else activations
    return np.array(chosen.float().cpu().numpy())
