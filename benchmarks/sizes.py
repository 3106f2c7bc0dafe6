"""The words of a benchmark's command line, and how it ends."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from benchmarks.results_file import RESULTS, Section, keep

Name = Literal["full", "quick", "tiny"]


@dataclass(frozen=True)
class Size:
    """How much is measured. full is what RESULTS.md keeps; quick is a look; tiny shows that all of it
    runs."""

    name: Name = "full"

    def pick(self, full: int, quick: int, tiny: int) -> int:
        """A number for this size."""
        return {"full": full, "quick": quick, "tiny": tiny}[self.name]


_SMALL = "**Sizes this small only show that all of it runs: the figures say nothing.**"


def run(measure: Callable[[Size], Section], name: str, words: Sequence[str]) -> int:
    """Measure, print the section, and keep it in RESULTS.md, or in FILE of `--results FILE`. Quick and tiny
    sizes are kept only where a file is named. Returns the status: 2 for words that are none."""
    size, path, wrong = Size(), None, []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word in ("--quick", "--tiny"):
            size = Size("quick" if word == "--quick" else "tiny")
        elif word == "--results" and rest:
            path = Path(rest.pop(0))
        else:
            wrong.append(word)
    if wrong:
        told = f"{' '.join(wrong)}: expected --quick, --tiny or --results FILE"
        print(f"python -m benchmarks.{name}: {told}", file=sys.stderr)
        return 2
    section = measure(size)
    if size.name != "full":
        section = replace(section, parts=(_SMALL, *section.parts))
    print(section.text())
    if path is None and size.name == "full":
        path = RESULTS
    if path is not None:
        keep(section, path)
    return 0
