"""Cached generation of one batch: the order of events of a trial (prefill, cache writes, last token,
decode)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from backends.contract import Start
from backends.rowplan import RowPlan
from backends.torch.begin import Begun, begin, moved, uncounted
from backends.torch.capture import armed_for
from backends.torch.edges import changes, decode_edges, first_cuts
from backends.torch.edits import Recorded, Tallies, decode_touches
from backends.torch.forward import call
from backends.torch.hooks import Board
from backends.torch.loading import Loaded
from backends.torch.outcome import Outcome
from backends.torch.progress import Progress, Recorder
from backends.torch.sampling import Chooser, Sampler
from backends.torch.sources import Sources


@torch.inference_mode()
def generate(
    loaded: Loaded,
    board: Board,
    sources: Sources,
    plans: Sequence[RowPlan],
    recorded: Recorded,
    recorder: Recorder | None = None,
    start: Start | None = None,
    chooser: Chooser | None = None,
) -> Outcome:
    """Decode a batch with the cache. Sources must have been captured. Raises OutOfMemory, BackendError.

    chooser: says the tokens instead of each row's sampling; nothing ends a text then but its limit.
    """
    rows = [plan.row for plan in plans]
    tallies: Tallies = {}
    ends = loaded.info.eos_ids if chooser is None else ()
    progress = Progress.of(rows, ends, loaded.device)
    choose: Chooser = Sampler.of(rows, loaded.info.vocabulary, loaded.device) if chooser is None else chooser
    limit = int(progress.limit.max())
    with armed_for(board, plans, recorder.spots if recorder is not None else frozenset()):
        begun = begin(loaded, board, sources, plans, recorded, tallies, start, limit)
        progress.forwards += torch.tensor([row.replay_last_token for row in rows], device=loaded.device)
        change, logits = begun.logit_change, begun.logits
        for step in range(limit):
            tokens, margin, finite = choose.draw(logits, step)
            progress.take(step, tokens, margin, finite)
            if not bool(progress.alive.any()):
                break
            kept = progress.shrink() if recorder is None else None
            if kept is not None:
                begun.keep(kept)
                tokens, choose = tokens[kept], choose.select(kept)
            begun.slots = begun.slots + 1
            if step == 0:
                twin = _decode_twin(loaded, board, plans, begun, progress, tokens)
            _set_decode(board, begun, step, progress.alive.float())
            if recorder is not None:
                recorder.tap(board)
            progress.forwards[progress.current] += progress.alive
            logits = call(loaded, tokens[:, None], begun.here(), begun.cache)[:, -1]
            if step == 0 and twin is not None:
                change_here = moved(logits, twin)
                only = torch.isnan(change[progress.current])
                change[progress.current] = torch.where(only, change_here, change[progress.current])
    return Outcome(progress, tallies, change)


def _set_decode(board: Board, begun: Begun, step: int, weight: torch.Tensor) -> None:
    """What the hooks do in the next decode forward."""
    keys = begun.cache.slot_layer(0).filled + 1
    board.touches = decode_touches(begun.edits, step, weight)
    board.edges = changes(decode_edges(begun.cuts, step, weight, begun.pads, keys))


def _decode_twin(
    loaded: Loaded,
    board: Board,
    plans: Sequence[RowPlan],
    begun: Begun,
    progress: Progress,
    tokens: torch.Tensor,
) -> torch.Tensor | None:
    """Logits of the first decode forward without its cut edges, for rows that first cut edges there; None
    where there is no such row. The cache is as before afterwards."""
    chosen = (first_cuts(plans, loaded.device) == 1)[progress.current] & progress.alive
    if not bool(chosen.any()):
        return None
    weight = torch.zeros_like(progress.alive, dtype=torch.float32)
    touches = decode_touches(begun.edits, 0, weight)
    board.touches, board.edges = uncounted(touches), {}
    logits = call(loaded, tokens[:, None], begun.here(), begun.cache)[:, -1].float()
    begun.cache.take_back(1)
    return torch.where(chosen[:, None], logits, torch.nan)
