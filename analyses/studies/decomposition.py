"""Which part of a score carries an effect: a sum taken apart, contrast by contrast."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from analyses.studies.aligned import Aligned, Source, align
from analyses.studies.fieller import Ratio, ratio
from analyses.studies.naming import alone
from analyses.studies.study import ALPHA, Estimate, NoStudy, Table
from analyses.studies.words import cells, interval, joined, notes, p_cell, percent
from analyses.tables.pairs import declared_pairs
from analyses.wording import figure, listed

_ROUNDING = 1e-6  # scores are whole numbers or float32
_MOST_TOLD = 3  # contrasts that a sentence tells one by one
_UNMOVED = "with no difference shown"
_UNTESTED = "not tested"
_REPETITION = "bonus"  # the part of the published score that repetition earns


@dataclass(frozen=True)
class Component:
    """The difference in one part; share: of that in the whole, given where the whole's interval leaves out
    0."""

    name: str
    difference: Estimate
    share: Ratio


@dataclass(frozen=True)
class Apart:
    """One contrast taken apart. beside: differences in readouts that are no part of the whole."""

    condition: str
    against: str
    whole: Estimate
    parts: tuple[Component, ...]
    beside: Mapping[str, Estimate]
    dropped: str


@dataclass(frozen=True)
class _Verdict:
    """What moves a contrast. up: the parts that rise, down: those that fall, by the corrected p."""

    whole: bool
    up: tuple[str, ...]
    down: tuple[str, ...]


@dataclass(frozen=True)
class Decomposition:
    """The differences in `of` and in each of the parts that it is the sum of, for every contrast."""

    of: str
    into: tuple[str, ...]
    beside: tuple[str, ...]
    contrasts: tuple[Apart, ...]
    refused: str

    @property
    def p_values(self) -> tuple[float | None, ...]:
        return tuple(
            found.p
            for each in self.contrasts
            for found in (each.whole, *(part.difference for part in each.parts))
        )

    @property
    def note(self) -> str:
        return notes(self.refused, *(each.dropped for each in self.contrasts))

    def sentence(self, corrected: Sequence[float | None], family: int) -> str:
        """By what each contrast moves; of many contrasts, how many are of each kind."""
        judged = list(zip(self.contrasts, self._verdicts(corrected), strict=True))
        if len(judged) <= _MOST_TOLD:
            return joined([self._told(each, verdict) for each, verdict in judged])
        kinds: dict[str, list[str]] = {}
        for each, verdict in judged:
            kinds.setdefault(self._kind(each, verdict), []).append(f"{each.condition} - {each.against}")
        against = [self._told(each, verdict) for each, verdict in judged if verdict.up and verdict.down]
        told = []
        for kind, names in kinds.items():
            which = "" if kind in (_UNMOVED, _UNTESTED) else f" ({', '.join(names)})"
            told.append(f"{len(names)} {kind}{which}")
        return joined([f"{len(judged)} contrasts in {self.of}: {'; '.join(told)}.", *against])

    def _verdicts(self, corrected: Sequence[float | None]) -> list[_Verdict]:
        found, place = [], iter(corrected)
        for each in self.contrasts:
            whole = next(place)
            ups: list[str] = []
            downs: list[str] = []
            for part in each.parts:
                p = next(place)
                if p is not None and p < ALPHA:
                    (ups if (part.difference.value or 0.0) > 0 else downs).append(part.name)
            found.append(_Verdict(whole is not None and whole < ALPHA, tuple(ups), tuple(downs)))
        return found

    def _kind(self, each: Apart, verdict: _Verdict) -> str:
        if verdict.up and verdict.down:
            return "whose parts move against each other"
        if each.whole.p is None:
            return _UNTESTED
        if not verdict.whole:
            return _UNMOVED
        moving = [*verdict.up, *verdict.down]
        if not moving:
            return "that differ, with no part shown to"
        verb = "raised" if (each.whole.value or 0.0) > 0 else "lowered"
        return f"{verb} by {listed([_called(name) for name in moving])}"

    def _told(self, each: Apart, verdict: _Verdict) -> str:
        names = f"{each.condition} less {each.against}"
        parts = [f"{_called(part.name)} {interval(part.difference)}" for part in each.parts]
        figures = f"{names}: {self.of} {interval(each.whole)}, of which {listed(parts)}"
        verb = "rises" if (each.whole.value or 0.0) > 0 else "falls"
        up, down = (listed([_called(name) for name in found]) for found in (verdict.up, verdict.down))
        if verdict.up and verdict.down:
            moves = f"{up} up, {down} down"
            cause = verdict.up if verb == "rises" else verdict.down
            if not verdict.whole:
                why = f"no difference in {self.of} is shown, as its parts move against each other ({moves})"
            elif _REPETITION in cause:
                why = f"{self.of} {verb} because of repetition ({moves})"
            else:
                why = f"{self.of} {verb} although its parts move against each other ({moves})"
            return f"{figures}; {why}."
        if each.whole.p is None:
            return f"{figures}; {_UNTESTED}: {each.whole.note}."
        if not verdict.whole:
            return f"{figures}; no difference in {self.of} is shown."
        shares = [
            f"{_called(part.name)} {percent(part.share.value)} ({percent(part.share.low)} to "
            f"{percent(part.share.high)})"
            for part in each.parts
            if part.share.value is not None and part.share.low is not None
        ]
        told = f"; shares of it: {listed(shares)}" if shares else ""
        moving = listed([_called(name) for name in (*verdict.up, *verdict.down)])
        carried = f"{self.of} {verb} by {moving}" if moving else f"no part alone is shown to move {self.of}"
        return f"{figures}; {carried}{told}."

    def table(self, corrected: Sequence[float | None]) -> Table:
        """A row for the whole and each part of every contrast, and for what stands beside."""
        head = ("contrast", "of", "difference", "95% CI", "p (Holm)", f"share of {self.of}")
        rows, place = [], iter(corrected)
        for each in self.contrasts:
            name = f"{each.condition} - {each.against}"
            rows.append((name, self.of, *cells(each.whole), p_cell(next(place)), ""))
            for part in each.parts:
                share = "not given" if part.share.value is None else percent(part.share.value)
                rows.append(("", part.name, *cells(part.difference), p_cell(next(place)), share))
            rows += [("", f"{key} (beside)", *cells(found), "", "") for key, found in each.beside.items()]
        return Table(head, tuple(rows))


def decomposition(source: Source, spec: Mapping[str, Any], readout: str) -> Decomposition:
    """Each contrast in a score and in the parts that it is the sum of, over the same trials.

    spec: `of`, the score (by default the readout); `into`, its parts; `beside`, further columns;
    `contrasts`, pairs of conditions, by default those that the experiment declares. Differences are paired
    and clustered as contrasts are, and those of the parts sum to that of the whole. Holm corrects over all
    of them, the parts included. A part's share has Fieller's interval.

    Raises NoStudy where the parts do not sum to the whole in every trial, and where nothing can be compared.
    """
    whole, into = str(spec.get("of") or readout), tuple(spec["into"])
    beside = tuple(name for name in spec.get("beside") or () if source.has(name))
    conditions = source.conditions
    pairs = [(alone(a, conditions), alone(b, conditions)) for a, b in spec.get("contrasts") or ()]
    if not pairs:
        pairs = [(a, b) for a, b, margin in declared_pairs(source.manifest) if margin is None]
    if not pairs:
        raise NoStudy("the experiment declares no contrast")
    for column in (whole, *into):
        source.column(column)
    found, refused = [], []
    for first, second in dict.fromkeys(pairs):
        try:
            both = align(source, [(name, column) for name in (first, second) for column in (whole, *into)])
        except NoStudy as error:
            refused.append(f"{first} - {second}: {error}")
            continue
        _sums(source, both, (first, second), whole, into)
        found.append(_apart(source, both, first, second, whole, into, beside))
    if not found:
        raise NoStudy("; ".join(dict.fromkeys(refused)))
    return Decomposition(whole, into, beside, tuple(found), "; ".join(refused))


def _sums(source: Source, both: Aligned, names: Sequence[str], whole: str, into: Sequence[str]) -> None:
    """Refuse parts that do not make up the whole."""
    for name in names:
        total = sum((both.values[name, part] for part in into), start=np.zeros(both.n))
        gap = np.abs(both.values[name, whole] - total)
        if gap.max() > _ROUNDING * max(1.0, float(np.abs(total).max())):
            worst = int(gap.argmax())
            item = source.trials["item"].iloc[int(both.rows[worst])]
            raise NoStudy(
                f"{whole} is not the sum of {listed(into)}: in item {item} of {name} they come to "
                f"{figure(float(total[worst]))} of {figure(float(both.values[name, whole][worst]))}"
            )


def _apart(
    source: Source,
    both: Aligned,
    first: str,
    second: str,
    whole: str,
    into: Sequence[str],
    beside: Sequence[str],
) -> Apart:
    of = both.values[first, whole] - both.values[second, whole]
    parts = []
    for name in into:
        gap = both.values[first, name] - both.values[second, name]
        parts.append(Component(name, Estimate.of(both.test(gap)), ratio(both, gap, of)))
    others = {}
    for name in beside:
        try:
            shared = align(source, [(first, name), (second, name)])
        except NoStudy:
            continue
        others[name] = Estimate.of(shared.test(shared.values[first, name] - shared.values[second, name]))
    return Apart(first, second, Estimate.of(both.test(of)), tuple(parts), others, both.dropped)


def _called(name: str) -> str:
    return "repetition bonus" if name == _REPETITION else name
