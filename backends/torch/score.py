"""Probes of fixed continuations."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from backends.contract import ScoreRow
from backends.torch.forward import prefill
from backends.torch.loading import Loaded


@torch.inference_mode()
def perplexity(loaded: Loaded, rows: Sequence[ScoreRow], tokens: int) -> list[float | None]:
    """exp of the mean negative log-likelihood (nats per token) of each continuation under the unpatched model.

    Teacher-forced, in left-padded batches of about `tokens` tokens sorted by length. None for an empty continuation.
    Invariant under batch composition; monotone in, but not bounded by, repetition: read it beside the score.
    """
    out: list[float | None] = [None] * len(rows)
    order = sorted((i for i, row in enumerate(rows) if row.continuation), key=lambda i: _length(rows[i]))
    start = 0
    while start < len(order):
        stop = start + 1
        while stop < len(order) and (stop + 1 - start) * _length(rows[order[stop]]) <= tokens:
            stop += 1
        batch = [rows[i] for i in order[start:stop]]
        keep = max(len(row.continuation) for row in batch) + 1
        logits, _ = prefill(loaded, [(*row.ids, *row.continuation) for row in batch], None, keep)
        for place, row in enumerate(batch):
            count = len(row.continuation)
            predicted = logits[place, -count - 1 : -1].float().log_softmax(-1)
            target = torch.tensor(row.continuation, device=predicted.device)
            loss = -predicted[torch.arange(count, device=predicted.device), target].mean()
            out[order[start + place]] = float(loss.exp())
        start = stop
    return out


def _length(row: ScoreRow) -> int:
    return len(row.ids) + len(row.continuation)
