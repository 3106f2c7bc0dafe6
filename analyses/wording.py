"""How a figure is written in a sentence: one place, so that every report reads alike."""

from __future__ import annotations

import math
from collections.abc import Sequence

_SMALL = 0.1  # numbers below it, all of them, are not told apart by two decimals
_ROUNDING = 1e-12  # a difference of two equal means is not always 0 to the last bit


def figure(value: float | None, digits: int = 2, among: Sequence[float | None] | None = None) -> str:
    """A number with `digits` decimals, or with three significant digits where decimals would hide it: where
    they are all 0 although it is not, or, `among` those that it is read with (an interval's ends, a row of a
    table), where every one is below 0.1. "undefined" where there is none, never "nan" and never "-0.00"."""
    if value is None or math.isnan(value):
        return "undefined"
    if math.isinf(value):
        return "infinite" if value > 0 else "minus infinite"
    known = [abs(v) for v in (value, *(among or ())) if v is not None and math.isfinite(v)]
    limit = 0.5 * 10**-digits if among is None else _SMALL
    if max(known) < limit and abs(value) > _ROUNDING:
        return small(value)
    text = f"{value:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text


def together(*values: float | None) -> list[str]:
    """Numbers of one unit that are read together, such as a mean and the ends of its interval."""
    return [figure(value, among=values) for value in values]


def in_column(values: Sequence[float | None]) -> list[str]:
    """Numbers that stand under one another, each as `figure` has it: alone, or among the others where all are
    below 0.1."""
    known = [abs(v) for v in values if v is not None and math.isfinite(v)]
    if known and max(known) < _SMALL:
        return together(*values)
    return [figure(value) for value in values]


def count(value: float | int) -> str:
    """A whole number with thousands separated: 44700 -> "44,700"."""
    return f"{round(value):,}"


def share(part: int, whole: int) -> str:
    """`part` of `whole` as a percentage with one decimal where it needs one: 299 of 300 is not "100%"."""
    if whole == 0:
        return "undefined"
    return f"{100 * part / whole:.1f}".removesuffix(".0") + "%"


def p_value(p: float | None) -> str:
    """ "p = 0.0003", "p < 0.0001" or "p undefined"; never "p = 0.0000"."""
    if p is None or math.isnan(p):
        return "p undefined"
    if p < 0.0001:
        return "p < 0.0001"
    return f"p = {p:.4f}" if p < 0.001 else f"p = {p:.3f}"


def bare_p(p: float | None) -> str:
    """`p_value` for a column that is headed p: "0.0003", "< 0.0001" or "undefined"."""
    return p_value(p).removeprefix("p ").removeprefix("= ")


def small(value: float | None) -> str:
    """A relative change: three significant digits, in powers of ten where it is tiny."""
    return "undefined" if value is None or math.isnan(value) else f"{value:.3g}"


def plural(number: int, noun: str) -> str:
    """ "1 pair", "300 pairs"."""
    return f"{count(number)} {noun}" if number == 1 else f"{count(number)} {noun}s"


def listed(names: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"
