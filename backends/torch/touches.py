"""What writes do to activations: one masked operation per write, layer and forward, counted as it happens."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch

from backends.torch.features import FeatureSet
from backends.torch.sampling import normal, token_hash
from backends.writes import Op, Unit

Draws = Literal["matched", "orthogonal", "scaled"]


class Tally:
    """What one write did, counted on the device as it happens: per layer and row, and the summed relative
    change."""

    def __init__(self, layers: int, rows: int, device: torch.device) -> None:
        self.counts = torch.zeros(layers, rows, device=device)
        self.change = torch.zeros(rows, device=device)
        self.measured = torch.zeros(rows, device=device)

    def add(self, layer: int, rows: torch.Tensor, change: torch.Tensor, weight: torch.Tensor | None) -> None:
        """Count one touched position per entry of `rows`; weight 0 leaves out rows that have already
        finished."""
        device = self.change.device
        rows, change = rows.to(device), change.to(device)
        ones = torch.ones_like(change) if weight is None else weight.to(device)
        self.counts[layer].index_add_(0, rows, ones)
        self.change.index_add_(0, rows, change * ones)
        self.measured.index_add_(0, rows, ones)

    def blank(self) -> Tally:
        """A tally of the same shape that has counted nothing."""
        return Tally(len(self.counts), len(self.change), self.change.device)

    def expand(self, rows: torch.Tensor) -> Tally:
        """The tally of the rows that these shared rows stand for."""
        out = Tally(0, 0, self.change.device)
        out.counts, out.change = self.counts[:, rows], self.change[rows]
        out.measured = self.measured[rows]
        return out

    def merge(self, other: Tally) -> None:
        self.counts += other.counts
        self.change += other.change
        self.measured += other.measured


def relative_change(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """|new - old| / |old| over the last dimension, in float32; 1 where something replaces a zero vector."""
    before, after = old.float(), new.float()
    moved = (after - before).norm(dim=-1)
    size = before.norm(dim=-1)
    return torch.where(size > 0, moved / size.clamp_min(1e-30), (moved > 0).float())


def matched_noise(old: torch.Tensor, keys: torch.Tensor, head_width: int) -> torch.Tensor:
    """Gaussian rows with the mean and standard deviation of each head of the row replaced. old: [n, width];
    keys: [n]."""
    heads = old.float().view(old.shape[0], old.shape[1] // head_width, head_width)
    z = normal(keys, old.shape[1], token_hash(2 * old.shape[1], old.device)).view_as(heads)
    spread = heads.std(dim=-1, correction=0, keepdim=True)
    return (heads.mean(dim=-1, keepdim=True) + spread * z).view_as(old).to(old.dtype)


def orthogonal_noise(value: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Gaussian rows orthogonal to the rows of `value` [n, width], and of their norm. keys: [n]."""
    base = value.double()
    width = base.shape[-1]
    z = normal(keys, width, token_hash(2 * width, keys.device)).view(-1, width).double()
    z = z - _along(z, base)
    z = z - _along(z, base)  # once more: what rounding left of it
    scaled: torch.Tensor = z * (base.norm(dim=-1, keepdim=True) / z.norm(dim=-1, keepdim=True))
    return scaled.to(value.dtype)


def scaled_noise(value: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Gaussian rows of the norms of the rows of `value` [n, width]. keys: [n]."""
    base = value.double()
    width = base.shape[-1]
    z = normal(keys, width, token_hash(2 * width, keys.device)).view(-1, width).double()
    scaled: torch.Tensor = z * (base.norm(dim=-1, keepdim=True) / z.norm(dim=-1, keepdim=True))
    return scaled.to(value.dtype)


def _along(rows: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
    """The part of each row that lies along its direction; not finite where the direction is zero."""
    size = (direction * direction).sum(-1, keepdim=True)
    along: torch.Tensor = (rows * direction).sum(-1, keepdim=True) / size * direction
    return along


def operate(
    op: Op, old: torch.Tensor, value: torch.Tensor | None, alpha: float, unit: Unit = "direction_norm"
) -> torch.Tensor:
    """The result of a write on rows [n, width], as `backends.writes.Write` defines it. project_out and units
    are computed in float32; a zero direction gives what is not finite, which ends the row as invalid."""
    if op == "zero":
        return torch.zeros_like(old)
    if op == "scale":
        return alpha * old
    assert value is not None
    if op == "replace":
        return value.to(old.dtype).expand_as(old)
    if op == "project_out":
        rows = old.float()
        left = rows - alpha * _along(rows, value.float())
        if alpha == 1:  # once more: what rounding left of it
            left = left - _along(left, value.float())
        return left.to(old.dtype)
    assert op == "add", op
    if unit == "direction_norm":
        return old + alpha * value.to(old.dtype)
    direction = value.float()
    step = alpha / direction.norm(dim=-1, keepdim=True)
    if unit == "resid_norm":
        step = step * old.float().norm(dim=-1, keepdim=True)
    moved: torch.Tensor = old.float() + step * direction
    return moved.to(old.dtype)


@dataclass(frozen=True)
class Effect:
    """What a write does to the rows that it touches, at one layer.

    draws: how noise becomes the value: `matched` to the row replaced, per head of `head_width` columns,
    `orthogonal` to the value given and of its norm, or `scaled` to that norm alone. columns: indices of those
    that the write is limited to (heads), or None for all. sae: the features that are written instead, or
    None; `value` then has their values [n or 1, k].
    """

    op: Op
    alpha: float
    unit: Unit = "direction_norm"
    draws: Draws | None = None
    head_width: int = 0
    columns: torch.Tensor | None = None
    sae: FeatureSet | None = None
    round_trip: bool = False

    def on(
        self, old: torch.Tensor, value: torch.Tensor | None, noise: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """New rows [n, width], and the relative change of what was written [n]. value: [n, width], [1, width]
        or None; noise: row keys [n] or None."""
        if self.sae is not None:
            new = self.sae.write(self.op, old, value, self.alpha, self.round_trip)
            return new, relative_change(old, new)
        if self.draws == "matched":
            assert noise is not None
            value = matched_noise(old, noise, self.head_width)
        if self.columns is None:
            new = operate(self.op, old, self._drawn(value, noise), self.alpha, self.unit)
            return new, relative_change(old, new)
        before = old[:, self.columns]
        given = self._drawn(None if value is None else value[:, self.columns], noise)
        after = operate(self.op, before, given, self.alpha, self.unit)
        new = old.clone()
        new[:, self.columns] = after
        return new, relative_change(before, after)

    def _drawn(self, value: torch.Tensor | None, noise: torch.Tensor | None) -> torch.Tensor | None:
        if self.draws not in ("orthogonal", "scaled"):
            return value
        assert value is not None and noise is not None
        rows = value.expand(len(noise), -1)
        return orthogonal_noise(rows, noise) if self.draws == "orthogonal" else scaled_noise(rows, noise)


@dataclass(frozen=True)
class Touch:
    """One write at one layer in one forward, over n (row, position) pairs of the batch.

    value: [n, width], or [1, width] where it is the same for all; noise: row keys [n] for a random value.
    slots: tally rows. layer: index within the layers of the write. weight: [n] or None. rank:
    the order of the write among those on its tensor.
    """

    effect: Effect
    rows: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    tally: Tally
    layer: int
    value: torch.Tensor | None = None
    noise: torch.Tensor | None = None
    weight: torch.Tensor | None = None
    rank: int = 0

    def apply(self, hidden: torch.Tensor) -> None:
        """Write into `hidden` [rows, positions, width] in place and count it."""
        if not len(self.rows):
            return
        new, change = self.effect.on(hidden[self.rows, self.positions], self.value, self.noise)
        hidden[self.rows, self.positions] = new
        self.tally.add(self.layer, self.slots, change, self.weight)

    def where(self, chosen: torch.Tensor) -> Touch:
        """The touch of some of its pairs alone: bool [n] or indices."""

        def cut(tensor: torch.Tensor | None) -> torch.Tensor | None:
            return tensor if tensor is None or len(tensor) != len(self.rows) else tensor[chosen]

        return replace(
            self,
            rows=self.rows[chosen],
            positions=self.positions[chosen],
            slots=self.slots[chosen],
            value=cut(self.value),
            noise=cut(self.noise),
            weight=cut(self.weight),
        )
