"""What this machine can do: the figures that every result is to be read against."""

from __future__ import annotations

import os
import platform
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.results_file import number

_SECONDS = 0.15  # that a rate is measured for, in each of its rounds
_ROUNDS = 5
_COPIED = 1 << 25  # numbers


@dataclass(frozen=True)
class Machine:
    """processor, cores, load: of the machine; threads: those that torch chose for itself. square: GFLOP/s
    of a large float32 product with a thread on every core; copy: GB/s read and written by a large copy."""

    processor: str
    cores: int
    load: float
    threads: int
    square: float
    copy: float

    @staticmethod
    def measured(size: int = 1536) -> Machine:
        """Measure it: about two seconds. size: rows and columns of the large product."""
        threads = torch.get_num_threads()
        torch.set_num_threads(cores())
        try:
            return Machine(processor(), cores(), _load(), threads, _square(size), _copy())
        finally:
            torch.set_num_threads(threads)

    def words(self) -> str:
        """The machine in one sentence."""
        return (
            f"{self.processor}, {self.cores} cores, Python {platform.python_version()}, torch "
            f"{torch.__version__} ({self.threads} threads by itself), load average {self.load:.1f}; a large "
            f"float32 product runs at {number(self.square)} GFLOP/s on all cores, a copy at "
            f"{number(self.copy)} GB/s"
        )


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> str:
    """The processor's name as the system tells it."""
    told = Path("/proc/cpuinfo")
    lines = told.read_text(encoding="utf-8").splitlines() if told.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _load() -> float:
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def per_second(work: Callable[[], object], amount: float) -> float:
    """The median rate over rounds of a piece of work that does `amount` of something."""
    work()
    rates = []
    for _ in range(_ROUNDS):
        count, started = 0, time.perf_counter()
        while count == 0 or time.perf_counter() - started < _SECONDS:
            work()
            count += 1
        rates.append(count * amount / (time.perf_counter() - started))
    return statistics.median(rates)


def _square(size: int) -> float:
    a, b = torch.randn(size, size), torch.randn(size, size)
    return per_second(lambda: a @ b, 2 * size**3) / 1e9


def _copy() -> float:
    a = torch.zeros(_COPIED)
    b = torch.empty_like(a)
    return per_second(lambda: b.copy_(a), 2 * a.nbytes) / 1e9


def products_rate(shapes: Sequence[tuple[int, int]], rows: int, threads: int) -> float:
    """GFLOP/s of the products [rows, a] x [a, b] of a model's own matrices, one after the other.

    threads: so many do it at the same time, each on one core, as workers do; the rate is the sum of theirs.
    """
    rates: list[float] = []
    flops = sum(2.0 * rows * a * b for a, b in shapes)

    def alone() -> None:
        torch.set_num_threads(1)
        pairs = [(torch.randn(rows, a), torch.randn(b, a).t()) for a, b in shapes]
        rates.append(per_second(lambda: [x @ y for x, y in pairs], flops) / 1e9)

    before = torch.get_num_threads()
    workers = [threading.Thread(target=alone) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    torch.set_num_threads(before)
    return sum(rates)
