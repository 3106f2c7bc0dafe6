"""What a batch has generated so far, and what is recorded of it on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from backends.rows import Row
from backends.torch.hooks import Board, Spot, Tap
from backends.torch.loading import Loaded

SHRINK = (
    0.7  # finished rows leave once fewer than this share of the batch still runs: copying the cache costs too
)


@dataclass
class Progress:
    """What has been generated so far, for all rows of the batch in their first order."""

    tokens: torch.Tensor
    count: torch.Tensor
    ended: torch.Tensor
    bad: torch.Tensor
    margin: torch.Tensor
    forwards: torch.Tensor
    limit: torch.Tensor
    eos: torch.Tensor
    current: torch.Tensor  # rows of the batch that are still in it
    alive: torch.Tensor  # over `current`

    @staticmethod
    def of(rows: Sequence[Row], eos: Sequence[int], device: torch.device) -> Progress:
        limit = torch.tensor([r.sampling.max_new_tokens for r in rows], device=device)
        count = len(rows)

        def zeros(dtype: torch.dtype) -> torch.Tensor:
            return torch.zeros(count, dtype=dtype, device=device)

        return Progress(
            tokens=torch.zeros(count, int(limit.max()), dtype=torch.int64, device=device),
            count=zeros(torch.int64),
            ended=zeros(torch.bool),
            bad=zeros(torch.bool),
            margin=torch.full((count,), torch.inf, device=device),
            forwards=zeros(torch.int64),
            limit=limit,
            eos=torch.tensor(list(eos), dtype=torch.int64, device=device),
            current=torch.arange(count, device=device),
            alive=torch.ones(count, dtype=torch.bool, device=device),
        )

    def take(self, step: int, tokens: torch.Tensor, margin: torch.Tensor, finite: torch.Tensor) -> None:
        """Record the tokens drawn at a step; rows that end, or whose logits are not finite, stop running."""
        here, alive = self.current, self.alive
        self.bad[here] |= alive & ~finite
        good = alive & finite
        self.tokens[here, step] = torch.where(good, tokens, self.tokens[here, step])
        self.count[here] += good
        self.margin[here] = torch.where(good, torch.minimum(self.margin[here], margin), self.margin[here])
        ended = good & torch.isin(tokens, self.eos)
        self.ended[here] |= ended
        self.alive = good & ~ended & (self.count[here] < self.limit[here])

    def shrink(self) -> torch.Tensor | None:
        """Indices into the present batch of the rows to keep, once enough have finished; else None."""
        running = int(self.alive.sum())
        if running == 0 or running > SHRINK * len(self.current):
            return None
        kept = self.alive.nonzero()[:, 0]
        self.current, self.alive = self.current[kept], self.alive[kept]
        return kept


@dataclass
class Recorder:
    """Activations of the newest token at each decode forward: (site, layer) -> list of [rows, width]."""

    spots: frozenset[Spot]
    seen: dict[Spot, list[torch.Tensor]] = field(default_factory=dict)

    def tap(self, board: Board) -> None:
        """Record the next forward."""
        for spot in self.spots:
            board.taps[spot] = self._keep(spot)

    def rows(self, spot: Spot, row: int, count: int, loaded: Loaded) -> torch.Tensor:
        """What one row's first `count` decode forwards had at a spot: [count, width]."""
        steps = self.seen.get(spot, [])[: max(count, 1)]
        if steps:
            return torch.stack([step[row] for step in steps])[:count]
        return torch.zeros(0, loaded.info.width, device=loaded.device)  # no row had a decode forward

    def _keep(self, spot: Spot) -> Tap:
        def tap(hidden: torch.Tensor) -> None:
            self.seen.setdefault(spot, []).append(hidden[:, -1].clone())

        return tap
