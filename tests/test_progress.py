"""What a run says of its speed."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from runner import progress
from runner.progress import ProgressWatcher
from runner.speaker import Speaker


@pytest.mark.parametrize(("tokens", "told"), [(500, "tokens/s, about"), (0, "5 of 10 trials, about")])
def test_a_run_that_generates_nothing_has_no_speed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokens: int, told: str
) -> None:
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0.0)
    stream = io.StringIO()
    with Speaker(Console(file=stream, width=110), tmp_path / "run.log") as speaker:
        watcher = ProgressWatcher(speaker, total=10, quiet=True)
        watcher.advanced(5, tokens)
    assert told in stream.getvalue()
    assert ("tokens/s" in stream.getvalue()) == (tokens > 0) == bool(watcher.speed)
