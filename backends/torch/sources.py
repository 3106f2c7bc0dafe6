"""What writes draw from - activations and caches of captured runs, means over sets of prompts, SAEs - kept
within a memory budget."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from backends.needs import MeanKey, Spots
from backends.rows import SourceRun
from backends.torch.features import FeatureSet, FeatureStore
from backends.torch.hooks import Spot
from backends.writes import Features

WHOLE_CACHE: Spot = ("kv_cache", 0)


@dataclass
class Source:
    """What one run had. sites: (site, layer) -> [tokens, width]; keys, values: per layer [kv heads, tokens,
    width]."""

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
    """A bounded store of captures. What it hands out is never written to."""

    def __init__(self, budget: int) -> None:
        """budget in bytes: what captures that no row of the present batch needs may take up."""
        self._budget = budget
        self._store: OrderedDict[SourceRun, Source] = OrderedDict()
        self._means: dict[tuple[MeanKey, Spot], torch.Tensor] = {}
        self._features = FeatureStore()

    def missing(self, wanted: Mapping[SourceRun, Spots]) -> list[SourceRun]:
        """Runs of which something wanted has not been captured."""
        for run in wanted:
            if run in self._store:
                self._store.move_to_end(run)
        return [run for run, spots in wanted.items() if not self._has(run, spots)]

    def _has(self, run: SourceRun, spots: Spots) -> bool:
        return run in self._store and self._store[run].has(spots)

    def of(self, run: SourceRun) -> Source:
        """The run's captures, to be added to."""
        return self._store.setdefault(run, Source())

    def get(self, run: SourceRun) -> Source:
        return self._store[run]

    def missing_means(self, wanted: Mapping[MeanKey, Spots]) -> dict[MeanKey, Spots]:
        """What has not been averaged yet."""
        left = {key: {s for s in spots if (key, s) not in self._means} for key, spots in wanted.items()}
        return {key: spots for key, spots in left.items() if spots}

    def keep_mean(self, key: MeanKey, spot: Spot, mean: torch.Tensor) -> None:
        self._means[key, spot] = mean

    def mean(self, key: MeanKey, spot: Spot) -> torch.Tensor:
        """The mean [width] over a set of prompts, in float32."""
        return self._means[key, spot]

    def features(self, features: Features, layer: int, device: torch.device) -> FeatureSet:
        """The features of an SAE on the layer's device, its files read once."""
        return self._features.of(features, layer, device)

    def evict(self, needed: Container[SourceRun]) -> None:
        """Drop the captures that were used longest ago, until the rest fits the budget."""
        total = sum(source.bytes for source in self._store.values())
        for run in [r for r in self._store if r not in needed]:
            if total <= self._budget:
                break
            total -= self._store.pop(run).bytes


def chunks(prompts: Sequence[SourceRun], tokens: int) -> list[list[SourceRun]]:
    """Runs, in order of length, in groups whose padded size stays within `tokens`."""
    out: list[list[SourceRun]] = []
    for run in prompts:
        if out and (len(out[-1]) + 1) * len(run.ids) <= tokens:
            out[-1].append(run)
        else:
            out.append([run])
    return out
