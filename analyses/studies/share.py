"""How much of an effect a control has: a share, given only where there is an effect to share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from analyses.studies.aligned import Source, align
from analyses.studies.fieller import Ratio, ratio
from analyses.studies.naming import alone, expanded
from analyses.studies.study import Estimate, NoStudy, Table
from analyses.studies.words import cells, interval, joined, notes, percent, sizes
from analyses.wording import listed


@dataclass(frozen=True)
class Part:
    """One control: its own effect, that of the whole over the same trials, and the share of the one in the
    other."""

    condition: str
    effect: Estimate
    whole: Estimate
    share: Ratio
    dropped: str


@dataclass(frozen=True)
class Share:
    """The effects of controls as shares of the effect of `whole`, both less `against`. No test is made: a
    share of 1 is a difference of 0 between the two conditions, which is a contrast."""

    readout: str
    whole: str
    against: str
    parts: tuple[Part, ...]
    refused: str

    @property
    def p_values(self) -> tuple[float | None, ...]:
        return ()

    @property
    def note(self) -> str:
        return notes(self.refused, *(part.dropped for part in self.parts))

    def sentence(self, corrected: Sequence[float | None], family: int) -> str:
        """Each share with its interval, or why there is none."""
        if len(self.parts) == 1:
            return self._told(self.parts[0])
        whole = self.parts[0].whole
        given = [
            f"{part.condition} {percent(part.share.value)} (95% CI {percent(part.share.low)} to "
            f"{percent(part.share.high)})"
            for part in self.parts
            if part.share.value is not None
        ]
        rest = [self._told(part) for part in self.parts if part.share.value is None]
        if not given:
            return joined(rest)
        of = f"Of the effect of {self.whole} on {self.readout}, {interval(whole)}, {sizes(whole)}"
        return joined([f"{of}, these have a share: {listed(given)}.", *rest])

    def _told(self, part: Part) -> str:
        found = part.share
        if found.value is None or found.low is None or found.high is None:
            return (
                f"No share of the effect of {self.whole} is given for {part.condition}: {found.note}. "
                f"{part.condition} itself is {interval(part.effect)} from {self.against} in {self.readout}."
            )
        return (
            f"{part.condition} has {percent(found.value)} of the effect of {self.whole} on {self.readout} "
            f"(95% CI {percent(found.low)} to {percent(found.high)}): {interval(part.effect)} of "
            f"{interval(part.whole)}; {sizes(part.whole)}."
        )

    def table(self, corrected: Sequence[float | None]) -> Table:
        """A row for each control."""
        head = ("condition", f"less {self.against}", "95% CI", f"share of {self.whole}", "95% CI (Fieller)")
        rows = []
        for part in self.parts:
            found = part.share
            told = ("not given", "-")
            if found.value is not None:
                told = (percent(found.value), f"{percent(found.low)} to {percent(found.high)}")
            rows.append((part.condition, *cells(part.effect), *told))
        return Table(head, tuple(rows))


def share(source: Source, spec: Mapping[str, Any], readout: str) -> Share:
    """(mean of `of` - mean of `against`) / (mean of `in` - mean of `against`) over the trials that all three
    share, with Fieller's interval (`analyses.studies.fieller.ratio`).

    spec: `of` a condition, grid or list; `in`; `against`, by default the baseline. Raises NoStudy where no
    trial is shared.
    """
    conditions = source.conditions
    whole, against = (
        alone(spec["in"], conditions),
        alone(str(spec.get("against") or source.baseline), conditions),
    )
    source.column(readout)
    parts, refused = [], []
    for name in expanded(spec["of"], conditions):
        try:
            found = align(source, [(each, readout) for each in (name, whole, against)])
        except NoStudy as error:
            refused.append(f"{name}: {error}")
            continue
        base = found.values[against, readout]
        own, of = found.values[name, readout] - base, found.values[whole, readout] - base
        parts.append(
            Part(
                name,
                Estimate.of(found.test(own)),
                Estimate.of(found.test(of)),
                ratio(found, own, of),
                found.dropped,
            )
        )
    if not parts:
        raise NoStudy("; ".join(refused))
    return Share(readout, whole, against, tuple(parts), "; ".join(refused))
