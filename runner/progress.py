"""What the terminal shows while trials run: a live bar, or plain lines for a log."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from runner.plan import Trial
from runner.speaker import Speaker

QUIET_SECONDS = 30.0


class ProgressWatcher:
    """Counts trials and tokens. quiet: no bar, one plain line at most every 30 s, for logs."""

    def __init__(self, speaker: Speaker, total: int, quiet: bool) -> None:
        self._speaker = speaker
        self.total = total
        self.done = 0
        self.tokens = 0
        self.failures = 0
        self._quiet = quiet or not speaker.console.is_terminal
        self._started = time.perf_counter()
        self._said = self._started
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    @contextmanager
    def showing(self) -> Iterator[ProgressWatcher]:
        """The bar is on screen inside this context; nothing is drawn in quiet mode."""
        if self._quiet:
            yield self
            return
        columns = (
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self._speaker.console, transient=True) as bar:
            self._bar, self._task = bar, bar.add_task("trials", total=self.total, rate="")
            yield self
            self._bar = None

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._started

    @property
    def rate(self) -> float:
        """New tokens per second so far."""
        return self.tokens / self.seconds if self.seconds > 0 else 0.0

    @property
    def speed(self) -> str:
        """The rate in words; empty where nothing is generated."""
        return f"{self.rate:,.0f} tokens/s" if self.tokens else ""

    def advanced(self, trials: int, tokens: int) -> None:
        self.done += trials
        self.tokens += tokens
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self.done, rate=self.speed)
        elif self._quiet and self.done < self.total and time.perf_counter() - self._said >= QUIET_SECONDS:
            self._said = time.perf_counter()
            left = (self.total - self.done) * self.seconds / max(1, self.done)
            told = [f"{self.done:,} of {self.total:,} trials", self.speed, f"about {left:.0f} s left"]
            self._speaker.say(", ".join(filter(None, told)))

    def failed(self, trial: Trial, error: str) -> None:
        self.failures += 1
        where = f"{trial.condition}, item {trial.item}, repeat {trial.repeat}"
        self._speaker.say(f"failed: {where}: {error}", "bold red")

    def note(self, sentence: str) -> None:
        self._speaker.say(f"note: {sentence}", "yellow")
