"""Which conditions are compared, how, and what may be said of it: the declared family of an experiment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from analyses.comparisons.as_published import naive
from analyses.comparisons.contrast import ALPHA, HOLM, POWER, Contrast, Margin, Opened
from analyses.comparisons.correlations import correlations
from analyses.comparisons.covariates import adjust, adjusted_sentence, covariate_gaps
from analyses.comparisons.cross_checks import CrossCheck, cross_check_sentence, cross_checks
from analyses.comparisons.margins import SuggestedMargin, margin_of, within_suggested
from analyses.comparisons.sensitivity import Sensitivity, any_missing, sensitivity
from analyses.comparisons.sentences import contrast_sentence
from analyses.statistics.clusters import ClusteredMean
from analyses.statistics.corrections import Correction, benjamini_hochberg, bonferroni, holm, level
from analyses.statistics.equivalence import tost
from analyses.statistics.power import detectable
from analyses.statistics.proportions import binary, newcombe, sign_test
from analyses.statistics.t_tests import cohens_d, cohens_d_pooled
from analyses.tables.lookup import Lookup
from analyses.tables.pairs import EQUIVALENCE, Declared, Paired, declared_pairs, pair
from analyses.tables.run import value_columns

MOST_CHECKED = 50  # contrasts that are cross-checked, and explored in other readouts
_BY: Mapping[str, Correction] = {
    HOLM: holm,
    "bonferroni": bonferroni,
    "benjamini_hochberg": benjamini_hochberg,
}


@dataclass(frozen=True)
class _Family:
    """What all comparisons of an experiment share."""

    table: Lookup
    manifest: Mapping[str, Any]
    primary: str
    correction: str
    size: int


def contrasts(
    trials: pd.DataFrame | Lookup, manifest: Mapping[str, Any], *, control: SuggestedMargin | None = None
) -> list[Contrast]:
    """Every declared comparison: each condition against the baseline, `extra`, and `same` with its margin.

    The declared correction (Holm unless another is named) runs over all of them together; a comparison that
    could not be tested still counts in the family. control: what suggests a margin for the pairs of `same`
    that state none, where it is at hand. Of more than 50 comparisons, those with the smallest
    p are cross-checked. Raises ValueError for a correction that is not known.
    """
    table = Lookup.of(trials)
    options = manifest.get("contrasts", {})
    primary, correction = options.get("primary", "score"), options.get("correction", HOLM)
    if correction not in _BY:
        raise ValueError(f"contrasts.correction: expected one of {', '.join(_BY)}, got {correction!r}")
    if control is None:
        control = margin_of(table, manifest)
    declared = declared_pairs(manifest)
    family = _Family(table, manifest, primary, correction, len(declared))
    opened = [_open(family, each, control) for each in declared]
    p_values = [each.p for each in opened]
    corrected, by_holm = _BY[correction](p_values), holm(p_values)
    checked = _smallest(p_values, MOST_CHECKED)
    # In standard errors it depends on the df alone, which a large grid has few of.
    freedoms = {each.test.df for each in opened if each.test is not None and each.test.df is not None}
    in_errors = {df: detectable(1.0, df, alpha=ALPHA / family.size, power=POWER) for df in freedoms}
    closed = [
        _close(each, p, p_holm, family, in_errors, place in checked, _sensitivity(family, opened, place))
        for place, (each, p, p_holm) in enumerate(zip(opened, corrected, by_holm, strict=True))
    ]
    return _with_adjusted(closed, opened)


def _smallest(p_values: Sequence[float | None], most: int) -> set[int]:
    """The places of the smallest p, all where there are not more."""
    order = sorted(range(len(p_values)), key=lambda i: (p_values[i] is None, p_values[i] or 0.0))
    return set(order[:most])


def _open(family: _Family, declared: Declared, control: SuggestedMargin | None) -> Opened:
    margin = Margin()
    if declared.kind == EQUIVALENCE:
        margin = Margin(declared.stated, None if control is None else control.suggested)
    if family.table.numbers(family.primary) is None:
        note = f"the table has no column {family.primary}"
        return Opened(declared, margin, None, None, None, note)
    conditions = family.manifest.get("conditions", {})
    paired = pair(family.table, declared.condition, declared.against, family.primary, conditions)
    test = _of_equal_shares(paired, paired.test())
    equivalence = None
    if margin.stated is not None:
        equivalence = tost(test, margin.stated, ALPHA)
    elif control is not None and margin.suggested is not None:
        equivalence = within_suggested(family.table, paired, control, conditions, ALPHA)
    adjusted = None
    covariates = tuple(family.manifest.get("contrasts", {}).get("covariates") or ())
    if covariates:
        gaps = covariate_gaps(family.table.trials, declared.condition, declared.against, covariates, paired)
        adjusted = adjust(paired, gaps)
    return Opened(declared, margin, paired, test, equivalence, test.note, adjusted)


def _of_equal_shares(paired: Paired, test: ClusteredMean) -> ClusteredMean:
    """Where every pair goes from 0 to 1, or every one from 1 to 0, there is no spread to test by, but there
    is the exact sign test of as many pairs as the fewest clusters, and Newcombe's interval."""
    values = np.concatenate([paired.first, paired.second])
    if test.p is not None or test.mean not in (-1.0, 1.0) or not binary(values):
        return test
    fewest = min(test.clusters.values(), default=test.n)
    low, high = newcombe(paired.first, paired.second, fewest)
    method = "exact sign test, Newcombe's interval, by the fewest clusters"
    return replace(test, p=sign_test(fewest), ci_low=low, ci_high=high, method=method, note="")


def _close(
    each: Opened,
    p_corrected: float | None,
    p_holm: float | None,
    family: _Family,
    in_errors: Mapping[int, float],
    checked: bool,
    unsure: Sensitivity | None,
) -> Contrast:
    declared, test, paired = each.declared, each.test, each.paired
    difference = paired.difference if paired is not None else np.empty(0)
    found = None
    if test is not None and test.se is not None and test.df is not None:
        found = test.se * in_errors[test.df]
    published = None
    if family.manifest.get("contrasts", {}).get("statistics") == "as_published" and paired is not None:
        published = naive(family.table, family.manifest, declared.condition, declared.against)
    checks, told = _cross_checked(each) if checked else ((), _NOT_CHECKED)
    return Contrast(
        condition=declared.condition,
        against=declared.against,
        kind=declared.kind,
        readout=family.primary,
        test=test,
        p_holm=p_holm,
        p_corrected=p_corrected,
        correction=family.correction,
        family=family.size,
        d_z_ddof1=cohens_d(difference, ddof=1),
        d_z_ddof0=cohens_d(difference, ddof=0),
        d_pooled_ddof1=None if paired is None else cohens_d_pooled(paired.first, paired.second, ddof=1),
        icc={} if paired is None else correlations(paired),
        detectable=found,
        margin=each.margin,
        equivalence=each.equivalence,
        cross_checks=checks,
        cross_check_sentence=told,
        sensitivity=unsure,
        exploratory=_exploratory(family.table, declared.condition, declared.against, family.primary),
        naive=published,
        dropped=paired.dropped if paired is not None else "",
        note=each.note,
        sentence=contrast_sentence(
            each, p_corrected, family.correction, family.primary, found, family.manifest
        ),
    )


_NOT_CHECKED = (
    f"Cross-checks are made for the {MOST_CHECKED} comparisons with the smallest p; this is not one of them."
)


def _cross_checked(each: Opened) -> tuple[tuple[CrossCheck, ...], str]:
    if each.paired is None or each.test is None or each.p is None:
        return (), ""
    margin = each.margin.used if each.declared.kind == EQUIVALENCE else None
    p = each.p
    if margin is not None and each.margin.stated is None:
        # The cross-checks take the margin for known, and so must the p that they are held against.
        known = tost(each.test, margin, ALPHA).p
        p = each.p if known is None else known
    checks = cross_checks(each.paired, p, each.test.mean, margin)
    return checks, cross_check_sentence(checks, p, margin)


def _sensitivity(family: _Family, opened: Sequence[Opened], place: int) -> Sensitivity | None:
    each = opened[place]
    if each.paired is None or each.declared.kind == EQUIVALENCE:
        return None
    names = (each.declared.condition, each.declared.against)
    if not any_missing(family.table, *names):
        return None
    below = level(_BY[family.correction], [one.p for one in opened], place, ALPHA)
    conditions = family.manifest.get("conditions", {})
    return sensitivity(family.table, *names, family.primary, conditions, below)


def _exploratory(table: Lookup, first: str, second: str, primary: str) -> dict[str, dict[str, float | None]]:
    """Means of every other readout: no test, hence no claim."""
    found: dict[str, dict[str, float | None]] = {}
    for column in value_columns(table.trials):
        if column == primary:
            continue
        a, b = (_mean(table, name, column) for name in (first, second))
        gap = None if a is None or b is None else a - b
        found[column] = {"condition": a, "against": b, "difference": gap}
    return found


def _mean(table: Lookup, condition: str, column: str) -> float | None:
    values = table.numbers(column)
    assert values is not None
    mine = values[table.by_condition.ok(condition)]
    defined = mine[np.isfinite(mine)]
    return float(defined.mean()) if len(defined) else None


def _with_adjusted(closed: list[Contrast], opened: list[Opened]) -> list[Contrast]:
    """The contrasts with what their adjusted differences come to, a family of their own under Holm."""
    tests = [None if each.adjusted is None else each.adjusted.test for each in opened]
    corrected = holm([None if test is None else test.p for test in tests])
    return [
        contrast
        if each.adjusted is None
        else replace(
            contrast,
            adjusted=each.adjusted,
            adjusted_p_holm=p,
            adjusted_sentence=adjusted_sentence(
                each.adjusted, contrast.condition, contrast.against, contrast.readout, p
            ),
        )
        for contrast, each, p in zip(closed, opened, corrected, strict=True)
    ]
