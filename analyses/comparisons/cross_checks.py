"""The same difference tested in other ways: what the naive test would have said, and whether methods that
rest on less, or on other things, say the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy import stats

from analyses.statistics.bootstrap import two_way
from analyses.statistics.clusters import Floats
from analyses.statistics.mixed import crossed
from analyses.statistics.permutation import sign_flip
from analyses.statistics.proportions import binary, mcnemar
from analyses.statistics.ranks import wilcoxon
from analyses.statistics.t_tests import paired_t
from analyses.tables.pairs import Paired, Prompts
from analyses.wording import count, listed, p_value, plural

ALPHA = 0.05
MIXED_ROWS = 10_000  # above it no mixed model is fitted
_MANY = 2_000  # pairs above which fewer draws are made
_FEWER = 500  # draws then
_MOST_CLUSTERS = 500  # of the smaller dimensions, beyond which a mixed model takes seconds
_MOST_CELLS = 20_000  # distinct pairs of donors and target above which nothing is resampled
NAIVE = "paired t"
_CALLED = {NAIVE: "the naive paired t test", "Wilcoxon": "Wilcoxon's test", "McNemar": "McNemar's test"}


@dataclass(frozen=True)
class CrossCheck:
    """One other test of a difference, with its 95% interval; of an equivalence, with its TOST p and its 90%
    interval. agrees: whether its p is on the same side of alpha as that of the contrast, both uncorrected,
    and its estimate on the same side of 0 where both are below alpha. None where there is nothing to compare,
    and then `note` says why."""

    name: str
    estimate: float | None
    p: float | None
    ci_low: float | None
    ci_high: float | None
    agrees: bool | None
    note: str


def cross_checks(
    paired: Paired, p: float, difference: float | None, margin: float | None = None
) -> tuple[CrossCheck, ...]:
    """The cross-checks of one contrast.

    p, difference: the uncorrected p and the difference of the clustered test; margin: that of an equivalence,
    of which only the methods with an interval have a say. Paired t, the naive test, and Wilcoxon take the
    pairs for independent, McNemar's test of a readout of 0 and 1 as well. The sign flip, the bootstrap and
    the mixed model know donors and targets. Work is bounded: above 2,000 pairs there are 500 draws, above
    20,000 distinct pairs of prompts nothing is resampled, above 10,000 pairs or 500 clusters beside those of
    the largest dimension there is no mixed model; the note says so.
    """
    d = paired.difference
    found = [_naive(d, margin)]
    if margin is None:
        ranked = wilcoxon(d)
        found.append(
            CrossCheck(
                "Wilcoxon", ranked.estimate, ranked.p, ranked.ci_low, ranked.ci_high, None, ranked.note
            )
        )
        if binary(np.concatenate([paired.first, paired.second])):
            share = float(d.mean())
            exact = mcnemar(paired.first, paired.second)
            found.append(CrossCheck("McNemar", share, exact, None, None, None, ""))
    found += _resampled(d, paired.prompts, margin)
    found.append(_mixed(d, paired.prompts, margin))
    return tuple(_judged(each, p, difference, margin) for each in found)


def cross_check_sentence(checks: Sequence[CrossCheck], p: float, margin: float | None = None) -> str:
    """What the cross-checks come to: that they agree, or what each would have said. p: the uncorrected one of
    the contrast; margin: of an equivalence. Empty where none could be made."""
    agreeing = listed([each.name for each in checks if each.agrees is True])
    differing = [each for each in checks if each.agrees is False]
    left = [f"no {each.name}: {each.note or 'it gives no p'}" for each in checks if each.agrees is None]
    if not agreeing and not differing:
        return ""
    if not differing:
        return "; ".join([f"Cross-checks agree: {agreeing}", *left]) + "."
    said = listed([_would_have_said(each, p, margin) for each in differing])
    what = "for the equivalence " if margin is not None else ""
    told = f"Cross-checks do not all agree, {what}uncorrected: clustered {p_value(p)}, but {said}"
    agree = [f"in agreement with the clustered test: {agreeing}"] if agreeing else []
    return "; ".join([told, *agree, *left]) + "."


def _would_have_said(each: CrossCheck, p: float, margin: float | None) -> str:
    who = _CALLED.get(each.name, f"the {each.name}")
    if each.p is None:
        inside = "would not be" if p < ALPHA else "would be"
        return f"the interval of {who} {inside} within the margin"
    other = " in the other direction" if margin is None and (each.p < ALPHA) == (p < ALPHA) else ""
    return f"{who} would have said {p_value(each.p)}{other}"


def _naive(d: Floats, margin: float | None) -> CrossCheck:
    if margin is None:
        test = paired_t(d)
        return CrossCheck(NAIVE, test.difference, test.p, test.ci_low, test.ci_high, None, test.note)
    test = paired_t(d, confidence=1 - 2 * ALPHA)
    p = None
    if test.difference is not None and test.t is not None and test.df is not None and test.sd is not None:
        p = _within(test.difference, test.sd / len(d) ** 0.5, test.df, margin)
    return CrossCheck(NAIVE, test.difference, p, test.ci_low, test.ci_high, None, test.note)


def _within(mean: float, se: float, df: float, margin: float) -> float:
    """The p of two one-sided t tests."""
    return max(float(stats.t.sf((mean + margin) / se, df)), float(stats.t.cdf((mean - margin) / se, df)))


def _resampled(d: Floats, prompts: Prompts, margin: float | None) -> list[CrossCheck]:
    names = ["two-way bootstrap"] if margin is not None else ["sign flip", "two-way bootstrap"]
    draws: dict[str, int] = {}
    if len(d) > _MANY:
        cells = _cells(prompts)
        if cells > _MOST_CELLS:
            note = f"{plural(cells, 'distinct pair')} of prompts, more than {count(_MOST_CELLS)}"
            return [CrossCheck(name, None, None, None, None, None, note) for name in names]
        draws = {"draws": _FEWER}
    found = []
    if margin is None:
        flipped = sign_flip(d, {**prompts.donors, "target": prompts.target}, **draws)
        found.append(CrossCheck(names[0], flipped.estimate, flipped.p, None, None, None, flipped.note))
    confidence = 0.95 if margin is None else 1 - 2 * ALPHA
    drawn = two_way(d, prompts.donors or None, prompts.target, confidence=confidence, **draws)
    p = drawn.p if margin is None else None
    ends = (drawn.ci_low, drawn.ci_high)
    found.append(CrossCheck(names[-1], drawn.estimate, p, *ends, None, drawn.note))
    return found


def _mixed(d: Floats, prompts: Prompts, margin: float | None) -> CrossCheck:
    name, beside = "mixed model", sorted(_clusters(prompts))[:-1]
    if len(d) > MIXED_ROWS:
        note = f"{plural(len(d), 'pair')}, more than {count(MIXED_ROWS)}"
        return CrossCheck(name, None, None, None, None, None, note)
    if sum(beside) > _MOST_CLUSTERS:
        note = (
            f"{count(sum(beside))} clusters beside the largest dimension, more than {count(_MOST_CLUSTERS)}"
        )
        return CrossCheck(name, None, None, None, None, None, note)
    confidence = 0.95 if margin is None else 1 - 2 * ALPHA
    model = crossed(d, prompts.donors or None, prompts.target, max_rows=MIXED_ROWS, confidence=confidence)
    p = model.p
    if margin is not None and model.estimate is not None and model.se is not None and model.df is not None:
        p = _within(model.estimate, model.se, model.df, margin)
    return CrossCheck(name, model.estimate, p, model.ci_low, model.ci_high, None, model.note)


def _clusters(prompts: Prompts) -> list[int]:
    """How many different prompts each dimension has."""
    return [len(np.unique(numbers)) for numbers in (*prompts.donors.values(), prompts.target)]


def _cells(prompts: Prompts) -> int:
    """How many distinct combinations of donors and target there are."""
    return len(pd.DataFrame({**prompts.donors, "target": prompts.target}).drop_duplicates())


def _judged(each: CrossCheck, p: float, difference: float | None, margin: float | None) -> CrossCheck:
    """A cross-check with whether it agrees. By its p; by its interval where it has no p."""
    found = each.p is not None and each.p < ALPHA
    if each.p is None:
        if margin is None or each.ci_low is None or each.ci_high is None:
            return each
        found = each.ci_low > -margin and each.ci_high < margin
    agrees = found == (p < ALPHA)
    if agrees and found and margin is None and each.estimate is not None and difference is not None:
        agrees = (each.estimate > 0) == (difference > 0)
    return replace(each, agrees=agrees)
