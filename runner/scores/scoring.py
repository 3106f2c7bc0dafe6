"""All that is known of a trial without the model: the scores of its text, and what is derived from them and
from what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from runner.config.readouts.derivation import Derivation
from runner.config.readouts.readout import Readout
from runner.scores.behaviour import behaviour
from runner.scores.contains import contains
from runner.scores.degenerate import degenerate
from runner.scores.derived import Value, difference, entry, holds, onset

Scores = dict[str, Value]
Words = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Scorer:
    """Scores texts and derives values. texts: the readouts of the text alone; derived: each after those that
    it reads; measured: columns that the backend gives."""

    texts: tuple[Readout, ...]
    derived: tuple[Readout, ...]
    measured: frozenset[str]

    @staticmethod
    def of(readouts: Sequence[Readout]) -> Scorer:
        """The scorer of a stage's readouts. Raises ValueError for derived ones that read each other, or what
        is not among them, which the door refuses."""
        plain = [readout for readout in readouts if readout.derivation is None]
        known = {column for readout in plain for column in readout.columns}
        waiting = [(each, each.derivation) for each in readouts if each.derivation is not None]
        derived: list[Readout] = []
        while waiting:
            ready = [each for each, how in waiting if {one.column for one in how.entries} <= known]
            if not ready:
                names = ", ".join(each.name for each, _ in waiting)
                raise ValueError(f"derived readouts that read each other, or what is not there: {names}")
            derived += ready
            known |= {column for each in ready for column in each.columns}
            waiting = [pair for pair in waiting if pair[0] not in ready]
        return Scorer(
            tuple(readout for readout in plain if readout.probe is None),
            tuple(derived),
            frozenset(column for readout in plain if readout.probe is not None for column in readout.columns),
        )

    def scores(self, text: str, words: Words, values: Mapping[str, Value]) -> Scores:
        """All values of a trial by column, those that are None left out. words: what each readout searches
        its text for, by the readout's name; values: what is stored of the trial, of which only the measured
        columns are taken."""
        found: Scores = {name: value for name, value in values.items() if name in self.measured}
        for readout in self.texts:
            found |= _of_text(readout, text, words)
        for readout in self.derived:
            if readout.derivation is not None:
                found[readout.name] = _derived(readout.derivation, found)
        return {name: value for name, value in found.items() if value is not None}


def _of_text(readout: Readout, text: str, words: Words) -> Scores:
    if readout.kind == "behaviour":
        marks = behaviour(text)
        return {"score": marks.score, "markers": marks.markers, "bonus": marks.bonus, "strict": marks.strict}
    if readout.kind == "contains":
        return {readout.name: contains(text, words[readout.name])}
    if readout.kind == "degenerate":
        said = degenerate(text)
        return {readout.name: said.repeated, f"{readout.name}.run": said.run}
    raise ValueError(f"'{readout.kind}' is no kind of score")


def _derived(how: Derivation, found: Mapping[str, Value]) -> Value:
    of = entry(found.get(how.of.column), how.of.at)
    if how.within is not None:
        return onset(of, how.layers, how.within)
    if how.minus is not None:
        return difference(of, entry(found.get(how.minus.column), how.minus.at))
    return holds(of, how.above, how.below)
