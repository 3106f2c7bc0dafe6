"""Whether an effect is the treatment's own: it must pass every control, the nearest one included."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from analyses.studies.aligned import Source, align
from analyses.studies.naming import alone, expanded
from analyses.studies.study import ALPHA, Estimate, NoStudy, Table
from analyses.studies.words import after_holm, cells, interval, notes, p_cell, sizes
from analyses.wording import figure, in_column, listed, plural

_DISRUPTED = "perplexity"


@dataclass(frozen=True)
class Rival:
    """A control, or the baseline: its mean over the trials that it shares with the treatment, the treatment
    less it, and the medians of the readouts beside, over its own valid trials."""

    condition: str
    mean: float
    difference: Estimate
    beside: Mapping[str, float | None]


@dataclass(frozen=True)
class Specificity:
    """The treatment against every rival. upward: whether it lies above the baseline. bar: the rival that
    decides, which is the one with the largest p, and of several the one with the smallest difference. p: of
    the union of all null hypotheses, the largest p of all differences, 1 where one of them points the other
    way; None where one could not be tested."""

    readout: str
    treatment: str
    baseline: str
    upward: bool
    rivals: tuple[Rival, ...]
    bar: str
    p: float | None
    beside: Mapping[str, float | None]
    refused: str

    @property
    def p_values(self) -> tuple[float | None, ...]:
        return (self.p,)

    @property
    def note(self) -> str:
        return notes(self.refused, *(rival.difference.note for rival in self.rivals))

    def sentence(self, corrected: Sequence[float | None], family: int) -> str:
        """Whether the effect is shown to be the treatment's own, and the control that decides it."""
        (p,) = corrected
        decides = next(rival for rival in self.rivals if rival.condition == self.bar)
        side = "above" if self.upward else "below"
        gap = f"{self.treatment} less {self.bar} is {interval(decides.difference)} in {self.readout}"
        figures = f"{gap}, {after_holm(p, family)}; {sizes(decides.difference)}"
        controls = plural(len(self.rivals) - 1, "control")
        if self.refused or p is None:
            why = notes(self.refused, *(r.difference.note for r in self.rivals if r.difference.p is None))
            told = f"{self.treatment} is not shown to be specific: {why or 'no test could be made'} ({gap})."
        elif p < ALPHA:
            told = (
                f"{self.treatment} is {side} the baseline and each of {controls}; the least sure of these "
                f"is {self.bar} ({figures})."
            )
        else:
            told = (
                f"{self.treatment} is not shown to be {side} all of the baseline and {controls}: not to be "
                f"{side} {self.bar} ({figures}). Its effect may be one that {self.bar} has as well."
            )
        return " ".join([told, *self._disruption()])

    def _disruption(self) -> list[str]:
        """How improbable the texts are to the unpatched model, where that was measured."""
        own = self.beside.get(_DISRUPTED)
        others = [
            (r.condition, found) for r in self.rivals if (found := r.beside.get(_DISRUPTED)) is not None
        ]
        if own is None or not others:
            return []
        told = [f"{figure(value, 1)} in {name}" for name, value in others]
        return [f"Median perplexity under the unpatched model: {figure(own, 1)}, against {listed(told)}."]

    def table(self, corrected: Sequence[float | None]) -> Table:
        """The treatment, then a row for each rival."""
        beside = list(self.beside)
        head = ("condition", f"mean {self.readout}", f"{self.treatment} less it", "95% CI", "p", *(
            f"median {name}" for name in beside
        ))  # fmt: skip
        columns = [
            in_column([self.beside[name], *(rival.beside.get(name) for rival in self.rivals)])
            for name in beside
        ]
        rows = [(self.treatment, "", "", "", "", *(column[0] for column in columns))]
        for place, rival in enumerate(self.rivals, start=1):
            found = rival.difference
            name = f"{rival.condition} (decides)" if rival.condition == self.bar else rival.condition
            told = (name, figure(rival.mean), *cells(found), p_cell(found.p))
            rows.append((*told, *(column[place] for column in columns)))
        return Table(head, tuple(rows))


def specificity(source: Source, spec: Mapping[str, Any], readout: str) -> Specificity:
    """The treatment less the baseline and less each control, paired and clustered, as one test.

    That the treatment lies beyond all of them on the baseline's side is an intersection-union test: each
    difference is tested at the full level and the largest p is that of the whole, without correction over
    the controls (Berger 1982, "Multiparameter hypothesis testing and acceptance sampling"). Any control that
    cannot be compared leaves the claim open.

    spec: `treatment`; `controls`, with grids by their cells; `against`, by default the baseline; `beside`,
    columns of which the medians stand beside (perplexity shows disruption: any foreign cache disturbs, and
    disturbed texts repeat). Raises NoStudy where the treatment cannot be compared with the baseline.
    """
    conditions = source.conditions
    treatment = alone(spec["treatment"], conditions)
    baseline = alone(str(spec.get("against") or source.baseline), conditions)
    names = [name for name in expanded(spec["controls"], conditions) if name not in (treatment, baseline)]
    beside = [name for name in spec.get("beside") or () if source.has(name)]
    first = _rival(source, treatment, baseline, readout, beside)
    assert first.difference.value is not None
    rivals, refused = [first], []
    for name in names:
        try:
            rivals.append(_rival(source, treatment, name, readout, beside))
        except NoStudy as error:
            refused.append(f"{name} cannot be compared, {error}")
    upward = first.difference.value >= 0
    sign = 1 if upward else -1
    ps = [_p(rival, sign) for rival in rivals]
    known = [p for p in ps if p is not None]
    p = max(known) if len(known) == len(ps) and not refused else None
    bar = max(rivals, key=lambda rival: _decides(rival, sign))
    own = {name: _median(source, treatment, name) for name in beside}
    return Specificity(
        readout, treatment, baseline, upward, tuple(rivals), bar.condition, p, own, "; ".join(refused)
    )


def _rival(source: Source, treatment: str, name: str, readout: str, beside: Sequence[str]) -> Rival:
    found = align(source, [(treatment, readout), (name, readout)])
    own, other = found.values[treatment, readout], found.values[name, readout]
    test = Estimate.of(found.test(own - other))
    return Rival(name, float(other.mean()), test, {each: _median(source, name, each) for each in beside})


def _p(rival: Rival, sign: int) -> float | None:
    """That the treatment lies beyond it on this side; None where it could not be tested."""
    found = rival.difference
    if found.value is None or found.p is None:
        return None
    return found.p if sign * found.value > 0 else 1.0


def _decides(rival: Rival, sign: int) -> tuple[float, float]:
    """The more, the less sure it is that the treatment passes this rival."""
    p, gap = _p(rival, sign), rival.difference.value
    return 2.0 if p is None else p, 0.0 if gap is None else -sign * gap


def _median(source: Source, condition: str, column: str) -> float | None:
    values = source.column(column)[source.ok(condition)]
    values = values[np.isfinite(values)]
    return float(np.median(values)) if len(values) else None
