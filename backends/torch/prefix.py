"""A common beginning of prompts, run once: its cache, and its last token's residual stream at every layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from backends.contract import BackendError, Start
from backends.rows import Row
from backends.torch.cache import SlotCache
from backends.torch.forward import Geometry, call, new_cache, prefill
from backends.torch.hooks import Board, Spot, keep_in
from backends.torch.loading import Loaded
from backends.torch.sites import find


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
    for index in range(loaded.info.layers):
        layer = cache.slot_layer(index)
        assert layer.keys is not None and layer.values is not None
        layer.keys[:, :, :taken] = run.keys[index][:, :taken]
        layer.values[:, :, :taken] = run.values[index][:, :taken]
        layer.filled = taken
    return cache


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


class Given(nn.Module):
    """Stands in for a block: gives a known hidden state, whatever comes in."""

    def __init__(self, hidden: torch.Tensor) -> None:
        super().__init__()
        self.hidden = hidden

    def forward(self, *_: object, **__: object) -> torch.Tensor:
        return self.hidden


@contextmanager
def blocks_from(loaded: Loaded, layer: int, residual: torch.Tensor) -> Iterator[None]:
    """Let the model compute its blocks from `layer` on only, on this residual stream [rows, tokens, width].

    The blocks below are stood in for, not left out: models look up by index what kind of layer a block is.
    """
    parent = find(loaded.model, loaded.layout.blocks.rpartition(".")[0])
    name = loaded.layout.blocks.rpartition(".")[2]
    assert parent is not None
    whole = getattr(parent, name)
    setattr(parent, name, nn.ModuleList([Given(residual)] * layer + list(whole)[layer:]))
    try:
        yield
    finally:
        setattr(parent, name, whole)


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
        cache.slot_layer(index).update(
            run.keys[index][:, -1:].expand(rows, -1, -1, -1),
            run.values[index][:, -1:].expand(rows, -1, -1, -1),
        )
    ids = torch.full((rows, 1), start.prefix.ids[-1], device=loaded.device)
    with blocks_from(loaded, start.layer, run.residual[start.layer].expand(rows, 1, -1)):
        return call(loaded, ids, at, cache)[:, -1]
