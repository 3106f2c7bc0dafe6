"""What comes of a batch: its texts and the receipts of its writes, on the host."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from backends.rowplan import RowPlan
from backends.rows import Decoded, Receipt
from backends.shadows import decode_asked, keys_ahead, shadowed
from backends.torch.edits import Tallies
from backends.torch.loading import Loaded
from backends.torch.progress import Progress
from backends.torch.touches import Tally
from backends.writes import Write


@dataclass
class Outcome:
    """A finished batch: progress, the tallies of each write, and what writes without an old tensor did to the
    logits [rows], not a number where a row has none. widest: how many rows ran beside each at most; None: all
    did."""

    progress: Progress
    tallies: Tallies
    logit_change: torch.Tensor
    widest: Sequence[int] | None = None


def receipts(loaded: Loaded, plans: Sequence[RowPlan], outcome: Outcome) -> list[dict[str, Receipt]]:
    """Per row, what each of its writes did."""
    forwards = outcome.progress.forwards.tolist()
    change = [None if math.isnan(value) else value for value in outcome.logit_change.tolist()]
    host = {
        (phase, write): (_positions(t, write).tolist(), t.change.tolist(), t.measured.tolist())
        for (phase, write), t in outcome.tallies.items()
    }
    out: list[dict[str, Receipt]] = []
    for row, plan in enumerate(plans):
        hidden = shadowed(plan, loaded.info.layers)
        found: dict[str, Receipt] = {}
        for item in plan.writes:
            write = item.write
            nothing = ([0] * len(plans), [0.0] * len(plans), [0.0] * len(plans))
            before, after = host.get(("prefill", write), nothing), host.get(("decode", write), nothing)
            total, measured = before[1][row] + after[1][row], before[2][row] + after[2][row]
            found[write.name] = Receipt(
                asked_prefill=item.asked,
                asked_decode=decode_asked(write, forwards[row]),
                positions_prefill=before[0][row],
                positions_decode=after[0][row],
                relative_change=total / measured if measured and write.has_old else None,
                shadowed=hidden[write.name].prefill,
                decode_shadowed=after[0][row] if hidden[write.name].decode else 0,
                keys_ahead=keys_ahead(plan, item),
                logit_change=None if write.has_old else change[row],
            )
        out.append(found)
    return out


def _positions(tally: Tally, write: Write) -> torch.Tensor:
    """Positions [rows] at which a write acted at all its layers. Of cut edges: at any, because a key may lie
    outside the window of a layer. Windows nest, so that the layer which had most had them all."""
    counts = tally.counts.amax(0) if write.site == "attention_edge" else tally.counts.amin(0)
    return counts.round().long()


def decoded(plans: Sequence[RowPlan], outcome: Outcome, found: Sequence[dict[str, Receipt]]) -> list[Decoded]:
    """Results on the host. A row whose logits were not finite is invalid, with what it had until then."""
    progress = outcome.progress
    tokens, counts = progress.tokens.tolist(), progress.count.tolist()
    ended, bad, margin = progress.ended.tolist(), progress.bad.tolist(), progress.margin.tolist()
    longest = max(len(plan.row.ids) for plan in plans)
    return [
        Decoded(
            output_ids=tuple(tokens[row][: counts[row]]),
            finish="eos" if ended[row] else "length",
            receipts=found[row],
            min_margin=float(np.float32(margin[row])),
            batch_rows=len(plans) if outcome.widest is None else outcome.widest[row],
            batch_length=longest,
            invalid="logits not finite" if bad[row] else None,
        )
        for row in range(len(plans))
    ]
