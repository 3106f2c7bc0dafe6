"""How a figure is written in a sentence: one place, so that every report reads alike."""

from __future__ import annotations

import math
from collections.abc import Sequence


def figure(value: float | None, digits: int = 2) -> str:
    """A number with `digits` decimals; "undefined" where there is none, never "nan" and never "-0.00"."""
    if value is None or math.isnan(value):
        return "undefined"
    if math.isinf(value):
        return "infinite" if value > 0 else "minus infinite"
    text = f"{value:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text


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
