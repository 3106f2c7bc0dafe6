"""What may be said of a declared comparison, in one sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from analyses.comparisons.contrast import ALPHA, Margin, Opened, correction_name
from analyses.statistics.clusters import ClusteredMean, in_words
from analyses.statistics.equivalence import Equivalence
from analyses.tables.pairs import EQUIVALENCE
from analyses.wording import count, figure, p_value, plural, together


def contrast_sentence(
    each: Opened,
    p_corrected: float | None,
    correction: str,
    primary: str,
    detectable: float | None,
    manifest: Mapping[str, Any],
) -> str:
    """The verdict of one comparison. detectable: the difference that would have been found."""
    test, (condition, against, _) = each.test, each.declared
    names = f"{condition} and {against}"
    if test is None or test.n == 0:
        why = each.note if test is None else "no trial that both share has a value"
        return f"{names} cannot be compared in {primary}: {why}."
    assert test.mean is not None
    if test.p is None or test.ci_low is None:
        if test.n > 2 and test.sd is not None and test.sd <= 1e-12 * max(1.0, abs(test.mean)):
            gap = figure(test.mean)
            return f"{names}: all {count(test.n)} paired differences in {primary} are {gap}; nothing to test."
        return f"{names} differ by {figure(test.mean)} in {primary}, untested: {each.note}."
    if each.declared.kind == EQUIVALENCE:
        if each.equivalence is None:
            return _without_margin(test, names, primary)
        return _equivalence(each.equivalence, each.margin, test, names, primary, p_corrected, correction)
    mean, low, high = together(test.mean, test.ci_low, test.ci_high)
    interval = f"95% CI {low} to {high}"
    figures = f"{interval}, {p_value(p_corrected)} after {correction_name(correction)}; {_counts(test)}"
    baseline = manifest.get("contrasts", {}).get("baseline", "baseline")
    held = "" if against == baseline else f" against {against}"
    if p_corrected is not None and p_corrected < ALPHA:
        verb = "raises" if test.mean > 0 else "lowers"
        return f"{condition} {verb} {primary} by {mean.removeprefix('-')}{held} ({figures})."
    power = ""
    if detectable is not None:
        power = f" A true difference of {together(detectable)[0]} would have been found with 80% power."
    apart = ""
    if test.p < ALPHA:
        apart = " The interval leaves 0 out, but it is not corrected for the other comparisons."
    return (
        f"No difference in {primary} shown between {names}: {mean} ({figures}).{apart}{power} "
        "This does not show that they are equal."
    )


def _equivalence(
    equivalence: Equivalence,
    margin: Margin,
    test: ClusteredMean,
    names: str,
    primary: str,
    p_corrected: float | None,
    correction: str,
) -> str:
    if equivalence.p is None:
        return (
            f"{names} are not shown to be equal in {primary}: their difference of {figure(test.mean)} cannot "
            f"be held against a margin, {equivalence.note or 'for want of a standard error'}."
        )
    mean, low, high = together(test.mean, equivalence.ci_low, equivalence.ci_high)
    interval = f"90% CI {low} to {high}"
    corrected = f"TOST {p_value(p_corrected)} after {correction_name(correction)}"
    figures = f"difference {mean}, {interval}, {corrected}; {_counts(test)}"
    if margin.stated is not None:
        within = f"a margin of {equivalence.margin:g}"
    else:
        within = (
            f"a margin of {figure(equivalence.margin)} (suggested, a third of the positive control's effect, "
            "not stated before the run)"
        )
    if p_corrected is not None and p_corrected < ALPHA:
        return f"{names} are equal in {primary} within {within} ({figures})."
    return f"{names} are not shown to be equal in {primary} within {within} ({figures})."


def _without_margin(test: ClusteredMean, names: str, primary: str) -> str:
    mean, low, high = together(test.mean, test.ci_low, test.ci_high)
    return (
        f"Nothing is said of whether {names} are equal in {primary}: there is no margin, stated or suggested "
        f"(difference {mean}, 95% CI {low} to {high}; {_counts(test)})."
    )


def _counts(test: ClusteredMean) -> str:
    parts = [plural(test.n, "pair")]
    if test.clusters:
        parts.append(in_words(test.clusters))
    if test.effective_n is not None:
        parts.append(f"effective n {count(test.effective_n)}")
    return ", ".join(parts)
