"""Reading and writing activations: one hook per site and layer, armed once per batch, one masked operation
per write."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from backends.clock import Clock
from backends.torch.loading import Loaded
from backends.torch.sites import Columns, find
from backends.torch.touches import Touch
from backends.writes import MODULE_SITES

Spot = tuple[str, int]  # (site, layer)
Tap = Callable[[torch.Tensor], None]
Edge = Callable[[torch.Tensor], torch.Tensor]  # on a mask of what is seen


def keep_in(store: dict[Spot, torch.Tensor], spot: Spot) -> Tap:
    """A tap that keeps what it sees under its spot."""

    def tap(hidden: torch.Tensor) -> None:
        store[spot] = hidden

    return tap


@dataclass
class Board:
    """What the armed hooks do in the next forward. The caller sets `touches`, `taps` and `edges` before each
    forward.

    A spot is (site, layer): embed is ("embed", 0), logits ("logits", last layer). A tap sees what the touches
    of its spot left. edges: layer -> function of which keys each query may see, bool [rows, 1, queries,
    keys], giving bool [rows, 1 or heads, queries, keys]. clock: of the thread that runs the forwards.
    """

    loaded: Loaded
    touches: dict[Spot, list[Touch]] = field(default_factory=dict)
    taps: dict[Spot, Tap] = field(default_factory=dict)
    edges: dict[int, Edge] = field(default_factory=dict)
    clock: Clock = field(default_factory=Clock)

    @contextmanager
    def armed(self, spots: Iterable[Spot], edges: Iterable[int] = ()) -> Iterator[Board]:
        """Hooks at these spots and at the attention masks of the layers `edges`, removed on the way out
        whatever happens."""
        handles = []
        try:
            for site, layer in sorted(set(spots), key=lambda s: (s[1], MODULE_SITES.index(s[0]))):
                handles.append(self._hook((site, layer)))
            for layer in sorted(set(edges)):
                attention = self._module(self.loaded.layout.attention, layer)
                handles.append(attention.register_forward_pre_hook(self._on_mask(layer), with_kwargs=True))
            yield self
        finally:
            for handle in handles:
                handle.remove()
            self.touches, self.taps, self.edges = {}, {}, {}

    def _module(self, path: str, layer: int | None) -> nn.Module:
        root = self.loaded.model if layer is None else self.loaded.blocks[layer]
        module = find(root, path)
        assert module is not None, f"{path} of layer {layer} was checked at load"
        return module

    def _hook(self, spot: Spot) -> RemovableHandle:
        site, layer = spot
        place = self.loaded.layout.place(site, self.loaded.info)
        module = self._module(place.path, layer if place.within == "block" else None)
        if site == "logits":
            return module.register_forward_hook(self._on_logits(spot), with_kwargs=True)
        if place.side == "output":
            return module.register_forward_hook(self._on_output(spot, place.columns))
        return module.register_forward_pre_hook(
            self._on_stream(spot) if site == "resid_mid" else self._on_input(spot)
        )

    def _pass(self, spot: Spot, hidden: torch.Tensor, columns: Columns | None = None) -> torch.Tensor:
        """What the module takes or gives with the spot's touches applied to a copy. Of a module that gives
        several sites the spot is its own columns alone."""
        touches, tap = self.touches.get(spot), self.taps.get(spot)
        if not touches and tap is None:
            return hidden
        part = hidden if columns is None else columns.of(hidden)
        if touches:
            # Where a model is spread over devices, a layer's input may still be on that of the layer before.
            with self.clock.closely("write"):
                part = part.to(touches[0].rows.device, copy=True)
                for touch in touches:
                    touch.apply(part)
                hidden = part if columns is None else columns.into(hidden, part)
        if tap is not None:
            tap(part)
        return hidden

    def _on_input(self, spot: Spot) -> Callable[[nn.Module, tuple[object, ...]], tuple[object, ...] | None]:
        def hook(module: nn.Module, args: tuple[object, ...]) -> tuple[object, ...] | None:
            hidden = args[0]
            assert isinstance(hidden, torch.Tensor)
            return (self._pass(spot, hidden), *args[1:])

        return hook

    def _on_stream(self, spot: Spot) -> Callable[[nn.Module, tuple[object, ...]], None]:
        """For the residual stream inside a block: what goes into the norm is the very tensor that the MLP's
        result is added to, made by the addition before it and read by nothing else. Written in place, it
        changes both."""

        def hook(module: nn.Module, args: tuple[object, ...]) -> None:
            hidden = args[0]
            assert isinstance(hidden, torch.Tensor)
            touches = self.touches.get(spot)
            if touches:
                with self.clock.closely("write"):
                    for touch in touches:
                        touch.apply(hidden)
            tap = self.taps.get(spot)
            if tap is not None:
                tap(hidden)

        return hook

    def _on_output(
        self, spot: Spot, columns: Columns | None
    ) -> Callable[[nn.Module, tuple[object, ...], object], object]:
        def hook(module: nn.Module, args: tuple[object, ...], output: object) -> object:
            if isinstance(output, tuple):
                return (self._pass(spot, output[0], columns), *output[1:])
            assert isinstance(output, torch.Tensor)
            return self._pass(spot, output, columns)

        return hook

    def _on_logits(self, spot: Spot) -> Callable[..., object]:
        """For what the model returns: the last positions of the forward, as many as it was asked to keep.
        Touches at the others are left out. output: transformers' own class, which has `logits`."""

        def hook(
            module: nn.Module,
            args: tuple[object, ...],
            kwargs: Mapping[str, torch.Tensor],
            output: Any,
        ) -> object:
            left_out = kwargs["input_ids"].shape[1] - output.logits.shape[1]
            touches = self.touches.get(spot)
            if touches and left_out:
                later = [_later(touch, left_out) for touch in touches]
                self.touches[spot] = [touch for touch in later if len(touch.rows)]
            place = output.logits.device  # of the head, which may be another than that of the last layer
            there = touches[0].rows.device if touches else place
            output.logits = self._pass(spot, output.logits.to(there)).to(place)
            if touches is not None:
                self.touches[spot] = touches
            return output

        return hook

    def _on_mask(self, layer: int) -> Callable[..., object]:
        """For the mask of one layer's attention, whose form is that of `forward.attention_masks`: bool, or
        numbers to add to the scores. What comes out is bool for the fused attention, which says what a query
        without a key gets, numbers for `eager`."""

        def hook(
            module: nn.Module, args: tuple[object, ...], kwargs: dict[str, torch.Tensor]
        ) -> tuple[tuple[object, ...], dict[str, torch.Tensor]] | None:
            edge, mask = self.edges.get(layer), kwargs["attention_mask"]
            if edge is None:
                return None
            allowed = edge(mask if mask.dtype == torch.bool else mask == 0)
            if self.loaded.info.attention == "sdpa":
                return args, {**kwargs, "attention_mask": allowed}
            added = torch.zeros(allowed.shape, dtype=mask.dtype, device=mask.device)
            added = added.masked_fill(~allowed, torch.finfo(mask.dtype).min)
            return args, {**kwargs, "attention_mask": added}

        return hook


def _later(touch: Touch, left_out: int) -> Touch:
    """A touch of a forward, of which the first `left_out` positions are not there."""
    kept = touch.where(touch.positions >= left_out)
    return replace(kept, positions=kept.positions - left_out)
