"""How a readout follows from other columns of the same trial."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """A value of a trial: a column, and which entry of it where that is a list (None: all that it holds).
    word: as it stands in YAML."""

    word: str
    column: str
    at: int | None = None


@dataclass(frozen=True)
class Derivation:
    """How a value follows from others of the same trial: an onset (`within`, and the layers of its list), a
    difference (`minus`), or whether bounds hold."""

    of: Entry
    minus: Entry | None = None
    within: int | None = None
    layers: tuple[int, ...] = ()
    above: float | None = None
    below: float | None = None

    @property
    def entries(self) -> tuple[Entry, ...]:
        """What it reads."""
        return (self.of,) if self.minus is None else (self.of, self.minus)

    def described(self) -> dict[str, object]:
        """In plain data, for the manifest; only what it has."""
        found: dict[str, object] = {"of": self.of.word}
        if self.minus is not None:
            found["minus"] = self.minus.word
        if self.within is not None:
            found |= {"within": self.within, "layers": list(self.layers)}
        bounds = {"above": self.above, "below": self.below}
        return found | {name: bound for name, bound in bounds.items() if bound is not None}
