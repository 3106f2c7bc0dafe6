"""Probes of fixed continuations."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from backends.contract import Start
from backends.measures import ScoreRow
from backends.torch.forward import prefill
from backends.torch.loading import Loaded
from backends.torch.prefix import PrefixRun, check_start, expanded

MOST_TOKENS = 16384  # beyond this a CPU batch only falls out of its caches


@torch.inference_mode()
def perplexity(
    loaded: Loaded, rows: Sequence[ScoreRow], tokens: int, start: Start | None = None
) -> list[float | None]:
    """exp of the mean negative log-likelihood (nats per token) of each continuation under the unpatched
    model.

    Teacher-forced, in left-padded batches of about `tokens` tokens sorted by length; the prefix of a start is
    not computed again. None for an empty continuation. Invariant under batch composition; low for repetition,
    so read it beside the score.
    """
    if start is not None:
        check_start(start, [row.row.ids for row in rows], [], loaded.info.layers)
    out: list[float | None] = [None] * len(rows)
    order = sorted((i for i, row in enumerate(rows) if row.continuation), key=lambda i: _length(rows[i]))
    limit = min(tokens, MOST_TOKENS)
    first = 0
    while first < len(order):
        last = first + 1
        while last < len(order) and (last + 1 - first) * _length(rows[order[last]]) <= limit:
            last += 1
        batch = [rows[i] for i in order[first:last]]
        for index, value in zip(order[first:last], _batch(loaded, batch, start), strict=True):
            out[index] = value
        first = last
    return out


def _batch(loaded: Loaded, rows: Sequence[ScoreRow], start: Start | None) -> list[float]:
    longest = max(len(row.continuation) for row in rows)
    cache, past = None, 0
    if start is not None:
        assert isinstance(start.prefix.handle, PrefixRun)
        past = min(len(start.prefix.ids), *(len(row.row.ids) - 1 for row in rows))
        more = max(_length(row) for row in rows) - past
        cache = expanded(loaded, start.prefix.handle, len(rows), past, more)
    sequences = [(*row.row.ids[past:], *row.continuation) for row in rows]
    logits = prefill(loaded, sequences, cache, longest + 1, past)[0][:, :-1].float()
    target = torch.zeros(len(rows), longest, dtype=torch.int64)
    weight = torch.zeros(len(rows), longest)
    for place, row in enumerate(rows):
        target[place, longest - len(row.continuation) :] = torch.tensor(row.continuation)
        weight[place, longest - len(row.continuation) :] = 1.0 / len(row.continuation)
    target, weight = target.to(logits.device), weight.to(logits.device)
    loss = logits.logsumexp(-1) - logits.gather(-1, target[..., None])[..., 0]
    return (torch.where(weight > 0, loss, 0) * weight).sum(-1).exp().tolist()


def _length(row: ScoreRow) -> int:
    return len(row.row.ids) + len(row.continuation)
