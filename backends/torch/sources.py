"""Activations and caches of the prompts that writes draw from: captured once each, kept within a memory
budget."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from backends.torch.forward import new_cache, prefill
from backends.torch.hooks import Board, Spot, keep_in
from backends.torch.loading import Loaded

Ids = tuple[int, ...]
WHOLE_CACHE: Spot = ("kv_cache", 0)


@dataclass
class Source:
    """One prompt's clean run. sites: (site, layer) -> [tokens, width]; keys, values: per layer [kv heads,
    tokens, width]."""

    sites: dict[Spot, torch.Tensor] = field(default_factory=dict)
    keys: list[torch.Tensor] | None = None
    values: list[torch.Tensor] | None = None

    def has(self, spots: Iterable[Spot]) -> bool:
        return all(s in self.sites or (s == WHOLE_CACHE and self.keys is not None) for s in spots)

    @property
    def bytes(self) -> int:
        kept = [*self.sites.values(), *(self.keys or []), *(self.values or [])]
        return sum(t.numel() * t.element_size() for t in kept)


class Sources:
    """A bounded store of clean captures. What it hands out is never written to."""

    def __init__(self, loaded: Loaded, board: Board, budget: int) -> None:
        self._loaded = loaded
        self._board = board
        self._budget = budget
        self._store: OrderedDict[Ids, Source] = OrderedDict()

    def ensure(self, wanted: Mapping[Ids, set[Spot]], chunk_tokens: int) -> None:
        """Capture what is missing, in left-padded batches of at most `chunk_tokens` tokens (at least one
        prompt)."""
        missing = [ids for ids, spots in wanted.items() if not self._known(ids, spots)]
        for chunk in chunks(sorted(missing, key=len), chunk_tokens):
            spots = set().union(*(wanted[ids] for ids in chunk))
            self._capture(chunk, spots)
        total = sum(source.bytes for source in self._store.values())
        for ids in [i for i in self._store if i not in wanted]:
            if total <= self._budget:
                break
            total -= self._store.pop(ids).bytes

    def get(self, ids: Ids) -> Source:
        return self._store[ids]

    def _known(self, ids: Ids, spots: set[Spot]) -> bool:
        if ids not in self._store:
            return False
        self._store.move_to_end(ids)
        return self._store[ids].has(spots)

    def _capture(self, chunk: Sequence[Ids], spots: set[Spot]) -> None:
        sites = spots - {WHOLE_CACHE}
        tapped: dict[Spot, torch.Tensor] = {}
        cache = None
        if WHOLE_CACHE in spots:
            cache = new_cache(self._loaded, len(chunk), max(len(ids) for ids in chunk))
        with self._board.armed(sites):
            for spot in sites:
                self._board.taps[spot] = keep_in(tapped, spot)
            _, pads = prefill(self._loaded, chunk, cache)
        for index, (ids, pad) in enumerate(zip(chunk, pads.tolist(), strict=True)):
            source = self._store.setdefault(ids, Source())
            for spot, hidden in tapped.items():
                source.sites[spot] = hidden[index, pad:].clone()
            if cache is not None:
                layers = [cache.slot_layer(layer) for layer in range(self._loaded.info.layers)]
                source.keys = [
                    layer.keys[index, :, pad:].clone() for layer in layers if layer.keys is not None
                ]
                source.values = [
                    layer.values[index, :, pad:].clone() for layer in layers if layer.values is not None
                ]


def chunks(prompts: Sequence[Ids], tokens: int) -> list[list[Ids]]:
    """Prompts, in order of length, in groups whose padded size stays within `tokens`."""
    out: list[list[Ids]] = []
    for ids in prompts:
        if out and (len(out[-1]) + 1) * len(ids) <= tokens:
            out[-1].append(ids)
        else:
            out.append([ids])
    return out
