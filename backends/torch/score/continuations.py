"""Probes of fixed continuations: their perplexity under the unpatched model, their log-probability under the
writes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from backends.contract import Start
from backends.measures import ScoreRow
from backends.torch.forward import ALL, call_whole, prefill
from backends.torch.loading import Loaded
from backends.torch.prefix import PrefixRun, check_start, expanded
from backends.torch.score.reductions import finite, token_log_probabilities
from backends.torch.sites import find

MOST_TOKENS = 16384  # beyond this a GPU gains nothing
MOST_TOKENS_CPU = 2048  # beyond this a batch falls out of its caches
LOSSES_CPU = 131072  # logits that a CPU reduces at once: what is computed of them stays in its caches

Text = tuple[tuple[int, ...], tuple[int, ...]]  # a prompt and its continuation


@torch.inference_mode()
def perplexity(
    loaded: Loaded, rows: Sequence[ScoreRow], tokens: int, start: Start | None = None
) -> list[float | None]:
    """exp of the mean negative log-likelihood (nats per token) of each continuation under the unpatched
    model, as `backends.probes.likelihood.perplexity` defines it. None for an empty continuation.

    Teacher-forced, every distinct text once, in batches of about `tokens` tokens sorted by length; the prefix
    of a start is not computed again, nor are logits of prompts. Invariant under batch composition.
    """
    if start is not None:
        clean = [replace(row.row, writes=(), replay_last_token=False) for row in rows]
        check_start(start, clean, loaded.info.layers)
    texts = [(tuple(row.row.ids), tuple(row.continuation)) for row in rows]
    order = sorted({text for text in texts if text[1]}, key=_length)
    limit = min(tokens, MOST_TOKENS_CPU if loaded.device.type == "cpu" else MOST_TOKENS)
    found: dict[Text, float] = {}
    first = 0
    while first < len(order):
        last = first + 1
        while last < len(order) and (last + 1 - first) * _length(order[last]) <= limit:
            last += 1
        found.update(zip(order[first:last], _batch(loaded, order[first:last], start), strict=True))
        first = last
    return [found.get(text) for text in texts]


def _length(text: Text) -> int:
    return len(text[0]) + len(text[1])


def _batch(loaded: Loaded, texts: Sequence[Text], start: Start | None) -> list[float]:
    prompts = np.array([len(prompt) for prompt, _ in texts])
    counts = np.array([len(continuation) for _, continuation in texts])
    if start is None:
        longest = int((prompts + counts).max())
        ids = np.zeros((len(texts), longest), dtype=np.int64)
        # Padding behind a text is seen by nothing in it, so that no mask has to say so.
        filled = np.arange(longest) < (prompts + counts)[:, None]
        ids[filled] = [token for text in texts for part in text for token in part]
        ends = prompts - 1

        def run() -> torch.Tensor:
            return call_whole(loaded, torch.from_numpy(ids).to(loaded.device))
    else:
        assert isinstance(start.prefix.handle, PrefixRun)
        past = min(len(start.prefix.ids), int(prompts.min()) - 1)
        longest = int((prompts + counts).max()) - past
        cache = expanded(loaded, start.prefix.handle, len(texts), past, longest)
        rest = [(*prompt[past:], *continuation) for prompt, continuation in texts]
        ends = longest - counts - 1

        def run() -> torch.Tensor:
            return prefill(loaded, rest, cache, ALL, past)[0]

    # Of each row the columns from the prompt's last token to that before the text's last.
    row = np.repeat(np.arange(len(texts)), counts)
    column = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts) + np.repeat(ends, counts)
    with _read_alone(loaded, torch.from_numpy(row * longest + column).to(loaded.device)):
        logits = run()[0]
    target = torch.tensor([t for _, continuation in texts for t in continuation], device=logits.device)
    losses = _losses(logits, target).double()
    total = torch.zeros(len(texts), dtype=torch.float64, device=logits.device)
    total.index_add_(0, torch.from_numpy(row).to(logits.device), losses)
    mean = total / torch.from_numpy(counts).to(logits.device)
    perplexities: list[float] = mean.float().exp().tolist()
    return perplexities


@contextmanager
def _read_alone(loaded: Loaded, places: torch.Tensor) -> Iterator[None]:
    """Logits of some tokens of a forward alone, [1, n, vocabulary]. places: of the batch's tokens, row by
    row [n]."""
    head = find(loaded.model, loaded.layout.head)
    assert head is not None, f"{loaded.layout.head} was checked at load"

    def hook(module: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        hidden = args[0].flatten(0, 1)
        return (hidden[places.to(hidden.device)][None], *args[1:])

    handle = head.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _losses(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """-log p in nats [n] of each token [n]. logits: [n, vocabulary]."""
    count, vocabulary = logits.shape
    most = max(1, LOSSES_CPU // vocabulary if logits.device.type == "cpu" else count)
    parts = zip(torch.split(logits, most), torch.split(target, most), strict=True)
    return torch.cat([cross_entropy(part.float(), own, reduction="none") for part, own in parts])


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

    def draw(
        self, logits: torch.Tensor, step: int | torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The tokens of this step [rows], no margin, and whether the logits were finite."""
        here = self.tokens[self.rows, step]
        read = logits.float()
        self.logps[self.rows, step] = token_log_probabilities(read, here)
        return here, torch.full_like(here, torch.inf, dtype=torch.float32), finite(read)

    def select(self, rows: torch.Tensor) -> Forced:
        """For these rows alone."""
        return replace(self, rows=self.rows[rows])
