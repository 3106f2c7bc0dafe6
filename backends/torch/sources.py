"""What writes draw from - activations and caches of captured runs, means over sets of prompts, SAEs - kept
within a memory budget, for all threads that run batches of one model."""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import torch

from backends.needs import MeanKey, Spots
from backends.rows import SourceRun
from backends.torch.features import FeatureSet, FeatureStore
from backends.torch.hooks import Spot
from backends.torch.spill import Record, Spill
from backends.writes import Features

Key = TypeVar("Key", SourceRun, MeanKey)


@dataclass(frozen=True)
class Source:
    """What one run had, as far as it was asked for. sites: (site, layer) -> [tokens, width]; of its cache,
    ("keys", layer) and ("values", layer) -> [kv heads, tokens, width]."""

    sites: dict[Spot, torch.Tensor] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in self.sites.values())


@dataclass
class _Away:
    """A run whose captures are all on disk. homes: the device that each was on, shared by runs of a form."""

    record: Record
    homes: tuple[torch.device, ...]


@dataclass
class _Here:
    """A run whose captures are in memory: near (where they were made), or on the CPU instead of a GPU.
    homes: the device that each was made on. record: their copy on disk, which is complete."""

    source: Source = field(default_factory=Source)
    homes: dict[Spot, torch.device] = field(default_factory=dict)
    record: _Away | None = None


class Holding:
    """What one running batch has pinned in a store."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._runs: set[SourceRun] = set()

    def pin(self, runs: Iterable[SourceRun]) -> None:
        """Let nothing of these runs leave memory before the batch is done, and bring back what has left."""
        new = set(runs) - self._runs
        self._runs |= new
        self._sources._pin(new)

    def let_go(self) -> None:
        """The batch is done."""
        runs, self._runs = self._runs, set()
        self._sources._unpin(runs)


class Sources:
    """A bounded store of captures, for any number of threads. What it hands out is never written to.

    Each capture is made once: whoever needs one that another thread is making waits for it (`capturing`,
    `wait`). Beyond the budget, those that no running batch has pinned leave in the order in which they were
    last used: from a GPU to the CPU's memory, from there to a temporary file. Pinning brings them back. Only
    what that file has no room for is forgotten, and captured again when it is needed; `forgotten` counts it.
    """

    def __init__(self, budget: int, host_budget: int | None = None, spill: Spill | None = None) -> None:
        """budget: bytes of captures where they are made; host_budget: of those that a GPU has sent to the
        CPU's memory; None: as many."""
        self._budget = budget
        self._host_budget = budget if host_budget is None else host_budget
        self._spill = Spill() if spill is None else spill
        self._change = threading.Condition()
        self._near: OrderedDict[SourceRun, _Here] = OrderedDict()
        self._host: OrderedDict[SourceRun, _Here] = OrderedDict()
        self._disk: dict[SourceRun, _Away] = {}
        self._near_bytes = 0
        self._host_bytes = 0
        self._pins: Counter[SourceRun] = Counter()
        self._claims: set[tuple[SourceRun | MeanKey, Spot]] = set()
        self._means: dict[tuple[MeanKey, Spot], torch.Tensor] = {}
        self._features = FeatureStore()
        self._homes: dict[tuple[torch.device, ...], tuple[torch.device, ...]] = {}
        self.forgotten = 0

    @contextmanager
    def holding(self) -> Iterator[Holding]:
        """For as long as a batch runs: what it needs is pinned through this."""
        held = Holding(self)
        try:
            yield held
        finally:
            held.let_go()

    def missing(self, wanted: Mapping[Key, Spots]) -> dict[Key, Spots]:
        """Of what is wanted, what has not been captured, or averaged, yet."""
        with self._change:
            left = {key: {s for s in spots if not self._has(key, s)} for key, spots in wanted.items()}
        return {key: spots for key, spots in left.items() if spots}

    @contextmanager
    def capturing(self, wanted: Mapping[Key, Spots]) -> Iterator[dict[Key, Spots]]:
        """What is missing and nobody else is capturing: the caller's to capture, within this context.

        Within it a caller must not wait for others, who may be waiting for it: what its captures need has to
        be there before.
        """
        with self._change:
            mine = {
                key: {s for s in spots if (key, s) not in self._claims}
                for key, spots in self.missing(wanted).items()
            }
            mine = {key: spots for key, spots in mine.items() if spots}
            claims = {(key, spot) for key, spots in mine.items() for spot in spots}
            self._claims |= claims
        try:
            yield mine
        finally:
            with self._change:
                self._claims -= claims
                self._change.notify_all()

    def wait(self, wanted: Mapping[Key, Spots]) -> None:
        """Until nobody is capturing anything of this."""
        asked = {(key, spot) for key, spots in wanted.items() for spot in spots}
        with self._change:
            self._change.wait_for(lambda: self._claims.isdisjoint(asked))

    def keep(self, run: SourceRun, sites: Mapping[Spot, torch.Tensor]) -> None:
        """Add captures of a run."""
        if not sites:
            return
        with self._change:
            here = self._bring_back(run)
            self._near_bytes -= here.source.bytes
            here.source.sites.update(sites)
            here.homes.update({spot: tensor.device for spot, tensor in sites.items()})
            here.record = None
            self._near_bytes += here.source.bytes
            self._settle()

    def get(self, run: SourceRun) -> Source:
        """The captures of a run. Raises KeyError where there are none."""
        with self._change:
            if run not in self._near and run not in self._host and run not in self._disk:
                raise KeyError(run)
            return self._bring_back(run).source

    def keep_mean(self, key: MeanKey, spot: Spot, mean: torch.Tensor) -> None:
        with self._change:
            self._means[key, spot] = mean

    def mean(self, key: MeanKey, spot: Spot) -> torch.Tensor:
        """The mean [width] over a set of prompts, in float32."""
        return self._means[key, spot]

    def features(self, features: Features, layer: int, device: torch.device) -> FeatureSet:
        """The features of an SAE on the layer's device, its files read once."""
        return self._features.of(features, layer, device)

    def bytes_in(self) -> dict[str, int]:
        """How much is where: `near` (where it was made), `host`, `disk`."""
        with self._change:
            return {"near": self._near_bytes, "host": self._host_bytes, "disk": self._spill.bytes}

    def close(self) -> None:
        """Forget everything, and give the disk's space back."""
        with self._change:
            for kept in (self._near, self._host, self._disk, self._means):
                kept.clear()
            self._near_bytes = self._host_bytes = 0
            self._spill.close()

    def _has(self, key: SourceRun | MeanKey, spot: Spot) -> bool:
        if not isinstance(key, SourceRun):
            return (key, spot) in self._means
        here = self._near.get(key) or self._host.get(key)
        if here is not None:
            return spot in here.homes
        away = self._disk.get(key)
        return away is not None and any(part.spot == spot for part in away.record.parts)

    def _pin(self, runs: Iterable[SourceRun]) -> None:
        with self._change:
            for run in runs:
                self._pins[run] += 1
                if run in self._near or run in self._host or run in self._disk:
                    self._bring_back(run)
            self._settle()

    def _unpin(self, runs: Iterable[SourceRun]) -> None:
        with self._change:
            for run in runs:
                self._pins[run] -= 1
                if not self._pins[run]:
                    del self._pins[run]
            self._settle()

    def _bring_back(self, run: SourceRun) -> _Here:
        """A run's captures where they were made, as the ones used last; of a new run, none yet."""
        if run in self._near:
            self._near.move_to_end(run)
            return self._near[run]
        here = self._host.pop(run, None)
        if here is not None:
            self._host_bytes -= here.source.bytes
        elif run in self._disk:
            away = self._disk.pop(run)
            found = self._spill.read(away.record)
            here = _Here(Source(found), dict(zip(found, away.homes, strict=True)), away)
        else:
            here = _Here()
        for spot, home in here.homes.items():
            here.source.sites[spot] = here.source.sites[spot].to(home)
        self._near[run] = here
        self._near_bytes += here.source.bytes
        return here

    def _settle(self) -> None:
        """Move captures that nobody has pinned out of memory, until the rest fits the budgets."""
        for run in self._leaving(self._near, lambda: self._near_bytes > self._budget):
            here = self._near.pop(run)
            size = here.source.bytes
            self._near_bytes -= size
            if any(home.type != "cpu" for home in here.homes.values()):
                # A copy, for batches that have ended may still hold the tensors themselves.
                moved = {spot: tensor.to("cpu") for spot, tensor in here.source.sites.items()}
                self._host[run] = _Here(Source(moved), here.homes, here.record)
                self._host_bytes += size
            else:
                self._put_away(run, here)
        for run in self._leaving(self._host, lambda: self._host_bytes > self._host_budget):
            here = self._host.pop(run)
            self._host_bytes -= here.source.bytes
            self._put_away(run, here)

    def _leaving(self, kept: OrderedDict[SourceRun, _Here], over: Callable[[], bool]) -> Iterator[SourceRun]:
        """Runs to move, those used longest ago first, for as long as there is too much."""
        if over():
            for run in [run for run in kept if run not in self._pins]:
                if not over():
                    return
                yield run

    def _put_away(self, run: SourceRun, here: _Here) -> None:
        if here.record is None and here.source.sites:
            record = self._spill.write(here.source.sites)
            if record is None:
                self.forgotten += 1
                return
            homes = tuple(here.homes[part.spot] for part in record.parts)
            here.record = _Away(record, self._homes.setdefault(homes, homes))
        if here.record is not None:
            self._disk[run] = here.record


def chunks(prompts: Sequence[SourceRun], tokens: int) -> list[list[SourceRun]]:
    """Runs, in order of length, in groups whose padded size stays within `tokens`."""
    out: list[list[SourceRun]] = []
    for run in prompts:
        if out and (len(out[-1]) + 1) * len(run.ids) <= tokens:
            out[-1].append(run)
        else:
            out.append([run])
    return out
