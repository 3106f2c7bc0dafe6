"""RESULTS.md: one section for each benchmark, which the benchmark itself writes and no other touches."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

NOT_MEASURED = "Not measured"
RESULTS = Path(__file__).with_name("RESULTS.md")


@dataclass(frozen=True)
class Goal:
    """A figure, and what it is to reach: at least so much, or (most) at most so much. value: None where it
    was not measured."""

    name: str
    value: float | None
    wanted: float
    unit: str = "x"
    most: bool = False

    @property
    def met(self) -> bool | None:
        if self.value is None:
            return None
        return self.value <= self.wanted if self.most else self.value >= self.wanted

    def row(self) -> tuple[str, str, str, str]:
        verdict = {None: "", True: "met", False: "**missed**"}[self.met]
        measured = "not measured" if self.value is None else f"{number(self.value)} {self.unit}"
        return self.name, measured, f"{'<=' if self.most else '>='} {self.wanted:g} {self.unit}", verdict


@dataclass(frozen=True)
class Section:
    """What a benchmark has found. name: its module; parts: tables and sentences, in their order; limits: what
    stands in the way of a goal that is missed, in plain words."""

    name: str
    title: str
    command: str
    machine: str
    goals: tuple[Goal, ...]
    parts: tuple[str, ...]
    limits: tuple[str, ...] = ()

    def text(self) -> str:
        """The section as Markdown, with the date."""
        day = datetime.now(UTC).date().isoformat()
        parts = [f"## {self.title}", f"`{self.command}`, {day}. {self.machine}."]
        if self.goals:
            parts.append(table(("figure", "measured", "goal", ""), [goal.row() for goal in self.goals]))
        parts += self.parts
        if self.limits:
            parts.append("\n".join(f"- {sentence}" for sentence in self.limits))
        return "\n\n".join(parts)


def number(value: float) -> str:
    """A figure with three digits that count."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are set to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _marks(name: str) -> tuple[str, str]:
    return f"<!-- {name}: begin -->", f"<!-- {name}: end -->"


def with_section(document: str, name: str, text: str) -> str:
    """The document with a section's text between its marks; a new one comes at the end.

    Raises ValueError where a mark is there without its partner, or twice.
    """
    begin, end = _marks(name)
    if document.count(begin) > 1 or document.count(begin) != document.count(end):
        raise ValueError(f"expected '{begin}' and '{end}' once each, or neither")
    whole = f"{begin}\n{text}\n{end}"
    if begin not in document:
        return f"{document.rstrip()}\n\n{whole}\n"
    return re.sub(f"{re.escape(begin)}.*?{re.escape(end)}", lambda _: whole, document, flags=re.DOTALL)


def section_of(document: str, name: str) -> str:
    """The text between a section's marks; empty where there is none."""
    begin, end = _marks(name)
    _, _, rest = document.partition(begin)
    return rest.partition(end)[0].strip()


def keep(section: Section, path: Path = RESULTS) -> None:
    """Write a section into the results, leaving all others as they are. One in which nothing could be
    measured does not take the place of one in which something was."""
    document = path.read_text(encoding="utf-8") if path.is_file() else "# Last results\n"
    before = section_of(document, section.name)
    if before and NOT_MEASURED not in before and any(NOT_MEASURED in part for part in section.parts):
        return
    path.write_text(with_section(document, section.name, section.text()), encoding="utf-8")
