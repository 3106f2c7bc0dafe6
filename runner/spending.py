"""Where the time of a run goes, and how that is told: the manifest's seconds, and `profile=true`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from time import perf_counter
from typing import Any

from backends.clock import Clock
from backends.contract import Backend

OTHER = "other"
# Phases in the order in which they are told, in words.
PHASES: Mapping[str, str] = {
    "load": "loading model and libraries",
    "plan": "pairing prompts, planning",
    "capture": "running donors",
    "prefill": "running prompts",
    "decode": "generating",
    "write": "applying writes",
    "score": "measuring readouts",
    "store": "storing results",
    "join": "joining results with the plan",
    "summarise": "statistics, summary",
    "figures": "figures",
    "report": "report",
    OTHER: "anything else, waiting",
}
_GENERATING = ("prefill", "decode", "write")
_WORK = (
    "work"  # the main thread's own time while the model works; what the model's clock says takes its place
)


class Spending:
    """The seconds of a run from when it is made, by phase, each counted once.

    clock: of the thread that leads the run. stages: wall seconds by stage. What a backend does, in threads
    that may work at the same time, is taken from its own clock (`work`): `seconds` are the sums over all
    threads, `wall` what of the time that has passed falls to each phase. Where threads have spent more
    seconds than have passed, what has passed is divided among the phases in proportion.
    """

    def __init__(self, close: bool) -> None:
        """close: whether writes are timed and forwards counted (`profile=true`)."""
        self.clock = Clock()
        self.stages: dict[str, float] = {}
        self.counts: Counter[str] = Counter()
        self.workers = 1
        self._close = close
        self._began = perf_counter()
        self._worked: dict[str, float] = {}
        self._shared: dict[str, float] = {}

    def during(self, phase: str) -> AbstractContextManager[None]:
        """Time what is within under `phase`."""
        return self.clock.during(phase)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage."""
        began = perf_counter()
        try:
            yield
        finally:
            self.stages[name] = self.stages.get(name, 0.0) + perf_counter() - began

    @contextmanager
    def work(self, backend: Backend) -> Iterator[None]:
        """Take over what the clock of a backend gains meanwhile. It runs when this is left, also by an
        exception."""
        clock = backend.clock
        clock.close = self._close
        self.workers = max(self.workers, backend.workers)
        times, counts, before = dict(clock.times), Counter(clock.counts), self._own(_WORK)
        try:
            with self.clock.during(_WORK):
                yield
        finally:
            passed = self._own(_WORK) - before
            gained = {phase: found - times.get(phase, 0.0) for phase, found in clock.times.items()}
            total = sum(gained.values())
            part = min(1.0, passed / total) if total > 0 else 1.0
            for phase, seconds in gained.items():
                self._worked[phase] = self._worked.get(phase, 0.0) + seconds
                self._shared[phase] = self._shared.get(phase, 0.0) + part * seconds
            self.counts += Counter(clock.counts) - counts

    def _own(self, phase: str) -> float:
        return self.clock.times.get(phase, 0.0)

    @property
    def passed(self) -> float:
        """Seconds since this was made."""
        return perf_counter() - self._began

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by phase, added up over all threads."""
        return self._with(self._worked)

    @property
    def wall(self) -> dict[str, float]:
        """Seconds by phase, of the time that has passed: together no more than `passed`."""
        return self._with(self._shared)

    def _with(self, worked: Mapping[str, float]) -> dict[str, float]:
        """The leading thread's seconds and those of backends, in the order in which they are told."""
        found = {phase: seconds for phase, seconds in self.clock.times.items() if phase != _WORK}
        for phase, seconds in worked.items():
            found[phase] = found.get(phase, 0.0) + seconds
        known = [phase for phase in PHASES if phase in found]
        return {phase: found[phase] for phase in (*known, *(found.keys() - set(known)))}

    def profile(self) -> dict[str, Any]:
        """What profile.json says, see docs/speed.md. Shares are of the time that has passed; they add up to
        1."""
        passed, wall = self.passed, self.wall
        shares = {phase: seconds / passed for phase, seconds in wall.items()}
        shares[OTHER] = max(0.0, 1 - sum(shares.values()))
        busy, working = sum(self._worked.values()), self._own(_WORK)
        return {
            "wall": passed,
            "workers": self.workers,
            "busy": busy / working if working else 0.0,
            "seconds": self.seconds,
            "shares": shares,
            "stages": dict(self.stages),
            "rows": self.counts["rows"],
            "forwards": self.counts["forwards"],
            "tokens_in": self.counts["tokens_in"],
            "tokens": {
                "generated": _speed(self.counts["generated"], wall, _GENERATING),
                "scored": _speed(self.counts["scored"], wall, ("score",)),
            },
        }


def _speed(tokens: int, wall: Mapping[str, float], phases: tuple[str, ...]) -> dict[str, float | None]:
    """How many tokens, and how many in a second of the phases that they are from (None: of none)."""
    seconds = sum(wall.get(phase, 0.0) for phase in phases)
    return {"tokens": tokens, "per_second": tokens / seconds if tokens and seconds > 0 else None}


def told(profile: Mapping[str, Any]) -> list[str]:
    """A profile in lines: a table of where the time went, and how much was computed."""
    workers = profile["workers"]
    by = f", {workers} workers, on average {profile['busy']:.1f} at work" if workers > 1 else ""
    lines = [f"time: {profile['wall']:.1f} s{by}"]
    width = max(map(len, PHASES.values()))
    for phase, share in profile["shares"].items():
        words = PHASES.get(phase, phase)
        lines.append(f"  {phase:<9}  {words:<{width}}  {share * profile['wall']:8.2f} s  {share:6.1%}")
    counted = []
    for word, found in profile["tokens"].items():
        if found["per_second"] is not None:
            counted.append(f"{found['tokens']:,} tokens {word}, {found['per_second']:,.0f} a second")
    if profile["rows"]:
        counted.append(f"{profile['rows']:,} rows in {profile['forwards']:,} forwards")
    return [*lines, *(f"  {sentence}" for sentence in counted)]
