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
from backends.torch.edits import Prompted, Recorded, Tallies, decode_edits, prompt_touches
from backends.torch.forward import prefill
from backends.torch.generate import Outcome, Progress, decode_touches
from backends.torch.hooks import Board, Spot, Touch
from backends.torch.loading import Loaded
from backends.torch.sampling import Sampler
from backends.torch.sources import Sources


@torch.inference_mode()
def regenerate(
    loaded: Loaded, board: Board, sources: Sources, plans: Sequence[RowPlan], recorded: Recorded
) -> Outcome:
    """Decode a batch without a cache. Sources must have been captured. Raises OutOfMemory."""
    rows = [plan.row for plan in plans]
    tallies: Tallies = {}
    edits = decode_edits(loaded, sources, plans, tallies, recorded)
    spots = {(w.site, layer) for r in rows for w in r.writes for layer in w.layers}
    progress = Progress.of(rows, loaded.info.eos_ids, loaded.device)
    sampler = Sampler.of(rows, loaded.info.vocabulary, loaded.device)
    sequences = [list(row.ids) for row in rows]
    longest = max(len(s) for s in sequences)
    with board.armed(spots):
        for step in range(int(progress.limit.max())):
            width = longest + step
            weight = progress.alive.float()
            board.touches = _prompt(loaded, sources, plans, tallies, width, step)
            if step > 0:
                progress.forwards += progress.alive
                for spot, more in decode_touches(edits, step - 1, weight, place=width - 1).items():
                    board.touches.setdefault(spot, []).extend(more)
                for spot, more in _sliding(loaded, sources, plans, tallies, width, step, weight).items():
                    board.touches.setdefault(spot, []).extend(more)
            logits = prefill(loaded, sequences, None)[0][:, -1]
            tokens, margin, finite = sampler.draw(logits, step)
            progress.take(step, tokens, margin, finite)
            if not bool(progress.alive.any()):
                break
            for sequence, token in zip(sequences, tokens.tolist(), strict=True):
                sequence.append(token)
    return Outcome(progress, tallies, None)


def _prompt(
    loaded: Loaded, sources: Sources, plans: Sequence[RowPlan], tallies: Tallies, width: int, step: int
) -> dict[Spot, list[Touch]]:
    """Prefill writes at their prompt positions. Later steps repeat them but are not counted again."""
    entries = []
    for index, plan in enumerate(plans):
        pad = width - len(plan.row.ids) - step
        for item in plan.writes:
            if item.prefill is not None and not (step and item.write.hold == "sliding"):
                entries.append(Prompted(plan, item, item.prefill, index, index, pad))
    return prompt_touches(loaded, sources, entries, tallies if step == 0 else {}, len(plans))


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
