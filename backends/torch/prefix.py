"""A common beginning of prompts, run once: its cache, and its last token's residual stream at every layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from backends.contract import BackendError, Start
from backends.rows import Row
from backends.torch.cache import SlotCache, SlotLayer
from backends.torch.forward import Geometry, call, new_cache, prefill
from backends.torch.hooks import Board, Spot, keep_in
from backends.torch.loading import Loaded
from backends.torch.sites import find

Below = Callable[[int, int, int], torch.Tensor]  # block, rows from, to -> what goes into it for these rows


@dataclass(frozen=True)
class PrefixRun:
    """keys, values: per layer [kv heads, tokens, width]. residual: resid_pre of the last token, [layers,
    width]. logits: of the last token [vocabulary]. Never written to."""

    keys: tuple[torch.Tensor, ...]
    values: tuple[torch.Tensor, ...]
    residual: torch.Tensor
    logits: torch.Tensor


@torch.inference_mode()
def run_prefix(loaded: Loaded, board: Board, ids: tuple[int, ...]) -> PrefixRun:
    """Run a prompt alone, cleanly, and keep what later runs can start from. Raises OutOfMemory."""
    seen: dict[Spot, torch.Tensor] = {}
    spots: list[Spot] = [("resid_pre", layer) for layer in range(loaded.info.layers)]
    cache = new_cache(loaded, 1, len(ids))
    with board.armed(spots):
        for spot in spots:
            board.taps[spot] = keep_in(seen, spot)
        logits, _ = prefill(loaded, [ids], cache)
    layers = [cache.slot_layer(layer) for layer in range(loaded.info.layers)]
    return PrefixRun(
        keys=tuple(layer.keys[0] for layer in layers if layer.keys is not None),
        values=tuple(layer.values[0] for layer in layers if layer.values is not None),
        residual=torch.stack([seen[spot][0, -1].to(loaded.device) for spot in spots]),
        logits=logits[0, -1],
    )


def expanded(loaded: Loaded, run: PrefixRun, rows: int, taken: int, more: int) -> SlotCache:
    """A cache of `rows` rows whose first `taken` slots are the prefix's, with room for `more` tokens."""
    cache = new_cache(loaded, rows, taken + more)
    fill(cache, run, taken)
    return cache


def fill(cache: SlotCache, run: PrefixRun, taken: int) -> None:
    """Put the prefix's first slots into the first of all rows."""
    for index, (keys, values) in enumerate(zip(run.keys, run.values, strict=True)):
        layer = cache.slot_layer(index)
        assert layer.keys is not None and layer.values is not None
        layer.keys[:, :, :taken] = keys[:, :taken]
        layer.values[:, :, :taken] = values[:, :taken]
        layer.filled = taken


def check_start(start: Start, rows: Sequence[Row], layers: int) -> None:
    """Raises BackendError where rows cannot begin at `start`: another beginning, or a write or a token that
    acts on what is not computed."""
    ids = start.prefix.ids
    if any(row.ids[: len(ids)] != ids for row in rows):
        raise BackendError(f"start: every prompt must begin with the prefix of {len(ids)} tokens")
    if not 0 <= start.layer < layers:
        raise BackendError(f"start.layer: expected 0 to {layers - 1}, got {start.layer}")
    if start.layer == 0:
        return
    if any(row.ids != ids for row in rows):
        raise BackendError(
            "start.layer: every prompt must be the whole prefix, whose last token is started from"
        )
    if any(row.replay_last_token for row in rows):
        raise BackendError(
            f"start.layer {start.layer}: a replayed token stands at another position than the prefix's last, "
            "whose states it would be given"
        )
    writes = [write for row in rows for write in row.writes]
    below = sorted({w.name for w in writes if w.site == "kv_cache" or min(w.layers) < start.layer})
    if below:
        raise BackendError(
            f"start.layer {start.layer}: {', '.join(below)} would act below it, or on the cache"
        )


class Passed(nn.Module):
    """Stands in for a block that no row runs through."""

    def forward(self, hidden: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        return hidden


@contextmanager
def entering(loaded: Loaded, running: Sequence[int], below: Below) -> Iterator[None]:
    """Let each block compute its first `running` rows only. The rows that it has and the block before it had
    not come in with what `below` says.

    running: per block, ascending. Blocks that none run through are stood in for, not left out: models look up
    by index what kind of layer a block is. Rows run through what is before and behind the blocks as the
    model does it: all of them before, those that the last block has behind.
    """
    parent = find(loaded.model, loaded.layout.blocks.rpartition(".")[0])
    name = loaded.layout.blocks.rpartition(".")[2]
    assert parent is not None
    whole = getattr(parent, name)
    rows = running[-1]

    def cut(given: Any, count: int) -> Any:
        """What a block is given besides its hidden state: masks and positions have a row for each."""
        if isinstance(given, torch.Tensor):
            return given[:count] if given.ndim > 1 and len(given) == rows else given
        return tuple(cut(each, count) for each in given) if isinstance(given, tuple) else given

    def hook(layer: int) -> Callable[..., tuple[tuple[Any, ...], dict[str, Any]]]:
        count, before = running[layer], running[layer - 1] if layer else 0

        def enter(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]]:
            hidden = args[0][:count]
            if layer and count > before:
                new = below(layer, before, count).to(hidden.device, hidden.dtype)
                hidden = torch.cat([hidden[:before], new])
            others = {key: cut(value, count) for key, value in kwargs.items()}
            return (hidden, *cut(args[1:], count)), others

        return enter

    partial = [layer for layer, count in enumerate(running) if count]
    last = next(layer for layer, count in enumerate(running) if count == rows)
    handles = [
        whole[layer].register_forward_pre_hook(hook(layer), prepend=True, with_kwargs=True)
        for layer in partial
        if layer <= last
    ]
    blocks = [block if count else Passed() for block, count in zip(whole, running, strict=True)]
    setattr(parent, name, nn.ModuleList(blocks))
    try:
        yield
    finally:
        setattr(parent, name, whole)
        for handle in handles:
            handle.remove()


def call_from(
    loaded: Loaded, ids: torch.Tensor, at: Geometry, cache: SlotCache, starts: np.ndarray, below: Below | None
) -> torch.Tensor:
    """Logits [rows, 1, vocabulary] of the last position, each row computed from its first block on.

    starts: those blocks, ascending [rows], each smaller than the number of blocks; below: what goes into
    them, None where all rows start at the first. The cache, which may have more rows behind these, is filled
    at the blocks that a row runs through and has to hold its slots at the others already.
    """
    running = [int((starts <= layer).sum()) for layer in range(loaded.info.layers)]
    filled = cache.slot_layer(0).filled
    views = SlotCache([rows_of(cache.slot_layer(at), 0, n, filled) for at, n in enumerate(running)])
    if below is None or running[0] == len(ids):
        logits = call(loaded, ids, at, views)
    else:
        with entering(loaded, running, below):
            logits = call(loaded, ids, at, views)
    advance(cache, ids.shape[1])
    return logits


def rows_of(slots: SlotLayer, begin: int, end: int, filled: int) -> SlotLayer:
    """Some rows of a layer's slots, not copied."""
    assert slots.keys is not None and slots.values is not None
    return SlotLayer(slots.keys[begin:end], slots.values[begin:end], filled)


def advance(cache: SlotCache, slots: int) -> None:
    """So many more slots are filled."""
    for layer in range(len(cache.layers)):
        cache.slot_layer(layer).filled += slots


@torch.inference_mode()
def last_token_from(loaded: Loaded, start: Start, cache: SlotCache, at: Geometry) -> torch.Tensor:
    """Logits [rows, vocabulary] of the prefix's last token, its blocks below the start's layer taken from the
    prefix.

    cache: holds the tokens before it; every layer holds it afterwards, those below with the prefix's own
    slot.
    """
    run = start.prefix.handle
    assert isinstance(run, PrefixRun)
    rows = len(at.positions)
    for index in range(start.layer):
        slots = cache.slot_layer(index)
        assert slots.keys is not None and slots.values is not None
        slots.keys[:, :, slots.filled] = run.keys[index][:, -1]
        slots.values[:, :, slots.filled] = run.values[index][:, -1]
    ids = torch.full((rows, 1), start.prefix.ids[-1], device=loaded.device)
    starts = np.full(rows, start.layer)

    def below(layer: int, begin: int, end: int) -> torch.Tensor:
        return run.residual[layer].expand(end - begin, 1, -1)

    return call_from(loaded, ids, at, cache, starts, below)[:, -1]
