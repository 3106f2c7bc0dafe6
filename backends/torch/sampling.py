"""Drawing the next token: Gumbel-max with the counter hash of `backends.noise`, on the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from backends.noise import GOLDEN, MASK, MULTIPLIERS, SHIFTS, UNIT
from backends.rows import Row


def signed(value: int) -> int:
    """The int32 that has the bits of a 32-bit value."""
    return (value & MASK ^ 1 << 31) - (1 << 31)


def _int32(value: int) -> torch.Tensor:
    """A number as an operand that need not be converted at every use."""
    return torch.tensor(signed(value), dtype=torch.int32)


# Shift; what is left of a number shifted by it, whose sign is copied into the bits that become free; factor.
_ROUNDS = tuple(
    (_int32(shift), _int32(MASK >> shift), None if factor is None else _int32(factor))
    for shift, factor in zip(SHIFTS, (*MULTIPLIERS, None), strict=True)
)
_SPARE, _MANTISSA = _int32(9), _int32(MASK >> 9)  # a uniform has the upper 23 bits of a hash
_ONE = _int32(0x3F800000)  # the bits of 1.0 in float32, whose mantissa has 23
_BELOW_ONE = torch.tensor(1 - UNIT / 2, dtype=torch.float32)
_CHUNK = 65536  # numbers of a chunk on a CPU: what is computed of them stays in its caches


def mix(x: torch.Tensor) -> torch.Tensor:
    """The 32-bit finaliser on int32 tensors; equal to `backends.noise.mix` bit for bit."""
    out = x.clone(memory_format=torch.contiguous_format)
    _mix(out, torch.empty_like(out))
    return out


def _mix(x: torch.Tensor, spare: torch.Tensor) -> None:
    """Mix x in place. spare: of its shape, overwritten."""
    for shift, left, factor in _ROUNDS:
        torch.bitwise_right_shift(x, shift, out=spare)
        x ^= spare.bitwise_and_(left)
        if factor is not None:
            x *= factor


def split_stream(streams: Sequence[int], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """64-bit streams as (high, low) int32 tensors [rows]."""
    high = torch.tensor([signed(s >> 32) for s in streams], dtype=torch.int32, device=device)
    low = torch.tensor([signed(s) for s in streams], dtype=torch.int32, device=device)
    return high, low


def token_hash(count: int, device: torch.device) -> torch.Tensor:
    """mix(token * golden) for tokens 0..count-1, int32 [count]."""
    return mix(torch.arange(count, dtype=torch.int32, device=device) * signed(GOLDEN))


def keys_at(high: torch.Tensor, low: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    """Row keys, int32 [rows], at a step (an integer below 2^31 - 1, as a scalar or [rows])."""
    return mix(low ^ mix(high ^ mix(step.to(torch.int32) + 1)))


def uniform(keys: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Uniforms in (0, 1), float32 [rows, len(tokens)], from row keys and hashed counters: odd multiples of
    2^-24."""
    bits = torch.bitwise_xor(keys[:, None], tokens)
    return _uniform(bits, torch.empty_like(bits))


def _uniform(bits: torch.Tensor, spare: torch.Tensor) -> torch.Tensor:
    """Uniforms in the memory of `bits`, which are mixed first. spare: of their shape, overwritten."""
    _mix(bits, spare)
    bits >>= _SPARE
    bits &= _MANTISSA
    bits |= _ONE  # as the bits of a float: 1 + n 2^-23
    return bits.view(torch.float32).sub_(_BELOW_ONE)  # n 2^-23 + 2^-24, without rounding


def normal(keys: torch.Tensor, width: int, tokens: torch.Tensor) -> torch.Tensor:
    """Standard normal noise [rows, width] by Box-Muller; `tokens` are at least 2 * width hashed counters."""
    u = uniform(keys, tokens[: 2 * width])
    return torch.sqrt(-2.0 * torch.log(u[:, :width])) * torch.cos(2.0 * torch.pi * u[:, width:])


class Chooser(Protocol):
    """Who says which token each row takes next."""

    def draw(
        self, logits: torch.Tensor, step: int | torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Tokens [rows], the margin of the best over the second, and whether the logits were finite. step:
        index of the new token, the same of all rows or each row's own [rows]."""
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
    all_sampled: bool
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
            all_sampled=all(s.temperature > 0 for s in settings),
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

    def draw(
        self, logits: torch.Tensor, step: int | torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Next tokens [rows], the margin [rows] between the two best candidates in logit units, and whether
        the row's best logit is finite [rows].

        logits: [rows, vocabulary]; step: index of the new token, of all rows or [rows]. The margin
        is infinite where truncation leaves one candidate.
        """
        scores = logits.float()
        if not self.any_sampled:
            best, index = scores.topk(2, dim=-1)
            return index[:, 0], best[:, 0] - best[:, 1], torch.isfinite(best[:, 0])
        hot = self.temperature > 0
        scale = torch.where(hot, self.temperature, torch.ones_like(self.temperature))
        if self.any_truncated:
            scores = self._truncated(scores / scale[:, None], hot)
        else:
            scores = scores / scale[:, None]
        keys = keys_at(self.high, self.low, torch.as_tensor(step, device=logits.device))
        weight = None if self.all_sampled else hot.float()
        # On a CPU in chunks of rows that stay in its caches.
        rows, count = scores.shape
        most = max(1, _CHUNK // count) if scores.device.type == "cpu" else max(1, rows)
        for first in range(0, rows, most):
            here = slice(first, first + most)
            part = None if weight is None else weight[here]
            noisy(scores[here], keys[here], self.tokens, part, out=scores[here])
        best, index = scores.topk(2, dim=-1)
        return index[:, 0], (best[:, 0] - best[:, 1]) * scale, torch.isfinite(best[:, 0])

    def _truncated(self, scores: torch.Tensor, hot: torch.Tensor) -> torch.Tensor:
        """Scores with what top_k and top_p leave out at -inf."""
        if scores.device.type != "cpu":  # counting the rows that ask would wait for the device
            return truncate(scores, self.top_k, self.top_p, hot)
        asks = (hot & ((self.top_k > 0) | (self.top_p < 1))).nonzero()[:, 0]
        left = truncate(scores[asks], self.top_k[asks], self.top_p[asks], hot[asks])
        return scores.index_copy_(0, asks, left)


def noisy(
    scores: torch.Tensor,
    keys: torch.Tensor,
    tokens: torch.Tensor,
    weight: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """scores [rows, vocabulary] with standard Gumbel noise -log(-log u) added, which keys [rows] and hashed
    counters [vocabulary] give. weight: [rows], 0 where a row takes none, or None where all take it. out:
    where the sum goes, else a new tensor."""
    bits = torch.bitwise_xor(keys[:, None], tokens)
    down = _uniform(bits, torch.empty_like(bits)).log_().neg_().log_()
    if weight is not None:
        down *= weight[:, None]
    return torch.sub(scores, down, out=out)


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
