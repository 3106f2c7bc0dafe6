"""Which equivalence margin the positive control suggests: a third of the effect that it has in this run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analyses.statistics.clusters import ClusteredMean, clustered_mean
from analyses.statistics.equivalence import Equivalence, suggested_margin, tost_of_share
from analyses.tables.lookup import Lookup
from analyses.tables.pairs import Paired, Prompts, pair
from analyses.wording import figure, together

ALPHA = 0.05


@dataclass(frozen=True)
class SuggestedMargin:
    """What a positive control suggests. condition: the control; effect: its difference from the baseline with
    its interval; suggested: a third of its size, None where the control shows no effect."""

    condition: str
    against: str
    readout: str
    effect: float | None
    ci_low: float | None
    ci_high: float | None
    suggested: float | None
    sentence: str


def within_suggested(
    lookup: Lookup,
    paired: Paired,
    suggestion: SuggestedMargin,
    conditions: Mapping[str, Any],
    alpha: float = ALPHA,
) -> Equivalence:
    """Whether a paired difference is smaller than a third of the positive control's effect, on the trials
    that have both: the margin comes from the run as the difference does, and its uncertainty counts.
    conditions: those of the manifest. Raises ValueError where the control suggests no margin."""
    if suggestion.suggested is None:
        raise ValueError(f"{suggestion.condition}: expected a control that suggests a margin")
    control = pair(lookup, suggestion.condition, suggestion.against, suggestion.readout, conditions)
    at = control.target.index.get_indexer(paired.target.index)
    kept = at >= 0
    effect = control.difference[at[kept]] * np.sign(control.difference.mean())
    donors = {name: labels.to_numpy()[at[kept]] for name, labels in control.donors.items()}
    donors |= {name: labels.to_numpy()[kept] for name, labels in paired.donors.items()}
    prompts = Prompts.of(donors, paired.target.to_numpy()[kept])
    below, above = (
        clustered_mean(
            paired.difference[kept] - sign * effect / 3, donor=prompts.donors or None, target=prompts.target
        )
        for sign in (1, -1)
    )
    return tost_of_share(paired.test(), below, above, suggestion.suggested, alpha)


def margin_of(trials: pd.DataFrame | Lookup, manifest: Mapping[str, Any]) -> SuggestedMargin | None:
    """The margin that `contrasts.positive_control` suggests, None where the experiment names none.

    A third of an effect whose 95% interval holds 0 is a third of nothing in particular: then none is
    suggested, and the sentence says why.
    """
    options = manifest.get("contrasts", {})
    control = options.get("positive_control")
    if control is None:
        return None
    baseline, primary = options.get("baseline", "baseline"), options.get("primary", "score")

    def none(why: str, test: ClusteredMean | None = None) -> SuggestedMargin:
        told = f"The positive control {control} suggests no margin: {why}."
        found = (None, None, None) if test is None else (test.mean, test.ci_low, test.ci_high)
        return SuggestedMargin(control, baseline, primary, *found, None, told)

    table = Lookup.of(trials)
    if table.numbers(primary) is None:
        return none(f"the table has no column {primary}")
    test = pair(table, control, baseline, primary, manifest.get("conditions", {})).test()
    if test.n == 0:
        return none(f"no trial of it and of {baseline} that both share has a value")
    if test.mean is None or test.p is None or test.ci_low is None or test.ci_high is None:
        return none(test.note, test)
    mean, low, high = together(test.mean, test.ci_low, test.ci_high)
    interval = f"{mean}, 95% CI {low} to {high}, uncorrected"
    if test.p >= ALPHA:
        why = f"its difference from {baseline} in {primary} is not told apart from 0 ({interval})"
        return none(why, test)
    suggested = suggested_margin(test.mean)
    told = (
        f"Suggested equivalence margin: {figure(suggested)}, a third of the difference between the positive "
        f"control {control} and {baseline} in {primary} ({interval}). It comes from this run, and was not "
        "stated before it."
    )
    found = (test.mean, test.ci_low, test.ci_high)
    return SuggestedMargin(control, baseline, primary, *found, suggested, told)
