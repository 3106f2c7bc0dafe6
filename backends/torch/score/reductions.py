"""The definitions of `backends.probes` on logits that lie on the device, so that only numbers leave it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from backends.contract import BackendError


@dataclass(frozen=True)
class TokenSets:
    """One token set for each row of a batch. ids: [rows, most], filled up with the row's own first id (0 for
    an empty set); given: bool [rows, most]; some: bool [rows], whether the set has a token at all."""

    ids: torch.Tensor
    given: torch.Tensor
    some: torch.Tensor

    @staticmethod
    def of(sets: Sequence[Sequence[int]], vocabulary: int, device: torch.device) -> TokenSets:
        """Raises BackendError for ids outside the vocabulary."""
        distinct = [tuple(dict.fromkeys(each)) for each in sets]
        strange = sorted({t for each in distinct for t in each if not 0 <= t < vocabulary})
        if strange:
            raise BackendError(
                f"token sets: expected ids from 0 to {vocabulary - 1}, got {', '.join(map(str, strange))}"
            )
        most = max((len(each) for each in distinct), default=1)
        filled = [[*each, *(each[:1] or (0,)) * (max(most, 1) - len(each))] for each in distinct]
        count = torch.tensor([len(each) for each in distinct], device=device)
        ids = torch.tensor(filled, dtype=torch.int64, device=device)
        return TokenSets(ids, torch.arange(ids.shape[1], device=device) < count[:, None], count > 0)

    def log_sum(self, logits: torch.Tensor) -> torch.Tensor:
        """log of the summed exp of the sets' logits [rows]."""
        return logits.gather(-1, self.ids).masked_fill(~self.given, -torch.inf).logsumexp(-1)

    def best(self, logits: torch.Tensor) -> torch.Tensor:
        """The largest logit of each set [rows]."""
        return logits.gather(-1, self.ids).masked_fill(~self.given, -torch.inf).amax(-1)

    def log_rest(self, logits: torch.Tensor) -> torch.Tensor:
        """log of the summed exp of all other tokens' logits [rows]."""
        return logits.scatter(-1, self.ids, -torch.inf).logsumexp(-1)


def next_token(logits: torch.Tensor, sets: TokenSets) -> torch.Tensor:
    """Summed probability [rows]; not a number for an empty set. logits: float32 [rows, vocabulary]."""
    found = (sets.log_sum(logits) - logits.logsumexp(-1)).exp()
    return torch.where(sets.some, found, torch.nan)


def log_odds(logits: torch.Tensor, sets: TokenSets, against: TokenSets | None) -> torch.Tensor:
    """log sum p(sets) - log sum p(against), or against all others, in nats [rows]; not a number where either
    set is empty."""
    ours = sets.log_sum(logits)
    if against is None:
        return torch.where(sets.some, ours - sets.log_rest(logits), torch.nan)
    return torch.where(sets.some & against.some, ours - against.log_sum(logits), torch.nan)


def rank(logits: torch.Tensor, sets: TokenSets) -> torch.Tensor:
    """How many tokens have a larger logit than the best of the set [rows]; -1 for an empty set."""
    return torch.where(sets.some, (logits > sets.best(logits)[:, None]).sum(-1), -1)


def accuracy(logits: torch.Tensor, sets: TokenSets) -> torch.Tensor:
    """1 where the best of the set has rank 0, else 0 [rows]; not a number for an empty set."""
    return torch.where(sets.some, (rank(logits, sets) == 0).float(), torch.nan)


def best_token(logits: torch.Tensor) -> torch.Tensor:
    """The most probable token [rows]; of equal ones the smallest id."""
    ids = torch.arange(logits.shape[-1], device=logits.device)
    return torch.where(logits == logits.amax(-1, keepdim=True), ids, logits.shape[-1]).amin(-1)


def top_k(logits: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `count` most probable tokens, best first, of equal ones the smaller id, and their probabilities
    [rows, count]."""
    vocabulary = logits.shape[-1]
    best, chosen = logits.topk(count, dim=-1)
    last = best[:, -1:]
    ids = torch.arange(vocabulary, device=logits.device)
    # topk takes any of those that tie for the last places: take the smallest ids instead.
    tied = torch.where(logits == last, ids, vocabulary).topk(count, dim=-1, largest=False, sorted=True)[0]
    above = (best > last).sum(-1, keepdim=True)
    place = torch.arange(count, device=logits.device).expand_as(chosen)
    chosen = torch.where(place < above, chosen, tied.gather(-1, (place - above).clamp_min(0)))
    # Smaller ids first, then, without disturbing that, larger logits first.
    chosen = chosen.sort(dim=-1)[0]
    order = logits.gather(-1, chosen).sort(dim=-1, descending=True, stable=True)[1]
    chosen = chosen.gather(-1, order)
    return chosen, (logits.gather(-1, chosen) - logits.logsumexp(-1, keepdim=True)).exp()


def kl(clean: torch.Tensor, written: torch.Tensor) -> torch.Tensor:
    """KL(clean | written) in nats [rows], in float64: no term is negative, and equal logits give exactly
    0."""
    log_p, log_q = clean.double().log_softmax(-1), written.double().log_softmax(-1)
    p, step = log_p.exp(), log_q - log_p
    return torch.where(p > 0, p * (step.expm1() - step).clamp_min(0), log_q.exp()).sum(-1)


def token_log_probabilities(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """log p in nats [rows] of each token [rows]."""
    return logits.gather(-1, tokens[:, None])[:, 0] - logits.logsumexp(-1)


def finite(logits: torch.Tensor) -> torch.Tensor:
    """Whether a row's distribution exists [rows]: its best logit is a number."""
    return torch.isfinite(logits.amax(-1))
