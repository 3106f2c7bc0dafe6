"""Drawing the next token: Gumbel-max with the counter hash of `backends.noise`, on the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from backends.noise import GOLDEN, MASK, MULTIPLIERS, SHIFTS, UNIT
from backends.rows import Row


def mix(x: torch.Tensor) -> torch.Tensor:
    """The 32-bit finaliser on int64 tensors that hold 32-bit values; equal to `backends.noise.mix` bit for
    bit."""
    x = ((x ^ (x >> SHIFTS[0])) * MULTIPLIERS[0]) & MASK
    x = ((x ^ (x >> SHIFTS[1])) * MULTIPLIERS[1]) & MASK
    return x ^ (x >> SHIFTS[2])


def split_stream(streams: Sequence[int], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """64-bit streams as (high, low) int64 tensors [rows] of 32-bit values."""
    high = torch.tensor([s >> 32 for s in streams], dtype=torch.int64, device=device)
    low = torch.tensor([s & MASK for s in streams], dtype=torch.int64, device=device)
    return high, low


def token_hash(count: int, device: torch.device) -> torch.Tensor:
    """mix(token * golden) for tokens 0..count-1, int64 [count]."""
    return mix((torch.arange(count, dtype=torch.int64, device=device) * GOLDEN) & MASK)


def keys_at(high: torch.Tensor, low: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    """Row keys [rows] at a step (int64 scalar or [rows])."""
    return mix(low ^ mix(high ^ mix((step + 1) & MASK)))


def uniform(keys: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Uniforms in (0, 1), float32 [rows, len(tokens)], from row keys and hashed counters."""
    bits = mix(keys[:, None] ^ tokens[None, :])
    return ((bits >> 9).to(torch.float32) + 0.5) * UNIT


def normal(keys: torch.Tensor, width: int, tokens: torch.Tensor) -> torch.Tensor:
    """Standard normal noise [rows, width] by Box-Muller; `tokens` are at least 2 * width hashed counters."""
    u = uniform(keys, tokens[: 2 * width])
    return torch.sqrt(-2.0 * torch.log(u[:, :width])) * torch.cos(2.0 * torch.pi * u[:, width:])


class Chooser(Protocol):
    """Who says which token each row takes next."""

    def draw(self, logits: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Tokens [rows], the margin of the best over the second, and whether the logits were finite."""
        ...

    def select(self, rows: torch.Tensor) -> Chooser:
        """For these rows alone."""
        ...


@dataclass(frozen=True)
class Sampler:
    """Per-row sampling settings as tensors [rows]; `select` keeps some of the rows."""

    temperature: torch.Tensor
    top_k: torch.Tensor
    top_p: torch.Tensor
    high: torch.Tensor
    low: torch.Tensor
    tokens: torch.Tensor
    any_sampled: bool
    any_truncated: bool

    @staticmethod
    def of(rows: Sequence[Row], vocabulary: int, device: torch.device) -> Sampler:
        settings = [row.sampling for row in rows]
        high, low = split_stream([row.stream for row in rows], device)
        return Sampler(
            temperature=torch.tensor([s.temperature for s in settings], dtype=torch.float32, device=device),
            top_k=torch.tensor([s.top_k for s in settings], dtype=torch.int64, device=device),
            top_p=torch.tensor([s.top_p for s in settings], dtype=torch.float32, device=device),
            high=high,
            low=low,
            tokens=token_hash(vocabulary, device),
            any_sampled=any(s.temperature > 0 for s in settings),
            any_truncated=any(s.temperature > 0 and (s.top_k > 0 or s.top_p < 1) for s in settings),
        )

    def select(self, rows: torch.Tensor) -> Sampler:
        return replace(
            self,
            temperature=self.temperature[rows],
            top_k=self.top_k[rows],
            top_p=self.top_p[rows],
            high=self.high[rows],
            low=self.low[rows],
        )

    def draw(self, logits: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Next tokens [rows], the margin [rows] between the two best candidates in logit units, and whether
        the row's best logit is finite [rows].

        logits: [rows, vocabulary]. The margin is infinite where truncation leaves one candidate.
        """
        scores = logits.float()
        if self.any_sampled:
            hot = self.temperature > 0
            scale = torch.where(hot, self.temperature, torch.ones_like(self.temperature))
            scores = scores / scale[:, None]
            if self.any_truncated:
                scores = truncate(scores, self.top_k, self.top_p, hot)
            keys = keys_at(self.high, self.low, torch.tensor(step, device=logits.device))
            noise = -torch.log(-torch.log(uniform(keys, self.tokens)))
            scores = torch.where(hot[:, None], scores + noise, scores)
            best, index = scores.topk(2, dim=-1)
            return index[:, 0], (best[:, 0] - best[:, 1]) * scale, torch.isfinite(best[:, 0])
        best, index = scores.topk(2, dim=-1)
        return index[:, 0], best[:, 0] - best[:, 1], torch.isfinite(best[:, 0])


def truncate(
    scores: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor, hot: torch.Tensor
) -> torch.Tensor:
    """Set to -inf whatever lies outside the top k, then outside the smallest set with probability >= p."""
    ordered, order = scores.sort(dim=-1, descending=True, stable=True)
    rank = torch.arange(scores.shape[-1], device=scores.device)[None, :]
    limit = torch.where(hot & (top_k > 0), top_k, torch.full_like(top_k, scores.shape[-1]))
    keep = rank < limit[:, None]
    probabilities = ordered.masked_fill(~keep, -torch.inf).softmax(-1)
    before = probabilities.cumsum(-1) - probabilities
    bound = torch.where(hot, top_p, torch.ones_like(top_p))
    keep &= (before < bound[:, None]) | (rank == 0)
    return torch.full_like(scores, -torch.inf).scatter(-1, order, ordered.masked_fill(~keep, -torch.inf))
