"""Generation without a cache: every step is a whole forward over the running context.

It is the reference for cached generation, and another intervention where writes act in decode: earlier
tokens are computed anew at each step, so that a decode write reaches only the newest token (or, with `hold:
sliding`, the last n positions of the running context). Prefill writes act again at every step, except those
of a sliding write, which move on.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from backends.rowplan import Pairs, RowPlan
from backends.torch.begin import moved, uncounted
from backends.torch.capture import armed_for
from backends.torch.edges import Edges, changes, decode_cuts, decode_edges, first_cuts, prompt_cuts
from backends.torch.edits import (
    Prompted,
    Recorded,
    Tallies,
    decode_edits,
    decode_touches,
    prompt_touches,
)
from backends.torch.forward import prefill
from backends.torch.hooks import Board, Spot
from backends.torch.loading import Loaded
from backends.torch.outcome import Outcome
from backends.torch.progress import Progress
from backends.torch.sampling import Chooser, Sampler
from backends.torch.sources import Sources
from backends.torch.touches import Touch


@torch.inference_mode()
def regenerate(
    loaded: Loaded,
    board: Board,
    sources: Sources,
    plans: Sequence[RowPlan],
    recorded: Recorded,
    chooser: Chooser | None = None,
) -> Outcome:
    """Decode a batch without a cache. Sources must have been captured. chooser: as in `generate`. Raises
    OutOfMemory."""
    rows = [plan.row for plan in plans]
    tallies: Tallies = {}
    edits = decode_edits(loaded, sources, plans, tallies, recorded)
    cuts = decode_cuts(loaded, plans, tallies)
    ends = loaded.info.eos_ids if chooser is None else ()
    progress = Progress.of(rows, ends, loaded.device)
    choose: Chooser = Sampler.of(rows, loaded.info.vocabulary, loaded.device) if chooser is None else chooser
    sequences = [list(row.ids) for row in rows]
    longest = max(len(s) for s in sequences)
    pads = torch.tensor([longest - len(s) for s in sequences], device=loaded.device)
    change = torch.full((len(rows),), torch.nan, device=loaded.device)
    first = first_cuts(plans, loaded.device)
    with armed_for(board, plans):
        for step in range(int(progress.limit.max())):
            width = longest + step
            weight = progress.alive.float()
            board.touches, edges = _prompt(loaded, sources, plans, tallies, width, step)
            if step > 0:
                progress.forwards += progress.alive
                for spot, more in decode_touches(edits, step - 1, weight, place=width - 1).items():
                    board.touches.setdefault(spot, []).extend(more)
                for spot, more in _sliding(loaded, sources, plans, tallies, width, step, weight).items():
                    board.touches.setdefault(spot, []).extend(more)
                for together in board.touches.values():
                    together.sort(key=lambda touch: touch.rank)
                for layer, new in decode_edges(cuts, step - 1, weight, pads, width, width).items():
                    edges.setdefault(layer, []).extend(new)
            board.edges = changes(edges)
            touches = board.touches
            logits = prefill(loaded, sequences, None)[0][:, -1]
            here = (first == step) & progress.alive
            if bool(here.any()):
                board.touches, board.edges = uncounted(touches), {}
                twin = moved(logits, prefill(loaded, sequences, None)[0][:, -1])
                change = torch.where(here, twin, change)
            tokens, margin, finite = choose.draw(logits, step)
            progress.take(step, tokens, margin, finite)
            if not bool(progress.alive.any()):
                break
            for sequence, token in zip(sequences, tokens.tolist(), strict=True):
                sequence.append(token)
    return Outcome(progress, tallies, change)


def _prompt(
    loaded: Loaded, sources: Sources, plans: Sequence[RowPlan], tallies: Tallies, width: int, step: int
) -> tuple[dict[Spot, list[Touch]], Edges]:
    """Prefill writes at their prompt positions. Later steps repeat them but are not counted again."""
    entries = []
    for index, plan in enumerate(plans):
        pad = width - len(plan.row.ids) - step
        for item in plan.writes:
            if item.prefill is not None and not (step and item.write.hold == "sliding"):
                entries.append(Prompted(plan, item, item.prefill, index, index, pad))
    counted = tallies if step == 0 else {}
    return (
        prompt_touches(loaded, sources, entries, counted, len(plans)),
        prompt_cuts(loaded, entries, counted, len(plans), width, width),
    )


def _sliding(
    loaded: Loaded,
    sources: Sources,
    plans: Sequence[RowPlan],
    tallies: Tallies,
    width: int,
    step: int,
    weight: torch.Tensor,
) -> dict[Spot, list[Touch]]:
    """The source's window over the last n positions of the running context."""
    entries = []
    running = weight.tolist()
    for index, plan in enumerate(plans):
        length = len(plan.row.ids) + step
        for item in plan.writes:
            enough = length >= item.write.min_positions
            if item.write.hold == "sliding" and item.window is not None and enough and running[index]:
                count = min(len(item.window), length)
                places = torch.arange(length - count, length).numpy()
                pairs = Pairs(places, item.window[len(item.window) - count :])
                entries.append(Prompted(plan, item, pairs, index, index, width - length))
    return prompt_touches(loaded, sources, entries, tallies, len(plans), "decode")
