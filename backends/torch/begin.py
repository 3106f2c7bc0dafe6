"""How a batch begins: prefill, kv_cache writes, and the last prompt token (events 2 to 4 of a trial)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from backends.contract import BackendError, Start
from backends.rowplan import RowPlan
from backends.torch.cache import SlotCache
from backends.torch.edges import DecodeCut, changes, decode_cuts, decode_edges, first_cuts, prompt_cuts
from backends.torch.edits import (
    DecodeEdit,
    Prompted,
    Recorded,
    Tallies,
    decode_edits,
    decode_touches,
    prompt_touches,
)
from backends.torch.effects import DRAWS
from backends.torch.forward import Geometry, call, new_cache, prefill, token_geometry
from backends.torch.hooks import Board, Spot
from backends.torch.kv import Prefilled, assemble
from backends.torch.loading import Loaded
from backends.torch.prefix import PrefixRun, check_start, expanded, last_token_from
from backends.torch.sources import Sources
from backends.torch.touches import Touch


@dataclass
class Begun:
    """A batch whose last prompt token has been fed. logits: [rows, vocabulary] after it; slots: each row's
    position of that token; cuts, edits: what acts in decode."""

    cache: SlotCache
    pads: torch.Tensor
    slots: torch.Tensor
    logits: torch.Tensor
    edits: list[DecodeEdit]
    cuts: list[DecodeCut]
    logit_change: torch.Tensor

    def here(self) -> Geometry:
        """Where the next token of each row stands, `slots` being its position."""
        return token_geometry(self.slots, self.pads, self.cache.slot_layer(0).filled + 1)

    def keep(self, kept: torch.Tensor) -> None:
        """Go on with these rows (sorted indices) alone."""
        self.cache.keep_rows(kept)
        self.slots, self.pads = self.slots[kept], self.pads[kept]
        self.edits = [edit for edit in (e.keep(kept) for e in self.edits) if edit is not None]
        self.cuts = [cut for cut in (c.keep(kept) for c in self.cuts) if cut is not None]


@torch.inference_mode()
def begin(
    loaded: Loaded,
    board: Board,
    sources: Sources,
    plans: Sequence[RowPlan],
    recorded: Recorded,
    tallies: Tallies,
    start: Start | None = None,
    room: int = 0,
) -> Begun:
    """Events (2) to (4) of a batch: prefill, kv_cache writes, last prompt token. Sources must have been
    captured and hooks armed (`armed_for`). room: tokens that the cache is to hold beyond the prompt.

    Raises OutOfMemory, BackendError.
    """
    rows = [plan.row for plan in plans]
    if start is not None:
        check_start(start, rows, loaded.info.layers)
    edits = decode_edits(loaded, sources, plans, tallies, recorded)
    cuts = decode_cuts(loaded, plans, tallies)
    before = _prefill(loaded, board, sources, plans, tallies, start)
    cache, pads = assemble(loaded, sources, plans, before, room + 1, tallies)
    begun = Begun(
        cache,
        pads,
        torch.tensor([plan.slots for plan in plans], device=loaded.device),
        torch.empty(0),
        edits,
        cuts,
        torch.full((len(plans),), torch.nan, device=loaded.device),
    )
    _last_token(loaded, board, sources, plans, begun, tallies)
    if start is not None and start.layer > 0:
        begun.logits = last_token_from(loaded, start, cache, begun.here())
    else:
        tokens = torch.tensor([row.ids[-1] for row in rows], device=loaded.device)
        begun.logits = call(loaded, tokens[:, None], begun.here(), cache)[:, -1]
    begun.logit_change = _logit_change(loaded, board, sources, plans, before, begun.logits)
    return begun


def moved(new: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
    """|new - old| / |old| of logits [rows]."""
    before = old.float()
    change: torch.Tensor = (new.float() - before).norm(dim=-1) / before.norm(dim=-1)
    return change


def uncounted(touches: dict[Spot, list[Touch]]) -> dict[Spot, list[Touch]]:
    """The same touches, counted nowhere that matters."""
    return {
        spot: [replace(touch, tally=touch.tally.blank()) for touch in here] for spot, here in touches.items()
    }


def prefill_key(plan: RowPlan) -> tuple[object, ...]:
    """Rows with equal keys have the same cache before kv_cache writes, so it is computed once."""
    parts: list[object] = [plan.prefill_ids]
    for item in plan.writes:
        if item.prefill is not None:
            parts += [item.write, item.source, item.prefill.target.tobytes()]
            if item.prefill.source is not None:
                parts.append(item.prefill.source.tobytes())
            if item.write.value.kind in DRAWS:
                parts += [plan.row.value_stream, plan.row.draw]
            if item.keys is not None:
                parts.append(item.keys.tobytes())
    return tuple(parts)


def _prefill(
    loaded: Loaded,
    board: Board,
    sources: Sources,
    plans: Sequence[RowPlan],
    tallies: Tallies,
    start: Start | None,
    with_edges: bool = True,
) -> Prefilled:
    """Run the distinct prompts of a batch up to the token before the last, prefill writes active (but for cut
    edges, where these are left out)."""
    first: dict[tuple[object, ...], int] = {}
    row_of: list[int] = []
    distinct: list[RowPlan] = []
    for plan in plans:
        key = prefill_key(plan)
        if key not in first:
            first[key] = len(distinct)
            distinct.append(plan)
        row_of.append(first[key])
    index = torch.tensor(row_of, device=loaded.device)
    longest = max(len(plan.prefill_ids) for plan in distinct)
    if longest == 0:
        return Prefilled(None, index, 0)
    shared_slots = 0
    if start is not None:
        shared_slots = min(len(start.prefix.ids), *(len(plan.prefill_ids) for plan in distinct))
    entries = []
    for row, plan in enumerate(distinct):
        for item in plan.writes:
            if item.prefill is not None and (with_edges or item.keys is None):
                inside = item.prefill.where(item.prefill.target < len(plan.prefill_ids))
                if (inside.target < shared_slots).any():
                    raise BackendError(f"start: {item.write.name} would write into the prefix")
                pad = longest - len(plan.prefill_ids) - shared_slots
                entries.append(Prompted(plan, item, inside, row, row, pad))
    shared: Tallies = {}
    board.touches = prompt_touches(loaded, sources, entries, shared, len(distinct))
    width = longest - shared_slots
    board.edges = changes(prompt_cuts(loaded, entries, shared, len(distinct), width, longest, shared_slots))
    rest = [plan.prefill_ids[shared_slots:] for plan in distinct]
    if start is None:
        cache = new_cache(loaded, len(distinct), longest)
    else:
        assert isinstance(start.prefix.handle, PrefixRun)
        cache = expanded(loaded, start.prefix.handle, len(distinct), shared_slots, longest - shared_slots)
    if longest > shared_slots:
        prefill(loaded, rest, cache, past=shared_slots)
    for key, tally in shared.items():
        tallies[key] = tally.expand(index)
    return Prefilled(cache, index, longest, shared_slots)


def _last_token(
    loaded: Loaded,
    board: Board,
    sources: Sources,
    plans: Sequence[RowPlan],
    begun: Begun,
    tallies: Tallies,
) -> None:
    """What the hooks do in the forward of the last prompt token: prefill writes at position T-1; where the
    token is replayed it is the first decode forward instead."""
    entries = []
    for row, plan in enumerate(plans):
        if plan.row.replay_last_token:
            continue
        last = len(plan.prefill_ids)
        for item in plan.writes:
            if item.prefill is not None:
                here = item.prefill.where(item.prefill.target == last)
                entries.append(Prompted(plan, item, here, row, row, -last))
    keys = begun.cache.slot_layer(0).filled + 1
    touches = prompt_touches(loaded, sources, entries, tallies, len(plans))
    edges = prompt_cuts(loaded, entries, tallies, len(plans), 1, keys)
    replayed = torch.tensor([float(plan.row.replay_last_token) for plan in plans], device=loaded.device)
    if bool(replayed.any()):
        for spot, more in decode_touches(begun.edits, -1, replayed).items():
            touches.setdefault(spot, []).extend(more)
        for layer, cuts in decode_edges(begun.cuts, -1, replayed, begun.pads, keys).items():
            edges.setdefault(layer, []).extend(cuts)
    board.touches, board.edges = touches, changes(edges)


def _logit_change(
    loaded: Loaded,
    board: Board,
    sources: Sources,
    plans: Sequence[RowPlan],
    before: Prefilled,
    logits: torch.Tensor,
) -> torch.Tensor:
    """|new - old| / |old| of the first new token's logits against a twin on the same tokens without the row's
    structural kv_cache write or cut edges [rows]; not a number where a row has neither by then."""
    cut = first_cuts(plans, loaded.device) == 0
    structural = torch.tensor([plan.structural is not None for plan in plans], device=loaded.device)
    wanted = cut | structural
    if not bool(wanted.any()):
        return torch.full((len(plans),), torch.nan, device=loaded.device)
    # The twin keeps all other writes at the last token; only what they count is thrown away.
    touches = uncounted(board.touches)
    if bool(cut.any()):
        before = _prefill(loaded, board, sources, plans, {}, None, with_edges=False)
    board.touches, board.edges = touches, {}
    cache, pads = assemble(loaded, sources, plans, before, 1, {}, structural=False)
    slots = torch.tensor([len(plan.prefill_ids) for plan in plans], device=loaded.device)
    tokens = torch.tensor([plan.row.ids[-1] for plan in plans], device=loaded.device)
    at = token_geometry(slots, pads, cache.slot_layer(0).filled + 1)
    old = call(loaded, tokens[:, None], at, cache)[:, -1]
    return torch.where(wanted, moved(logits, old), torch.nan)
