"""Probes of fixed continuations: their perplexity under the unpatched model, their log-probability under the
writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from backends.contract import Start
from backends.measures import ScoreRow
from backends.torch.forward import prefill
from backends.torch.loading import Loaded
from backends.torch.prefix import PrefixRun, check_start, expanded
from backends.torch.score.reductions import finite, token_log_probabilities

MOST_TOKENS = 16384  # beyond this a CPU batch only falls out of its caches


@torch.inference_mode()
def perplexity(
    loaded: Loaded, rows: Sequence[ScoreRow], tokens: int, start: Start | None = None
) -> list[float | None]:
    """exp of the mean negative log-likelihood (nats per token) of each continuation under the unpatched
    model, as `backends.probes.likelihood.perplexity` defines it. None for an empty continuation.

    Teacher-forced, in left-padded batches of about `tokens` tokens sorted by length; the prefix of a start is
    not computed again. Invariant under batch composition.
    """
    if start is not None:
        clean = [replace(row.row, writes=(), replay_last_token=False) for row in rows]
        check_start(start, clean, loaded.info.layers)
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


@dataclass(frozen=True)
class Forced:
    """Says the tokens of fixed continuations, and keeps their log-probabilities.

    tokens: [rows of the whole batch, longest]; logps: the same, filled in as the batch goes; rows: which of
    them are still in it.
    """

    tokens: torch.Tensor
    logps: torch.Tensor
    rows: torch.Tensor

    @staticmethod
    def of(continuations: Sequence[Sequence[int]], device: torch.device) -> Forced:
        """Every continuation has at least one token."""
        longest = max(map(len, continuations))
        filled = [[*each, *each[-1:] * (longest - len(each))] for each in map(list, continuations)]
        tokens = torch.tensor(filled, dtype=torch.int64, device=device)
        return Forced(
            tokens, torch.zeros(tokens.shape, device=device), torch.arange(len(tokens), device=device)
        )

    def draw(self, logits: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The tokens of this step [rows], no margin, and whether the logits were finite."""
        here = self.tokens[self.rows, step]
        read = logits.float()
        self.logps[self.rows, step] = token_log_probabilities(read, here)
        return here, torch.full_like(here, torch.inf, dtype=torch.float32), finite(read)

    def select(self, rows: torch.Tensor) -> Forced:
        """For these rows alone."""
        return replace(self, rows=self.rows[rows])
