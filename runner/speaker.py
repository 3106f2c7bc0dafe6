"""What a run says: on the terminal, and in the run.log of its folder."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from rich.console import Console
from rich.text import Text

LOG_WIDTH = 110


class Speaker:
    """Says sentences to the terminal and appends them, with the time, to a log."""

    def __init__(self, console: Console, log: Path) -> None:
        """Raises OSError where the log cannot be written."""
        self.console = console
        self._log: IO[str] = log.open("a", encoding="utf-8")

    def __enter__(self) -> Speaker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._log.close()

    def say(self, sentence: str, style: str = "") -> None:
        """One sentence, at once. Markup in it is shown as it stands."""
        self.console.print(Text(sentence, style=style), highlight=False)
        self.write(sentence)

    def write(self, sentence: str) -> None:
        """One sentence for the log alone."""
        with suppress(OSError):  # the terminal has said it; a full disk must not hide why the run stops
            self._log.write(f"{datetime.now().isoformat(timespec='seconds')} {sentence}\n")
            self._log.flush()

    def show(self, summary: Mapping[str, Any]) -> None:
        """The summary as tables and sentences."""
        # Here, since every command line builds on this module, and most need no pandas.
        from analyses.summary.terminal import print_summary

        print_summary(self.console, summary)
        print_summary(Console(file=self._log, width=LOG_WIDTH), summary)
