"""Probes of fixed continuations."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from backends.contract import ScoreRow
from backends.torch.forward import prefill
from backends.torch.loading import Loaded

MOST_TOKENS = 16384  # beyond this a CPU batch only falls out of its caches


@torch.inference_mode()
def perplexity(loaded: Loaded, rows: Sequence[ScoreRow], tokens: int) -> list[float | None]:
    """exp of the mean negative log-likelihood (nats per token) of each continuation under the unpatched
    model.

    Teacher-forced, in left-padded batches of about `tokens` tokens sorted by length. None for an empty
    continuation. Invariant under batch composition; low for repetition, so read it beside the score.
    """
    out: list[float | None] = [None] * len(rows)
    order = sorted((i for i, row in enumerate(rows) if row.continuation), key=lambda i: _length(rows[i]))
    limit = min(tokens, MOST_TOKENS)
    start = 0
    while start < len(order):
        stop = start + 1
        while stop < len(order) and (stop + 1 - start) * _length(rows[order[stop]]) <= limit:
            stop += 1
        for index, value in zip(
            order[start:stop], _batch(loaded, [rows[i] for i in order[start:stop]]), strict=True
        ):
            out[index] = value
        start = stop
    return out


def _batch(loaded: Loaded, rows: Sequence[ScoreRow]) -> list[float]:
    longest = max(len(row.continuation) for row in rows)
    logits = prefill(loaded, [(*row.ids, *row.continuation) for row in rows], None, longest + 1)[0][
        :, :-1
    ].float()
    target = torch.zeros(len(rows), longest, dtype=torch.int64)
    weight = torch.zeros(len(rows), longest)
    for place, row in enumerate(rows):
        target[place, longest - len(row.continuation) :] = torch.tensor(row.continuation)
        weight[place, longest - len(row.continuation) :] = 1.0 / len(row.continuation)
    target, weight = target.to(logits.device), weight.to(logits.device)
    loss = logits.logsumexp(-1) - logits.gather(-1, target[..., None])[..., 0]
    return (torch.where(weight > 0, loss, 0) * weight).sum(-1).exp().tolist()


def _length(row: ScoreRow) -> int:
    return len(row.ids) + len(row.continuation)
