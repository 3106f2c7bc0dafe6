"""What a study is: one declared analysis with its sentence, its table, and its own figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

ALPHA = 0.05


class NoStudy(Exception):
    """Why an analysis cannot be made; the message is the rest of a sentence."""


@dataclass(frozen=True)
class Table:
    """Cells as they are shown, row by row; figures unrounded are in the study's own fields."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


class Outcome(Protocol):
    """What one kind of analysis found. It is a frozen dataclass, whose fields go into the summary."""

    @property
    def p_values(self) -> tuple[float | None, ...]:
        """Every test that was made, uncorrected, in a fixed order; None for one that could not be made."""

    @property
    def note(self) -> str:
        """What limits the figures; empty where nothing does."""

    def sentence(self, corrected: Sequence[float | None], family: int) -> str:
        """The outcome in words. corrected: `p_values` after Holm; family: over how many tests."""

    def table(self, corrected: Sequence[float | None]) -> Table:
        """The outcome row by row."""


@dataclass(frozen=True)
class Study:
    """One declared analysis. exploratory: true of every one, for the family that has verdicts is that of the
    contrasts. joint: it tests what was declared in the primary readout; the tests of all such analyses are
    corrected together by Holm, those of any other within it alone. note: what limits it, or why there is no
    figure, in which case `outcome` is None. `p_holm` follows the order of `outcome.p_values`."""

    name: str
    kind: str
    label: str
    stage: str | None
    readout: str
    exploratory: bool = True
    joint: bool = False
    outcome: Outcome | None = None
    p_holm: tuple[float | None, ...] = ()
    family: int = 0
    note: str = ""
    sentence: str = ""
    table: Table = Table((), ())


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95% interval and its test, clustered by donors and target. What could not be had is
    None, and then `note` says why. `clusters`: the number of each dimension."""

    value: float | None
    low: float | None
    high: float | None
    p: float | None
    n: int
    clusters: dict[str, int]
    note: str

    @property
    def apart(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)

    @staticmethod
    def of(test: Any) -> Estimate:
        """That of an `analyses.statistics.clusters.ClusteredMean`."""
        return Estimate(test.mean, test.ci_low, test.ci_high, test.p, test.n, dict(test.clusters), test.note)
