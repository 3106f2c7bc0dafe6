"""Where the time of a run goes: seconds by phase, each second counted once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from time import perf_counter
from types import TracebackType


class Clock:
    """The seconds of one thread, by phase.

    A phase within another takes its time from the outer one, so that no second is counted twice. A thread
    that works beside others has a clock of its own; `merged` adds them up.

    times: phase -> seconds in it alone. counts: what was counted, by name. close: whether what happens many
    times in a forward is timed too (`closely`), which costs. settle: waits until the device has done what was
    asked of it; a close clock calls it where a phase begins or ends; None: nothing to wait for.
    """

    def __init__(self, close: bool = False, settle: Callable[[], None] | None = None) -> None:
        self.times: dict[str, float] = {}
        self.counts: Counter[str] = Counter()
        self.close = close
        self.settle = settle
        self._open: list[str] = []
        self._since = 0.0

    def during(self, phase: str) -> AbstractContextManager[None]:
        """Time what is within under `phase`, also where it raises."""
        return _During(self, phase)

    def closely(self, phase: str) -> AbstractContextManager[None]:
        """As `during`, for what happens many times in a forward: timed of a close clock alone."""
        return _During(self, phase) if self.close else _UNTIMED

    def count(self, what: str, number: int = 1) -> None:
        """Add to a count."""
        self.counts[what] += number

    def beside(self) -> Clock:
        """A new clock of the same kind, for a thread that works beside this one's."""
        return Clock(self.close, self.settle)

    @property
    def seconds(self) -> float:
        """Seconds in all phases together."""
        return sum(self.times.values())

    def _begin(self, phase: str) -> None:
        self._share_out()
        self._open.append(phase)

    def _end(self) -> None:
        self._share_out()
        self._open.pop()

    def _share_out(self) -> None:
        """Give the time since the last change to the phase that it was spent in."""
        if self.close and self.settle is not None:
            self.settle()
        now = perf_counter()
        if self._open:
            phase = self._open[-1]
            self.times[phase] = self.times.get(phase, 0.0) + now - self._since
        self._since = now


class _During:
    """One stay in a phase."""

    __slots__ = ("_clock", "_phase")

    def __init__(self, clock: Clock, phase: str) -> None:
        self._clock, self._phase = clock, phase

    def __enter__(self) -> None:
        self._clock._begin(self._phase)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._clock._end()


_UNTIMED: AbstractContextManager[None] = nullcontext()


def merged(clocks: Iterable[Clock]) -> Clock:
    """The seconds and counts of clocks of several threads added up: more than the time that has passed where
    they worked at the same time."""
    total = Clock()
    for clock in clocks:
        for phase, seconds in clock.times.items():
            total.times[phase] = total.times.get(phase, 0.0) + seconds
        total.counts.update(clock.counts)
    return total
