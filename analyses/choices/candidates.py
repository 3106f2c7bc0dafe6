"""Which of the candidates of a choice are taken: those that meet the criteria, ranked or drawn, in words."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from analyses.choices.criteria import Criterion, Objective
from analyses.tables.cells import Axes, axis_key, axis_named, cell_words
from analyses.wording import count, figure, listed, plural

_TOLD = 5  # chosen cells that a sentence names
NOT_TO_BE_CHOSEN = "it may not be chosen"


@dataclass(frozen=True)
class Candidate:
    """A cell, a row or an item that may be chosen. figures: metric -> value, None where it has none; unfit:
    why it cannot be judged or chosen, whatever the criteria say; failed: the criteria that it does not
    meet."""

    axes: Mapping[str, Any]
    figures: Mapping[str, float | None]
    n: int
    unfit: str = ""
    failed: tuple[Criterion, ...] = ()

    @property
    def passes(self) -> bool:
        return not self.unfit and not self.failed

    @property
    def judged(self) -> bool:
        """Whether every figure is there."""
        return self.unfit in ("", NOT_TO_BE_CHOSEN)

    @property
    def row(self) -> dict[str, Any]:
        """As the table of the choice has it."""
        why = self.unfit or "; ".join(f"not {each.words}" for each in self.failed)
        return {**self.axes, **self.figures, "n": self.n, "passes": self.passes, "why": why}


def judge(
    axes: Axes,
    figures: Mapping[str, float | None],
    n: int,
    criteria: Sequence[Criterion],
    layers: int | None,
    unfit: str = "",
) -> Candidate:
    """A candidate with the criteria that it fails; where a figure is undefined only axes are judged. Raises
    ValueError for an axis that it does not have."""
    failed = []
    for each in criteria:
        subject = axis_value(each, axes) if each.metric is None else figures[each.metric.name]
        if (subject is not None or each.metric is None) and not each.holds(subject, layers):
            failed.append(each)
    return Candidate(dict(axes), dict(figures), n, unfit, tuple(failed))


def axis_value(criterion: Criterion, axes: Axes) -> object:
    """The value of the axis that a criterion bounds. Raises ValueError where there is none of that name."""
    axis = axis_named(str(criterion.axis), list(axes))
    if axis is None:
        offered = listed(list(axes)) or "there is none"
        raise ValueError(f"axis: expected one of the choice ({offered}), got '{criterion.axis}'")
    return axes[axis]


def matches(cell: Axes, other: Axes) -> bool:
    """Whether a cell is the one that another choice names, in the axes that both have."""
    named = {axis_named(axis, list(cell)): value for axis, value in other.items()}
    shared = {axis: value for axis, value in named.items() if axis is not None}
    return bool(shared) and all(axis_key(cell[axis]) == axis_key(value) for axis, value in shared.items())


def failures(candidates: Sequence[Candidate], criterion: Criterion) -> int:
    """How many of the candidates a criterion removes, whatever else does."""
    return sum(criterion in each.failed for each in candidates if each.judged)


def choose(
    candidates: Sequence[Candidate],
    rule: Mapping[str, Any],
    criteria: Sequence[Criterion],
    objective: Objective | None,
    noun: str,
) -> tuple[tuple[Candidate, ...], str]:
    """Those that the rule takes, the best first, and the sentence that says which and why.

    `draw` takes so many at random by `seed`; an objective, the `top` best, ties in the order given; without
    either, all that pass.
    """
    passing = [each for each in candidates if each.passes]
    taken, notes = list(passing), []
    draw = rule.get("draw")
    if draw is not None:
        taken = random.Random(int(rule["seed"])).sample(passing, min(int(draw), len(passing)))
        if len(taken) < int(draw):
            notes.append(f"{count(int(draw))} were to be drawn.")
    elif objective is not None:
        ranked = sorted(passing, key=lambda each: rank(each, objective))
        top = int(rule.get("top") or 1)
        taken = ranked[:top]
        if taken and len(taken) < top:
            notes.append(f"{count(top)} were to be taken.")
        if len(ranked) > len(taken):
            tied = sum(rank(each, objective) == rank(taken[-1], objective) for each in ranked)
            if rank(ranked[len(taken)], objective) == rank(taken[-1], objective):
                first = f"{count(tied)} {noun}s tie at {figure(taken[-1].figures[objective.metric.name])}"
                notes.append(f"{first}: taken in the order of the grid.")
    return tuple(taken), " ".join([_sentence(candidates, taken, draw, criteria, objective, noun), *notes])


def rank(candidate: Candidate, objective: Objective) -> float:
    """A number that is smaller the better the candidate. It must have a value."""
    value = candidate.figures[objective.metric.name]
    assert value is not None
    return objective.rank(value)


def _sentence(
    candidates: Sequence[Candidate],
    taken: Sequence[Candidate],
    draw: int | None,
    criteria: Sequence[Criterion],
    objective: Objective | None,
    noun: str,
) -> str:
    whole, removed = plural(len(candidates), noun), _removed(candidates, criteria, noun)
    if not taken:
        return f"No {noun} of {count(len(candidates))} passes{removed}."
    passing = sum(each.passes for each in candidates)
    of = f"of {count(passing)} that pass, of {whole}{removed}"
    if objective is not None and draw is None and len(taken) == 1:
        value = figure(taken[0].figures[objective.metric.name])
        return f"{cell_words(taken[0].axes) or 'all together'}: {objective.words} ({value}), {of}."
    names = "; ".join(_told(each, objective) for each in taken[:_TOLD])
    names += f"; and {count(len(taken) - _TOLD)} more" if len(taken) > _TOLD else ""
    if draw is not None:
        return f"{plural(len(taken), noun)} drawn at random, {of}: {names}."
    if objective is None:
        return f"All {plural(len(taken), noun)} that pass, of {whole}{removed}: {names}."
    return f"The {plural(len(taken), noun)} of {objective.words}, {of}: {names}."


def _removed(candidates: Sequence[Candidate], criteria: Sequence[Criterion], noun: str) -> str:
    """What keeps candidates out: each criterion with the number that it removes, and what else does."""
    told = [
        f"{each.words} removes {count(number)}"
        for each in dict.fromkeys(criteria)
        if (number := failures(candidates, each))
    ]
    unfit = [each.unfit for each in candidates if each.unfit]
    told += [f"{plural(unfit.count(why), noun)}: {why}" for why in dict.fromkeys(unfit)]
    return f" ({'; '.join(told)})" if told else ""


def _told(candidate: Candidate, objective: Objective | None) -> str:
    words = cell_words(candidate.axes)
    value = None if objective is None else candidate.figures[objective.metric.name]
    return words if value is None else f"{words} ({figure(value)})"
