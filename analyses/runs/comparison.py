"""What holding runs against each other comes to, as plain objects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from analyses.runs.differences import Difference, Operation
from analyses.statistics.clusters import ClusteredMean
from analyses.wording import listed

ALPHA = 0.05


@dataclass(frozen=True)
class Side:
    """One of the runs. warning: what a reader must know of it first, else empty; failing: sentences of its
    gates that fail."""

    name: str
    folder: str
    question: str
    status: str
    model: str
    dtype: str
    started: str
    items: int
    counts: Mapping[str, int]
    warning: str
    failing: tuple[str, ...]


@dataclass(frozen=True)
class Same:
    """How many of the trials that two runs share came out the same. what: "output tokens", "texts" where the
    tokenizers differ, "values" where no text is generated. copied: trials that one run took over from the
    other, which are the same by construction."""

    what: str
    same: int
    of: int
    copied: int


@dataclass(frozen=True)
class Example:
    """An item whose value moved most, with both texts."""

    target: str
    donor: str
    repeat: int
    first: float
    second: float
    text_first: str
    text_second: str


@dataclass(frozen=True, kw_only=True)
class Tested:
    """What is held against itself in two runs. test: of second - first on the trials that are shared, None
    where there are none; p_holm: its p, corrected; None where it is no test."""

    stage: str
    condition: str
    readout: str
    test: ClusteredMean | None
    note: str
    p_holm: float | None = None
    sentence: str = ""

    @property
    def shown(self) -> bool:
        """Whether a difference is significant after correction."""
        return self.p_holm is not None and self.p_holm < ALPHA

    @property
    def difference(self) -> float | None:
        """The mean of second - first."""
        return None if self.test is None else self.test.mean


@dataclass(frozen=True, kw_only=True)
class Compared(Tested):
    """One condition in two runs. n_first: valid trials of the first run; mean_first, sd_first: of those that
    both share, or where they share none, of all."""

    n_first: int
    mean_first: float | None
    sd_first: float | None
    n_second: int
    mean_second: float | None
    sd_second: float | None
    same: Same
    examples: tuple[Example, ...]

    @property
    def copied(self) -> bool:
        """Whether all that is shared was taken over by one run from the other."""
        return self.same.of > 0 and self.same.copied == self.same.of


@dataclass(frozen=True, kw_only=True)
class Effect(Tested):
    """One declared contrast in two runs: what `condition` adds to `against` in each, on the trials that are
    valid in all four, and the test of the difference of the two."""

    against: str
    effect_first: float | None
    effect_second: float | None


@dataclass(frozen=True)
class Versus:
    """A run against the first. shared, only_first, only_second: items; other_texts: items of the same ids
    whose prompts are other tokens, which are not paired; names_first, names_second: conditions that only one
    has; renamed: those that do the same under two names. headline: the whole in a sentence."""

    first: str
    second: str
    shared: int
    only_first: int
    only_second: int
    other_texts: int
    conditions: tuple[Compared, ...]
    effects: tuple[Effect, ...]
    names_first: tuple[str, ...]
    names_second: tuple[str, ...]
    renamed: tuple[tuple[str, str], ...]
    operations: tuple[Operation, ...]
    differences: tuple[Difference, ...]
    notes: tuple[str, ...]
    headline: str = ""

    @property
    def tests(self) -> list[Tested]:
        """What counts in the family: not the results that one run has from the other, which cannot differ."""
        copied = {each.condition for each in self.conditions if each.copied}
        conditions = [each for each in self.conditions if each.test and not each.copied]
        effects = [
            each for each in self.effects if each.test and not {each.condition, each.against} <= copied
        ]
        return [*conditions, *effects]

    @property
    def shown(self) -> list[Tested]:
        """The differences that are significant after correction."""
        return [each for each in (*self.conditions, *self.effects) if each.shown]

    @property
    def same(self) -> Same:
        """Over all conditions."""
        found = [each.same for each in self.conditions]
        what = listed(list(dict.fromkeys(each.what for each in found))) or "trials"
        return Same(what, *(sum(getattr(s, key) for s in found) for key in ("same", "of", "copied")))


@dataclass(frozen=True)
class Comparison:
    """Runs, and each later one against the first. family: how many tests Holm's correction is over."""

    sides: tuple[Side, ...]
    versus: tuple[Versus, ...]
    family: int
