"""How a batch begins: prefill, kv_cache writes, and the last prompt token (events 2 to 4 of a trial)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from backends.contract import Start
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
from backends.torch.forward import Geometry, call, token_geometry
from backends.torch.hooks import Board, Spot
from backends.torch.kv import Prefilled, assemble
from backends.torch.loading import Loaded
from backends.torch.prefix import check_start
from backends.torch.shared import PromptRuns
from backends.torch.sources import Sources
from backends.torch.touches import Touch


@dataclass
class Begun:
    """A batch whose last prompt token has been fed. logits: [rows, vocabulary] after it; slots: each row's
    position of that token; cuts, edits: what acts in decode. prompts: the prompts' runs, with what was
    watched; run_of: which of these each row has [rows]."""

    cache: SlotCache
    pads: torch.Tensor
    slots: torch.Tensor
    logits: torch.Tensor
    edits: list[DecodeEdit]
    cuts: list[DecodeCut]
    logit_change: torch.Tensor
    prompts: PromptRuns
    run_of: torch.Tensor

    def here(self) -> Geometry:
        """Where the next token of each row stands, `slots` being its position."""
        return token_geometry(self.slots, self.pads, self.cache.slot_layer(0).filled + 1)


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
    watch: Mapping[Spot, int] | None = None,
    share: bool = True,
) -> Begun:
    """Events (2) to (4) of a batch: prefill, kv_cache writes, last prompt token. Sources must have been
    captured and hooks armed (`armed_for`). room: tokens that the cache is to hold beyond the prompt.
    watch: spot -> at how many last positions of each prompt what is there is kept, besides the last token.
    Where it is given the batch is read and nothing is decoded from it: slots that the last token does not
    read are left empty. share: whether rows take over what others of their prompt have computed (shared.py).

    Raises OutOfMemory, BackendError.
    """
    with board.clock.during("prefill"):
        return _begin(loaded, board, sources, plans, recorded, tallies, start, room, watch, share)


def _begin(
    loaded: Loaded,
    board: Board,
    sources: Sources,
    plans: Sequence[RowPlan],
    recorded: Recorded,
    tallies: Tallies,
    start: Start | None,
    room: int,
    watch: Mapping[Spot, int] | None,
    share: bool,
) -> Begun:
    rows = [plan.row for plan in plans]
    if start is not None:
        check_start(start, rows, loaded.info.layers)
    edits = decode_edits(loaded, sources, plans, tallies, recorded)
    cuts = decode_cuts(loaded, plans, tallies)
    prompts = PromptRuns(loaded, board, sources, plans, start, {} if watch is None else watch, share=share)
    before = prompts.prefill(tallies)
    with board.clock.closely("write" if any(plan.kv for plan in plans) else "prefill"):
        running = None if watch is None else prompts.running
        cache, pads = assemble(loaded, sources, plans, before, room + 1, tallies, running=running)
    begun = Begun(
        cache,
        pads,
        torch.tensor([plan.slots for plan in plans], device=loaded.device),
        torch.empty(0),
        edits,
        cuts,
        torch.full((len(plans),), torch.nan, device=loaded.device),
        prompts,
        before.row_of,
    )
    _last_token(loaded, board, sources, plans, begun, tallies)
    begun.logits = prompts.last(cache, begun.here())
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
        spot: [replace(touch, tally=touch.tally.blank(), ledger=None) for touch in here]
        for spot, here in touches.items()
    }


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
        before = PromptRuns(loaded, board, sources, plans).prefill({}, with_edges=False)
    board.touches, board.edges = touches, {}
    cache, pads = assemble(loaded, sources, plans, before, 1, {}, structural=False)
    slots = torch.tensor([len(plan.prefill_ids) for plan in plans], device=loaded.device)
    tokens = torch.tensor([plan.row.ids[-1] for plan in plans], device=loaded.device)
    at = token_geometry(slots, pads, cache.slot_layer(0).filled + 1)
    old = call(loaded, tokens[:, None], at, cache)[:, -1]
    return torch.where(wanted, moved(logits, old), torch.nan)
