"""Mistakes that a user can correct: where each stands, and the nearest word that would have been right."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One mistake. file: the file (with line, where known) or `command line`; key: dotted path within it."""

    file: str
    key: str
    message: str

    def __str__(self) -> str:
        where = f"{self.file}: {self.key}" if self.key else self.file
        return f"{where}: {self.message}"


class ConfigurationError(Exception):
    """Everything that is wrong with a configuration, found in one pass. Its status is 2."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems: tuple[Problem, ...] = tuple(dict.fromkeys(problems))
        super().__init__("\n".join(str(problem) for problem in self.problems))


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that is spelled most like `word`, or None where none comes near."""
    candidates = list(known)
    folded = {candidate.casefold(): candidate for candidate in candidates}
    found = difflib.get_close_matches(word.casefold(), list(folded), n=1, cutoff=0.6)
    return folded[found[0]] if found else None


def suggestion(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or nothing where no known word comes near."""
    found = nearest(word, known)
    return f"; did you mean '{found}'?" if found is not None else ""


def as_yaml(value: object) -> str:
    """A value for a sentence, as YAML has it where Python has another word, cut where it is long."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def listed(words: Iterable[str]) -> str:
    """Words as a list for a sentence: `a, b, c`, or `none`."""
    return ", ".join(words) or "none"
