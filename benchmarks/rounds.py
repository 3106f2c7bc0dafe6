"""Ways of doing the same thing, timed in turn: medians of ratios, since one timing says little."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch

Work = Callable[[], object]


@dataclass(frozen=True)
class Way:
    """One way of doing something. work: what is timed; threads: torch's threads in it, or None to leave them
    as they are; before: what is done first, untimed; of: the share of the whole that the work does."""

    work: Work
    threads: int | None = None
    before: Work | None = None
    of: float = 1.0


@dataclass(frozen=True)
class Rounds:
    """Seconds of each way, round by round, for the whole where the work does a share of it; processor: the
    same of all threads' processor time, which a busy machine changes less."""

    seconds: Mapping[str, tuple[float, ...]]
    processor: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    def median(self, name: str) -> float:
        return statistics.median(self.seconds[name])

    def ratio(self, slow: str, fast: str) -> float:
        """How many times as long one way takes as another: the median over the rounds."""
        pairs = zip(self.seconds[slow], self.seconds[fast], strict=True)
        return statistics.median(a / b for a, b in pairs)


def interleaved(ways: Mapping[str, Way], rounds: int, *, warm: bool = True) -> Rounds:
    """Time every way in each round, in turn forwards and backwards. warm: each is done once before."""
    found: dict[str, list[Timing]] = {name: [] for name in ways}
    if warm:
        for way in ways.values():
            timed(way)
    for each in range(rounds):
        order = list(ways) if each % 2 == 0 else list(reversed(list(ways)))
        for name in order:
            found[name].append(timed(ways[name]))
    return Rounds(
        {name: tuple(each.seconds / ways[name].of for each in all_) for name, all_ in found.items()},
        {name: tuple(each.processor / ways[name].of for each in all_) for name, all_ in found.items()},
    )


@dataclass(frozen=True)
class Timing:
    """One piece of work: seconds by the clock, and of the processor in all threads."""

    seconds: float
    processor: float


def timed(way: Way) -> Timing:
    """Time a way's work."""
    threads = torch.get_num_threads()
    if way.before is not None:
        way.before()
    gc.collect()
    if way.threads is not None:
        torch.set_num_threads(way.threads)
    started, processor = time.perf_counter(), time.process_time()
    try:
        way.work()
        return Timing(time.perf_counter() - started, time.process_time() - processor)
    finally:
        torch.set_num_threads(threads)


def best_threads(work: Work, choices: Iterable[int]) -> int:
    """The number of torch's threads with which a piece of work takes least, of two timings each."""
    timings: dict[int, list[float]] = {}
    for _ in range(2):
        for threads in choices:
            timings.setdefault(threads, []).append(timed(Way(work, threads)).seconds)
    return min(timings, key=lambda threads: min(timings[threads]))
