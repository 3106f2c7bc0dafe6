"""Activations of whole prompts, clean or with prefill writes, from their beginning or from a start."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from backends.contract import BackendError, Reduce, Start
from backends.needs import CACHED, MeanKey, Spots, needed_means, needs
from backends.positions import PositionError
from backends.rowplan import RowPlan, plan_row
from backends.rows import SourceRun
from backends.torch.cache import SlotCache
from backends.torch.edges import changes, cut_layers, prompt_cuts
from backends.torch.edits import Prompted, Tallies, prompt_touches
from backends.torch.forward import new_cache, pad_left, prefill, prompt_geometry
from backends.torch.hooks import Board, Spot, keep_in
from backends.torch.loading import Loaded
from backends.torch.prefix import PrefixRun, check_start, expanded, last_token_from
from backends.torch.sources import Holding, Sources, chunks

Found = dict[tuple[str, int], torch.Tensor]
FEW_TOKENS = 512  # so many fit wherever the model does


@dataclass(frozen=True)
class PromptRun:
    """A batch of prompts that has been run. seen: (site, layer) -> [rows, positions computed, width]; pads:
    padding [rows]; past: shared tokens that were not computed."""

    cache: SlotCache
    seen: Mapping[Spot, torch.Tensor]
    logits: torch.Tensor
    pads: Sequence[int]
    past: int


@contextmanager
def armed_for(
    board: Board, plans: Sequence[RowPlan], spots: frozenset[Spot] | set[Spot] = frozenset()
) -> Iterator[None]:
    """Hooks wherever the rows write, and at `spots`."""
    written = {
        (item.write.tensor, layer)
        for plan in plans
        for item in plan.writes
        if item.slots is None and item.keys is None
        for layer in item.write.layers
    }
    with board.armed(written | spots, edges=cut_layers(plans)):
        yield


@torch.inference_mode()
def run_prompts(
    loaded: Loaded,
    board: Board,
    sources: Sources,
    plans: Sequence[RowPlan],
    sites: Sequence[Spot],
    start: Start | None = None,
    tallies: Tallies | None = None,
    keep: int = 1,
) -> PromptRun:
    """Whole prompts in one forward, prefill writes active at all their positions; logits of the last `keep`.

    Raises BackendError for writes that have no place in it and for rows that cannot begin at the start.
    """
    prompts = [plan.row.ids for plan in plans]
    writes = [w for plan in plans for w in plan.row.writes]
    if any(w.site == "kv_cache" for w in writes):
        raise BackendError("capture: kv_cache writes come after the prompt, where nothing is captured")
    longest = max(map(len, prompts))
    past, cache = 0, new_cache(loaded, len(plans), longest)
    if start is not None:
        check_start(start, [plan.row for plan in plans], loaded.info.layers)
        assert isinstance(start.prefix.handle, PrefixRun)
        past = min(len(start.prefix.ids), *(len(ids) - 1 for ids in prompts))
        cache = expanded(loaded, start.prefix.handle, len(plans), past, longest - past)
    entries = []
    for index, plan in enumerate(plans):
        for item in plan.writes:
            if item.prefill is not None:
                if (item.prefill.target < past).any():
                    raise BackendError(f"start: {item.write.name} would write into the prefix")
                entries.append(
                    Prompted(plan, item, item.prefill, index, index, longest - len(plan.row.ids) - past)
                )
    wanted = [spot for spot in sites if spot[0] != "kv_cache"]
    if any(site == "logits" for site, _ in wanted):
        keep = longest - past
    seen: dict[Spot, torch.Tensor] = {}
    counted: Tallies = {} if tallies is None else tallies
    with armed_for(board, plans, set(wanted)):
        board.touches = prompt_touches(loaded, sources, entries, counted, len(plans))
        board.edges = changes(
            prompt_cuts(loaded, entries, counted, len(plans), longest - past, longest, past)
        )
        for spot in wanted:
            board.taps[spot] = keep_in(seen, spot)
        rest = [ids[past:] for ids in prompts]
        if start is not None and start.layer > 0:
            _, pads = pad_left(loaded, rest)
            logits = last_token_from(loaded, start, cache, prompt_geometry(pads, 1, past))[:, None]
        else:
            logits, pads = prefill(loaded, rest, cache, keep, past)
    return PromptRun(cache, seen, logits, pads.tolist(), past)


def capture_prompts(
    loaded: Loaded,
    board: Board,
    sources: Sources,
    plans: Sequence[RowPlan],
    sites: Sequence[Spot],
    start: Start | None,
) -> list[Found]:
    """Per row, (site, layer) -> [positions computed, width]. Raises as `TorchBackend.capture` does."""
    run = run_prompts(loaded, board, sources, plans, sites, start)
    return [_row(run, sites, index) for index in range(len(plans))]


def _row(run: PromptRun, sites: Sequence[Spot], index: int) -> Found:
    found: Found = {}
    for site, layer in sites:
        if site == "kv_cache":
            both = [t[:, run.past :].transpose(0, 1).flatten(1) for t in slots_of(run, layer, index)]
            found[(site, layer)] = torch.cat(both, dim=-1)
        elif (site, layer) in run.seen:
            found[(site, layer)] = run.seen[(site, layer)][index, run.pads[index] :]
        else:
            raise BackendError(f"capture: {site} of layer {layer} lies below the layer started from")
    return found


def slots_of(run: PromptRun, layer: int, index: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values [kv heads, tokens, width] of a row at a layer: shared tokens first, no padding."""
    slots = run.cache.slot_layer(layer)
    assert slots.keys is not None and slots.values is not None
    pad = run.pads[index]

    def real(tensor: torch.Tensor) -> torch.Tensor:
        return torch.cat([tensor[index, :, : run.past], tensor[index, :, run.past + pad :]], dim=1)

    return real(slots.keys), real(slots.values)


@torch.inference_mode()
def ensure_sources(
    loaded: Loaded,
    board: Board,
    sources: Sources,
    plans: Sequence[RowPlan],
    room: Callable[[int], int],
    held: Holding,
) -> None:
    """Capture what the writes of these rows draw from and has not been captured by any thread, in left-padded
    batches of at most room(longest prompt) tokens (at least one prompt), and pin it in `held`."""
    _ensure_means(loaded, board, sources, needed_means(plans), room)
    wanted = needs(plans)
    held.pin(wanted)
    while missing := sources.missing(wanted):
        written = [plan_row(run.row()) for run in missing if run.writes]
        if written:  # runs under a condition draw from other runs, which come first
            ensure_sources(loaded, board, sources, written, room, held)
        with sources.capturing(missing) as mine:
            for chunk in _chunked(list(mine), room):
                _capture(loaded, board, sources, {run: mine[run] for run in chunk})
        sources.wait(missing)


def _chunked(runs: Sequence[SourceRun], room: Callable[[int], int]) -> list[list[SourceRun]]:
    """Runs in groups, by length. How much there is room for is asked only where it matters."""
    longest = max((len(run.ids) for run in runs), default=0)
    few = longest * len(runs) <= FEW_TOKENS
    tokens = FEW_TOKENS if few else room(longest)
    return chunks(sorted(runs, key=lambda run: len(run.ids)), tokens)


def _capture(loaded: Loaded, board: Board, sources: Sources, chunk: Mapping[SourceRun, Spots]) -> None:
    """Run some prompts in one forward, and keep of each what is wanted of it."""
    sites = sorted({spot for spots in chunk.values() for spot in spots if spot[0] not in CACHED})
    run = run_prompts(loaded, board, sources, [plan_row(each.row()) for each in chunk], sites)
    for index, (each, spots) in enumerate(chunk.items()):
        found: dict[Spot, torch.Tensor] = {}
        for site, layer in sorted(spots):
            if site in CACHED:
                found[site, layer] = slots_of(run, layer, index)[CACHED.index(site)]
            else:
                found[site, layer] = run.seen[site, layer][index, run.pads[index] :].clone()
        sources.keep(each, found)


def _ensure_means(
    loaded: Loaded,
    board: Board,
    sources: Sources,
    means: Mapping[MeanKey, Spots],
    room: Callable[[int], int],
) -> None:
    """Average what nobody has averaged yet, and wait for what other threads do."""
    while missing := sources.missing(means):
        with sources.capturing(missing) as mine:
            for key, spots in mine.items():
                _average(loaded, board, sources, key, spots, room)
        sources.wait(missing)


def _average(
    loaded: Loaded, board: Board, sources: Sources, key: MeanKey, spots: Spots, room: Callable[[int], int]
) -> None:
    """The mean over a set of prompts: of all positions of a prompt that count, then of the prompts, in
    float64.

    Nothing but the sum is kept. Raises BackendError for a prompt of the set that lacks the positions.
    """
    prompts, positions, features = key
    spans = prompts.spans if prompts.spans else ((),) * len(prompts.prompts)
    runs = [SourceRun(ids, spans=own) for ids, own in zip(prompts.prompts, spans, strict=True)]
    try:
        places = {run: positions.resolve(len(run.ids), dict(run.spans)) for run in runs}
    except PositionError as error:
        raise BackendError(f"the mean over {prompts.name or 'a set of prompts'}: {error}") from error
    total: dict[Spot, torch.Tensor] = {}
    for chunk in _chunked(runs, room):
        ran = run_prompts(loaded, board, sources, [plan_row(run.row()) for run in chunk], sorted(spots))
        for spot in spots:
            for index, run in enumerate(chunk):
                taken = ran.seen[spot][index, ran.pads[index] :][list(places[run])]
                if features is not None:
                    taken = sources.features(features, spot[1], taken.device).activations(taken)
                mean = taken.double().mean(dim=0)
                total[spot] = total[spot] + mean if spot in total else mean
    for spot, summed in total.items():
        sources.keep_mean(key, spot, (summed / len(runs)).float())


def reduced(activations: torch.Tensor, reduce: Reduce) -> np.ndarray:
    """A row's activations [positions, width] as a numpy array: all, the last, or their mean in float64."""
    if reduce == "mean":
        return np.asarray(activations.double().mean(dim=0).cpu().numpy())
    chosen = activations[-1] if reduce == "last" else activations
    return np.array(chosen.float().cpu().numpy())
