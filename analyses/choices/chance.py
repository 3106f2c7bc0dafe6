"""How many would pass a choice by chance: paired differences keep their size and lose their sign."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from analyses.choices.candidates import Candidate, axis_value
from analyses.choices.criteria import Criterion, Metric
from analyses.choices.paired_figures import Figures
from analyses.wording import count, figure, plural

FLIPS = 1000


def cells_by_chance(
    criteria: Sequence[Criterion],
    candidates: Sequence[Candidate],
    found: Figures,
    layers: int | None,
    seed: int,
) -> float | None:
    """Cells that would meet the criteria if each item's paired difference had the sign of a coin: the mean
    over 1000 draws, one coin for all cells of a difference. What bounds no difference stays as it is. None
    where no criterion bounds one, or no cell is judged.

    Source: the sign-flipping randomisation test for paired data, Fisher (1935), "The design of experiments",
    section 21.
    """
    paired = dict.fromkeys(each.metric for each in criteria if each.metric and each.metric.minus is not None)
    live = [place for place in range(len(candidates)) if place not in found.unfit]
    if not paired or not found.items or not live:
        return None
    rng = np.random.default_rng(seed)
    flipped: dict[Metric, NDArray[np.float64]] = {}
    for metric in paired:
        held = found.frames[metric].loc[list(found.items), live].to_numpy(dtype=float)
        signs = rng.choice((-1.0, 1.0), size=(FLIPS, len(found.items)))
        flipped[metric] = signs @ held / len(found.items)
    passes = np.ones((FLIPS, len(live)), dtype=bool)
    for each in criteria:
        if each.metric is not None and each.metric in flipped:
            passes &= each.hold(flipped[each.metric], layers)
        else:
            passes &= np.array([_fixed(each, candidates[place], layers) for place in live])
    return float(passes.sum(axis=1).mean())


def items_by_chance(criteria: Sequence[Criterion], candidates: Sequence[Candidate]) -> float | None:
    """Items that would meet the criteria on average if each paired difference had the sign of a coin, one for
    each difference; None where no criterion bounds one."""
    metrics = dict.fromkeys(each.metric for each in criteria if each.metric is not None)
    if not any(metric.minus is not None for metric in metrics):
        return None
    judged = [each for each in candidates if each.judged]
    return sum(_kept_by_chance(each.figures, criteria, list(metrics)) for each in judged)


def in_words(chance: float, passed: int, of: int, noun: str) -> str:
    """The sentence on what chance would give beside what was found."""
    return (
        f"By chance, with the signs of the paired differences left to a coin, {figure(chance, 1)} of "
        f"{plural(of, noun)} would pass; {count(passed)} do."
    )


def _fixed(criterion: Criterion, candidate: Candidate, layers: int | None) -> bool:
    if criterion.metric is None:
        return criterion.holds(axis_value(criterion, candidate.axes), layers)
    return criterion.holds(candidate.figures[criterion.metric.name], layers)


def _kept_by_chance(
    figures: Mapping[str, float | None], criteria: Sequence[Criterion], metrics: Sequence[Metric]
) -> float:
    share = 1.0
    for metric in metrics:
        value = figures[metric.name]
        assert value is not None
        signs = (1.0, -1.0) if metric.minus is not None else (1.0,)
        mine = [each for each in criteria if each.metric == metric]
        share *= sum(all(each.holds(sign * value) for each in mine) for sign in signs) / len(signs)
    return share
