"""What became of one published figure when it was recomputed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from analyses.published.printed import Figure

REPRODUCED = "reproduced"
CONTRADICTORY = "contradictory"
NOT_REPRODUCIBLE = "not reproducible"
NOTHING = "nothing to recompute"
VERDICTS = (CONTRADICTORY, REPRODUCED, NOT_REPRODUCIBLE, NOTHING)  # what is found of one figure: the first

Key = tuple[str, ...]


@dataclass(frozen=True)
class Rechecked:
    """One figure of a file. key: where it stands; printed: as printed; recomputed: from the other figures of
    the file, None where they do not give it; sentence: what was found, or why nothing could be. expected: of
    a contradiction that the file itself declares.

    `reproduced`: it follows from other figures, to its printed digits. `contradictory`: it cannot be true
    beside them. `not reproducible`: what is behind it is not published; it is said what was checked. `nothing
    to recompute`: it is no result, but a setting, a name or an input.
    """

    key: str
    printed: str
    verdict: str
    recomputed: float | None
    sentence: str
    expected: bool = False


@dataclass(frozen=True)
class Book:
    """The figures of one file, and what has been found of each."""

    data: Mapping[str, Any]
    found: dict[Key, Rechecked]

    def printed(self, *key: str) -> str | None:
        """A figure as printed; None where the file does not have it."""
        found = self._at(key)
        return found if isinstance(found, str) else None

    def figure(self, *key: str) -> Figure | None:
        """The same as a figure. Raises ValueError, which names the key, where it is no number."""
        text = self.printed(*key)
        if text is None:
            return None
        try:
            return Figure.of(text)
        except ValueError as error:
            raise ValueError(f"{'.'.join(key)}: {error}") from error

    def number(self, *key: str) -> float | None:
        """The same as a number."""
        found = self.figure(*key)
        return None if found is None else found.value

    def whole(self, *key: str) -> int | None:
        """The same as a whole number. Raises ValueError, which names the key, for any other figure."""
        text = self.printed(*key)
        if text is None:
            return None
        try:
            return int(text)
        except ValueError as error:
            raise ValueError(f"{'.'.join(key)}: expected a whole number, got {text!r}") from error

    def under(self, prefix: Key) -> list[Key]:
        """The keys of all figures that stand under a key, itself where it is one."""
        found = self._at(prefix)
        return [] if found is None else [key for key, _ in leaves(found, prefix)]

    def names(self, *key: str) -> list[str]:
        """The names under a key; none where it has none."""
        found = self._at(key)
        return list(found) if isinstance(found, Mapping) else []

    def _at(self, key: Key) -> Any:
        """What stands under a key; None where the file does not have it."""
        at: Any = self.data
        for part in key:
            if isinstance(at, list) and part.isdecimal() and int(part) < len(at):
                at = at[int(part)]
            elif isinstance(at, Mapping) and part in at:
                at = at[part]
            else:
                return None
        return at

    def recomputed(self, key: Key, value: float, source: str) -> None:
        """A figure that follows from others: `source` says from which."""
        figure = self.figure(*key)
        if figure is None:
            return
        if figure.holds(value):
            self._put(key, REPRODUCED, value, source)
        else:
            self._put(key, CONTRADICTORY, value, f"{source} give {value:.6g}, not {figure.text}")

    def agrees(self, key: Key, value: float, source: str) -> None:
        """A figure that follows from others as far as their rounding goes."""
        self._put(key, REPRODUCED, value, source)

    def contradicts(self, key: Key, value: float | None, sentence: str, *, expected: bool = False) -> None:
        """A figure that cannot be true beside the others."""
        self._put(key, CONTRADICTORY, value, sentence, expected)

    def possible(self, key: Key, holds: bool, told: str) -> None:
        """A figure that nothing gives, and whether it can be true at all: `told` says by what it was
        judged."""
        if holds:
            self._put(key, NOT_REPRODUCIBLE, None, f"possible: {told}")
        else:
            self._put(key, CONTRADICTORY, None, f"impossible: expected that {told}")

    def unknown(self, key: Key, why: str) -> None:
        """A figure that nothing gives and nothing bounds."""
        self._put(key, NOT_REPRODUCIBLE, None, why)

    def given(self, key: Key, what: str) -> None:
        """No result: a setting, a name, an input."""
        self._put(key, NOTHING, None, what)

    def _put(
        self, key: Key, verdict: str, value: float | None, sentence: str, expected: bool = False
    ) -> None:
        printed = self.printed(*key)
        if printed is None:
            return
        before = self.found.get(key)
        if before is not None and VERDICTS.index(before.verdict) <= VERDICTS.index(verdict):
            if before.verdict != verdict or before.sentence == sentence:
                return  # what contradicts one figure is not mended by another
            sentence = f"{before.sentence}; {sentence.removeprefix('possible: ')}"
        self.found[key] = Rechecked(".".join(key), printed, verdict, value, sentence, expected)


Rules = Callable[[Book], None]


def leaves(data: Any, key: Key = ()) -> Iterator[tuple[Key, str]]:
    """Every figure and text of a file, with its key; entries of lists are numbered from 0."""
    parts: Iterator[tuple[str, Any]]
    if isinstance(data, Mapping):
        parts = ((str(name), value) for name, value in data.items())
    elif isinstance(data, list):
        parts = ((str(place), value) for place, value in enumerate(data))
    else:
        yield key, str(data)
        return
    for name, value in parts:
        yield from leaves(value, (*key, name))
