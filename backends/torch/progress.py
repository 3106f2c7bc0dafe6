"""What a batch has generated so far, and what is recorded of it on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace

import torch

from backends.rows import Row
from backends.torch.hooks import Board, Spot, Tap
from backends.torch.loading import Loaded


@dataclass
class Progress:
    """What rows have generated so far. tokens: [rows, most]; the others [rows]."""

    tokens: torch.Tensor
    count: torch.Tensor
    ended: torch.Tensor
    bad: torch.Tensor
    margin: torch.Tensor
    forwards: torch.Tensor
    limit: torch.Tensor
    alive: torch.Tensor
    eos: torch.Tensor

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
            alive=torch.ones(count, dtype=torch.bool, device=device),
            eos=torch.tensor(list(eos), dtype=torch.int64, device=device),
        )

    def take(
        self, step: int | torch.Tensor, tokens: torch.Tensor, margin: torch.Tensor, finite: torch.Tensor
    ) -> None:
        """Record, in place, the tokens drawn at a step (of all rows, or each row's own [rows]); rows that
        end, or whose logits are not finite, stop running. For rows that do not run it changes nothing."""
        alive = self.alive
        good = alive & finite
        self.bad |= alive ^ good
        if isinstance(step, int):
            self.tokens[:, step] = torch.where(good, tokens, self.tokens[:, step])
        else:
            at = step.clamp(0, self.tokens.shape[1] - 1)[:, None]
            old = self.tokens.gather(1, at)
            self.tokens.scatter_(1, at, torch.where(good[:, None], tokens[:, None], old))
        self.count += good
        self.margin.copy_(torch.where(good, torch.minimum(self.margin, margin), self.margin))
        ended = (tokens[:, None] == self.eos).any(dim=1) & good
        self.ended |= ended
        alive.copy_(good & ~ended & (self.count < self.limit))

    def select(self, rows: torch.Tensor) -> Progress:
        """Of these rows alone, to go on apart from this."""
        names = [each.name for each in fields(self) if each.name != "eos"]
        return replace(self, **{name: getattr(self, name)[rows] for name in names})

    def put(self, rows: torch.Tensor, part: Progress) -> None:
        """Take over what came of rows that went on apart."""
        for each in fields(self):
            if each.name != "eos":
                getattr(self, each.name)[rows] = getattr(part, each.name)


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
