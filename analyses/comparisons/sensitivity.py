"""What the trials without a valid value could do to a difference, if they had one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from analyses.statistics.bounds import InvalidBounds, invalid_bounds
from analyses.statistics.clusters import Floats
from analyses.statistics.proportions import binary
from analyses.tables.lookup import OWN, Lookup
from analyses.tables.pairs import OTHER, Prompts, roles_read
from analyses.wording import count, figure, listed, plural, together

_MISSING = ("invalid", "failed")


@dataclass(frozen=True)
class Sensitivity:
    """The difference at its worst. invalid: values missing on both sides, of which `invalid_condition` and
    `invalid_against` of `pairs` pairs; least, greatest: what stands in for them; low, high: the difference
    with the one in the condition and the other in what it is against, and the other way round, each with its
    uncorrected clustered p. verdict_survives: whether both say what the contrast says, at its corrected
    level; None where there is no verdict, and then `note` says why."""

    invalid: int
    invalid_condition: int
    invalid_against: int
    pairs: int
    least: float | None
    greatest: float | None
    low: float | None
    high: float | None
    p_low: float | None
    p_high: float | None
    sign_survives: bool | None
    verdict_survives: bool | None
    note: str
    sentence: str


def sensitivity(
    table: Lookup,
    condition: str,
    against: str,
    primary: str,
    conditions: Mapping[str, Any],
    level: float,
) -> Sensitivity | None:
    """How far invalid and failed trials could move one difference; None where neither condition has any.

    A trial that is valid without a value of the readout (undefined) stays left out, as in the contrast, and
    so does one that has not ended. level: what the uncorrected p of this contrast has to be below, with those
    of the others in the family as they are.

    Source: see `analyses.statistics.bounds.invalid_bounds`.
    """
    if not any_missing(table, condition, against):
        return None
    first, second, prompts = _planned(table, condition, against, primary, conditions)
    seen = np.concatenate([first, second])
    limits = (0.0, 1.0) if binary(seen[np.isfinite(seen)]) else None
    bounds = invalid_bounds(first, second, prompts.donors or None, prompts.target, limits=limits, alpha=level)
    if not bounds.invalid:
        return None
    return Sensitivity(
        invalid=bounds.invalid,
        invalid_condition=bounds.invalid_first,
        invalid_against=bounds.invalid_second,
        pairs=bounds.n,
        least=bounds.least,
        greatest=bounds.greatest,
        low=None if bounds.low is None else bounds.low.mean,
        high=None if bounds.high is None else bounds.high.mean,
        p_low=None if bounds.low is None else bounds.low.p,
        p_high=None if bounds.high is None else bounds.high.p,
        sign_survives=bounds.sign_survives,
        verdict_survives=bounds.verdict_survives,
        note=bounds.note,
        sentence=_sentence(bounds, condition, against, primary, level),
    )


def any_missing(table: Lookup, condition: str, against: str) -> bool:
    """Whether either condition has a trial that is invalid or failed."""
    apart = table.by_condition
    return any(apart.statuses(name).get(status) for name in (condition, against) for status in _MISSING)


def _planned(
    table: Lookup, condition: str, against: str, primary: str, conditions: Mapping[str, Any]
) -> tuple[Floats, Floats, Prompts]:
    """Both sides of the pairs of all trials that are valid with a value, or invalid, NaN for the value of the
    latter; and their prompts."""
    values, apart = table.numbers(primary), table.by_condition
    assert values is not None
    status = np.array([*apart.names], dtype=object)
    places = []
    for name in (condition, against):
        rows = apart.rows(name)
        known = status[apart.status[rows]]
        kept = np.isin(known, _MISSING) | ((known == "ok") & ~np.isnan(values[rows]))
        place = np.full(table.units.size, -1, dtype=np.intp)
        place[table.units.codes[rows[kept]]] = rows[kept]
        places.append(place)
    shared = (places[0] >= 0) & (places[1] >= 0)
    mine, other = (place[shared] for place in places)
    valid = np.where(status[apart.status] == "ok", values, np.nan)
    # A role that only the other side reads is recorded there.
    roles = {name: roles_read(conditions.get(name, {})) for name in (condition, against)}
    read = dict.fromkeys((*roles[condition], *roles[against])) or {OWN: None}
    donors = {
        role if role in (OWN, OTHER) else f"{OWN}:{role}": table.donor(
            role, other if role not in roles[condition] and role in roles[against] else mine
        )
        for role in read
    }
    return valid[mine], valid[other], Prompts.of(donors, table.target(mine))


def _sentence(bounds: InvalidBounds, condition: str, against: str, primary: str, level: float) -> str:
    sides = [
        f"{count(number)} of {plural(bounds.n, 'trial')} of {name}"
        for name, number in ((condition, bounds.invalid_first), (against, bounds.invalid_second))
        if number
    ]
    whole = bounds.invalid_first + bounds.invalid_second
    told = f"{listed(sides)} {'has' if whole == 1 else 'have'} no valid {primary}"
    if bounds.low is None or bounds.high is None or bounds.least is None or bounds.greatest is None:
        return f"{told}; nothing can be said of what they could change: {bounds.note}."
    low, high = together(bounds.low.mean, bounds.high.mean)
    told += (
        f"; with {figure(bounds.least)} or {figure(bounds.greatest)} in their place, the worst either way, "
        f"the difference {condition} - {against} would be between {low} and {high}"
    )
    if bounds.verdict_survives is None:
        return f"{told}; no verdict to survive: {bounds.note}."
    shown = bounds.estimate.p is not None and bounds.estimate.p < level
    if bounds.verdict_survives:
        verdict = "the verdict survives both" if shown else "no difference would be shown in either case"
    else:
        verdict = "the verdict does not survive both" if shown else "a difference could be shown then"
    return f"{told}: {verdict}."
