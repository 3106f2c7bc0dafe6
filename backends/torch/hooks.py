"""Reading and writing activations: one hook per site and layer, armed once per batch, one masked operation
per write."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn

from backends.torch.sampling import normal, token_hash
from backends.torch.sites import Layout, find
from backends.writes import Op

Spot = tuple[str, int]  # (site, layer)
Tap = Callable[[torch.Tensor], None]


def keep_in(store: dict[Spot, torch.Tensor], spot: Spot) -> Tap:
    """A tap that keeps what it sees under its spot."""

    def tap(hidden: torch.Tensor) -> None:
        store[spot] = hidden

    return tap


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
    heads = old.float().view(old.shape[0], -1, head_width)
    z = normal(keys, old.shape[1], token_hash(2 * old.shape[1], old.device)).view_as(heads)
    spread = heads.std(dim=-1, correction=0, keepdim=True)
    return (heads.mean(dim=-1, keepdim=True) + spread * z).view_as(old).to(old.dtype)


def operate(op: Op, old: torch.Tensor, value: torch.Tensor | None, alpha: float) -> torch.Tensor:
    """The result of a write: replace gives the value, add gives old + alpha * value, zero gives zeros."""
    if op == "zero":
        return torch.zeros_like(old)
    assert value is not None
    value = value.to(old.dtype)
    return value if op == "replace" else old + alpha * value


@dataclass(frozen=True)
class Touch:
    """One write at one layer in one forward, over n (row, position) pairs of the batch.

    value: [n, width]; noise: row keys [n] for a random value, with the width of the heads it is matched
    over. columns: the part of the width that the write is limited to (heads), or None. slots: tally rows.
    weight: [n] or None.
    """

    op: Op
    alpha: float
    rows: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    tally: Tally
    layer: int
    value: torch.Tensor | None = None
    noise: torch.Tensor | None = None
    head_width: int = 0
    columns: torch.Tensor | None = None
    weight: torch.Tensor | None = None

    def apply(self, hidden: torch.Tensor) -> None:
        """Write into `hidden` [rows, positions, width] in place and count it."""
        old = hidden[self.rows, self.positions]
        value = self.value
        if self.noise is not None:
            value = matched_noise(old, self.noise, self.head_width)
        new = operate(self.op, old, value, self.alpha)
        if self.columns is not None:
            new = torch.where(self.columns, new, old)
            change = relative_change(old[:, self.columns], new[:, self.columns])
        else:
            change = relative_change(old, new)
        hidden[self.rows, self.positions] = new
        self.tally.add(self.layer, self.slots, change, self.weight)


@dataclass
class Board:
    """What the armed hooks do in the next forward. The caller sets `touches` and `taps` before each
    forward."""

    blocks: list[nn.Module]
    layout: Layout
    touches: dict[Spot, list[Touch]] = field(default_factory=dict)
    taps: dict[Spot, Tap] = field(default_factory=dict)

    @contextmanager
    def armed(self, spots: Iterable[Spot]) -> Iterator[Board]:
        """Hooks at these spots, removed on the way out whatever happens."""
        handles = []
        try:
            for site, layer in sorted(set(spots)):
                path, side = self.layout.place(site)
                module = find(self.blocks[layer], path)
                assert module is not None, f"{site} of layer {layer} was checked at load"
                if side == "input":
                    handles.append(module.register_forward_pre_hook(self._on_input((site, layer))))
                else:
                    handles.append(module.register_forward_hook(self._on_output((site, layer))))
            yield self
        finally:
            for handle in handles:
                handle.remove()
            self.touches, self.taps = {}, {}

    def _pass(self, spot: Spot, hidden: torch.Tensor) -> torch.Tensor:
        touches = self.touches.get(spot)
        if touches:
            hidden = hidden.clone()
            for touch in touches:
                touch.apply(hidden)
        tap = self.taps.get(spot)
        if tap is not None:
            tap(hidden)
        return hidden

    def _on_input(self, spot: Spot) -> Callable[[nn.Module, tuple[object, ...]], tuple[object, ...] | None]:
        def hook(module: nn.Module, args: tuple[object, ...]) -> tuple[object, ...] | None:
            hidden = args[0]
            assert isinstance(hidden, torch.Tensor)
            return (self._pass(spot, hidden), *args[1:])

        return hook

    def _on_output(self, spot: Spot) -> Callable[[nn.Module, tuple[object, ...], object], object]:
        def hook(module: nn.Module, args: tuple[object, ...], output: object) -> object:
            if isinstance(output, tuple):
                return (self._pass(spot, output[0]), *output[1:])
            assert isinstance(output, torch.Tensor)
            return self._pass(spot, output)

        return hook
