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
        if weight is None:
            ones = torch.ones_like(change)
        else:  # what a finished row computes need not be a number
            ones = weight.to(device)
            change = torch.where(ones > 0, change * ones, 0)
        self.counts[layer].index_add_(0, rows, ones)
        self.change.index_add_(0, rows, change)
        self.measured.index_add_(0, rows, ones)

    def add_layers(
        self, layers: slice, rows: torch.Tensor, change: torch.Tensor, weight: torch.Tensor
    ) -> None:
        """Count one touched position per entry of `rows` at each of these layers. change: [layers, n]."""
        device = self.change.device
        rows, change, ones = rows.to(device), change.to(device), weight.to(device)
        summed = torch.where(ones > 0, change.sum(0) * ones, 0)
        self.counts[layers].index_add_(1, rows, ones.expand(len(change), -1))
        self.change.index_add_(0, rows, summed)
        self.measured.index_add_(0, rows, ones * len(change))

    def put(self, rows: torch.Tensor, other: Tally) -> None:
        """Add what another tally counted, whose rows are `rows` of this one (no row twice)."""
        self.counts.index_add_(1, rows, other.counts)
        self.change.index_add_(0, rows, other.change)
        self.measured.index_add_(0, rows, other.measured)

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


class Ledger:
    """What one decode write does in one forward, layer by layer, entered into its tally once all its layers
    are there: a write at nine layers costs one sum and not nine.

    layers: those of the tally; rows: of the tally [n]; weight: [n], 0 where the row has finished or is left
    alone.
    """

    def __init__(self, tally: Tally, layers: slice, rows: torch.Tensor, weight: torch.Tensor) -> None:
        self._tally, self._layers, self._rows, self._weight = tally, layers, rows, weight
        self._old: list[torch.Tensor] = []
        self._new: list[torch.Tensor] = []

    def note(self, old: torch.Tensor, new: torch.Tensor) -> None:
        """Take in what was written at the next layer, [n, width] before and after; neither changes later."""
        self._old.append(old)
        self._new.append(new)
        if len(self._old) == self._layers.stop - self._layers.start:
            change = relative_change(torch.stack(self._old), torch.stack(self._new))
            self._tally.add_layers(self._layers, self._rows, change, self._weight)


def relative_change(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """|new - old| / |old| over the last dimension, in float32; 1 where something replaces a zero vector."""
    before = old.float()
    moved = torch.linalg.vector_norm(new.float() - before, dim=-1)
    size = torch.linalg.vector_norm(before, dim=-1)
    return torch.where(size > 0, moved / size.clamp_min(1e-30), (moved > 0).float())


def matched_noise(old: torch.Tensor, noise: torch.Tensor, head_width: int) -> torch.Tensor:
    """Gaussian rows with the mean and standard deviation of each head of the row replaced. old: [n, width];
    noise: row keys [n], or the standard normal numbers drawn with them [n, width]."""
    heads = old.float().view(old.shape[0], old.shape[1] // head_width, head_width)
    if noise.ndim == 1:
        noise = normal(noise, old.shape[1], token_hash(2 * old.shape[1], old.device))
    z = noise.view_as(heads)
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
        """New rows [n, width], and the columns of them that were written [n, width or fewer]. value: [n,
        width], [1, width] or None; noise: row keys [n], of `matched` also as `matched_noise` takes it, or
        None."""
        if self.sae is not None:
            new = self.sae.write(self.op, old, value, self.alpha, self.round_trip)
            return new, new
        if self.draws == "matched":
            assert noise is not None
            value = matched_noise(old, noise, self.head_width)
        if self.columns is None:
            new = operate(self.op, old, self._drawn(value, noise), self.alpha, self.unit)
            return new, new
        before = self.written(old)
        given = self._drawn(None if value is None else value[:, self.columns], noise)
        after = operate(self.op, before, given, self.alpha, self.unit)
        new = old.clone()
        new[:, self.columns] = after
        return new, after

    def written(self, rows: torch.Tensor) -> torch.Tensor:
        """The columns of rows [n, width] that it writes."""
        return rows if self.columns is None else rows[:, self.columns]

    def _drawn(self, value: torch.Tensor | None, noise: torch.Tensor | None) -> torch.Tensor | None:
        if self.draws not in ("orthogonal", "scaled"):
            return value
        assert value is not None and noise is not None
        rows = value.expand(len(noise), -1)
        return orthogonal_noise(rows, noise) if self.draws == "orthogonal" else scaled_noise(rows, noise)


@dataclass(frozen=True, slots=True)
class Touch:
    """One write at one layer in one forward, over n (row, position) pairs of the batch.

    value: [n, width], or [1, width] where it is the same for all; noise: for a random value, as
    Effect.on takes it.
    slots: tally rows. layer: index within the layers of the write. weight: [n] or None. rank: the order of
    the write among those on its tensor. acts: bool [n], the pairs that are written, or None for all; the
    weight of the others is 0.

    ledger: where a decode write counts; None: in the tally. single: the forward has one position a row, so
    that rows alone say where; every: the rows are moreover all of the batch, in their order.
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
    acts: torch.Tensor | None = None
    ledger: Ledger | None = None
    single: bool = False
    every: bool = False

    def apply(self, hidden: torch.Tensor) -> None:
        """Write into `hidden` [rows, positions, width] in place and count it."""
        if not len(self.rows):
            return
        old = self._read(hidden)
        new, after = self.effect.on(old, self.value, self.noise)
        before = self.effect.written(old)
        if self.ledger is None:
            self.tally.add(self.layer, self.slots, relative_change(before, after), self.weight)
        else:  # of all rows it is a view, which is about to be written
            self.ledger.note(before.clone() if self.every and before is old else before, after)
        if self.acts is not None:
            new = torch.where(self.acts[:, None], new, old)
        if self.every:
            hidden[:, 0] = new
        elif self.single:
            hidden[:, 0].index_copy_(0, self.rows, new)
        else:
            hidden[self.rows, self.positions] = new

    def _read(self, hidden: torch.Tensor) -> torch.Tensor:
        if self.every:
            return hidden[:, 0]
        return hidden[:, 0].index_select(0, self.rows) if self.single else hidden[self.rows, self.positions]

    def where(self, chosen: torch.Tensor) -> Touch:
        """The touch of some of its pairs alone: bool [n] or indices. It counts by itself."""

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
            acts=cut(self.acts),
            ledger=None,
            every=False,
        )
