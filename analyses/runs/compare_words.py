"""A comparison of runs in sentences."""

from __future__ import annotations

from analyses.runs.comparison import Compared, Effect, Same, Versus
from analyses.statistics.clusters import ClusteredMean, in_words
from analyses.wording import count, figure, listed, p_value, plural, share, together

SETTING = ("machine", "packages", "code")  # differences that are none of what was asked


def condition_sentence(each: Compared, names: tuple[str, str]) -> str:
    """What came of a condition in two runs of these names."""
    where = f"{each.condition} in {names[1]} and in {names[0]}"
    if each.test is None:
        why = "there is no readout to compare" if not each.readout else "they share no valid trial"
        return f"{where} cannot be compared: {why}."
    if each.copied:
        return (
            f"{each.condition}: all {count(each.same.of)} shared trials are the same ones, taken over by one "
            "run from the other."
        )
    figures = _figures(each.test, each.p_holm)
    if figures is None:
        return f"{each.condition}: {_untested(each.test, each.readout)}"
    if not each.shown:
        return (
            f"No difference in {each.readout} shown between {where}: {figures}. This does not show that they "
            "are equal."
        )
    assert each.test.mean is not None
    gap = figure(abs(each.test.mean))
    way = "higher" if each.test.mean > 0 else "lower"
    return f"{each.condition} has {each.readout} {gap} {way} in {names[1]} than in {names[0]} ({figures})."


def effect_sentence(each: Effect, names: tuple[str, str]) -> str:
    """What came of a contrast in two runs of these names."""
    what = f"the effect of {each.condition} against {each.against} on {each.readout}"
    if each.test is None:
        return f"{what[0].upper()}{what[1:]} cannot be compared: {each.note}."
    figures = _figures(each.test, each.p_holm)
    if figures is None:
        return f"{what[0].upper()}{what[1:]}: {_untested(each.test, 'the effects')}"
    first, second = together(each.effect_first, each.effect_second)
    both = f"{first} in {names[0]}, {second} in {names[1]}"
    if not each.shown:
        return (
            f"No difference shown in {what}: {both}; {figures}. This does not show that the effects are "
            "equal."
        )
    assert each.test.mean is not None
    way = "higher" if each.test.mean > 0 else "lower"
    gap = figure(abs(each.test.mean))
    return f"{what[0].upper()}{what[1:]} is {gap} {way} in {names[1]}: {both} ({figures})."


def _figures(test: ClusteredMean, p_holm: float | None) -> str | None:
    """The figures of a test; None where there is none."""
    if test.p is None:
        return None
    mean, low, high = together(test.mean, test.ci_low, test.ci_high)
    parts = [plural(test.n, "pair")]
    parts += [in_words(test.clusters)] if test.clusters else []
    return f"{mean}, 95% CI {low} to {high}, {p_value(p_holm)} after Holm; {', '.join(parts)}"


def _untested(test: ClusteredMean, what: str) -> str:
    if test.mean is not None and test.sd is not None and test.sd <= 1e-12 * max(1.0, abs(test.mean)):
        gap = "no difference" if abs(test.mean) <= 1e-12 else f"the same difference, {figure(test.mean)},"
        return f"{gap} in {what} in all {count(test.n)} pairs."
    return f"{figure(test.mean)} in {what}, untested: {test.note}."


def headline(one: Versus) -> str:
    """What a comparison comes to, in a sentence or two."""
    same = one.same
    setting = [each for each in one.differences if each.of not in SETTING]
    if not one.conditions:
        return f"{one.first} and {one.second} have no condition in common."
    if not same.of:
        return f"{one.first} and {one.second} share no valid trial."
    alike = f"all {plural(same.of, 'shared trial')} came out the same ({same.what})"
    if same.same == same.of:
        alone = one.only_first or one.only_second or one.names_first or one.names_second
        if not setting and not one.operations and not alone:
            others = sorted({each.of for each in one.differences})
            but = f", but for {listed(others)}" if others else ""
            return f"Nothing differs: {alike}, and so are the settings{but}.{_copied(same)}"
        return f"{alike[0].upper()}{alike[1:]}.{_copied(same)}"
    tests, shown = plural(len(one.tests), "test"), len(one.shown)
    found = f"{count(shown)} of {tests}" if shown else f"none of {tests}"
    return (
        f"{share(same.same, same.of)} of {plural(same.of, 'shared trial')} came out the same ({same.what}). "
        f"After correction, {found} {'show' if shown > 1 else 'shows'} a difference.{_copied(same)}"
    )


def _copied(same: Same) -> str:
    if not same.copied:
        return ""
    return f" {count(same.copied)} of them are one and the same result, taken over from run to run."
