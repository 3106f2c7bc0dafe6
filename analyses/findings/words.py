"""How a finding reads: one plain sentence with its figures, denominators and what limits it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from analyses.findings.cross_model import Published
from analyses.findings.finding import Depth, Finding, Part
from analyses.tables.cells import axis_words
from analyses.wording import count, figure, p_value, plural, share, together

ALPHA = 0.05
_MOST = 6  # parts that a sentence names one by one


def in_a_sentence(found: Finding) -> str:
    """The finding as one plain sentence, with its figures, denominators and what limits it."""
    if found.value is None:
        told = f"{found.label}: no figure: {found.note}"
    elif found.kind in ("choice", "artefact"):
        depth = found.depth
        at = "" if depth is None else f", {depth_words(depth)}"
        notes = f" ({found.note})" if found.note else ""
        told = f"{found.label}: {value_words(found)}{at}{notes}"
    else:
        told = f"{found.label}: {_figures(found)}"
    parts = [told.rstrip(".") + "."]
    if found.p_holm is not None and found.p_holm >= ALPHA:
        parts.append("No difference is shown, which does not show that there is none.")
        if found.low is not None and found.high is not None and (found.low > 0 or found.high < 0):
            parts.append("The interval leaves 0 out, but it is not corrected for the other findings.")
    if found.note and found.kind in ("mean", "difference") and found.value is not None:
        parts.append(f"Note: {found.note}.")
    if found.fixed:
        cells = [f"{each.key}: {_part_words(each)}" for each in found.fixed]
        parts.append(f"One fixed cell: {'; '.join(cells)}.")
    if found.by:
        parts.append(f"By {found.by_axis.rpartition('.')[2]}: {_by_words(found.by)}.")
    if found.published is not None:
        parts.append(f"Published: {published_words(found.published)}.")
    if found.in_sample:
        parts.append(f"In sample: {found.in_sample.rstrip('.')}.")
    return " ".join(parts)


def _by_words(parts: Sequence[Part]) -> str:
    """Each part, or of many the lowest and the highest."""
    known = [each for each in parts if each.value is not None]
    if len(parts) <= _MOST or not known:
        return "; ".join(f"{axis_words(each.key)}: {_part_words(each)}" for each in parts)
    ends = [pick(known, key=lambda each: float(each.value or 0)) for pick in (min, max)]
    lowest, highest = (f"{_part_words(each)} at {axis_words(each.key)}" for each in ends)
    return f"{count(len(parts))} values, lowest {lowest}, highest {highest}"


def _figures(found: Finding) -> str:
    """The measured figures in words."""
    interval = interval_words(found)
    if found.kind == "mean":
        (side,) = found.sides
        if side.ones is not None:
            rate = f"{count(side.ones)} of {count(side.n)}"
            return f"{found.what} in {rate} ({share(side.ones, side.n)}; {interval})"
        return f"{found.what} {value_words(found)} ({interval}; {plural(found.n, 'trial')})"
    first, second = found.sides
    if first.ones is not None and second.ones is not None:
        rates = ", ".join(
            f"{count(side.ones)} of {count(side.n)} ({share(side.ones, side.n)}) in {side.name}"
            for side in (first, second)
            if side.ones is not None
        )
        told = f"{found.readout}: {rates}; difference {figure(found.value)}"
    else:
        means = ", ".join(f"{figure(side.mean)} in {side.name}" for side in (first, second))
        told = f"{found.readout}: {means}; difference {value_words(found)}"
    p = "" if found.p is None else f", {p_value(found.p_holm)} after Holm over {count(found.family)}"
    return f"{told} ({interval}{p}; {plural(found.n, 'pair')})"


def value_words(found: Finding) -> str:
    """The value as tables have it: a figure among its interval's ends, a word, a list, or a dash."""
    if found.value is None:
        return "-"
    if is_rate(found):
        return percent(found.value)
    if isinstance(found.value, float):
        return together(found.value, found.low, found.high)[0]
    if isinstance(found.value, list | tuple):
        return ", ".join(map(str, found.value))
    return str(found.value)


def interval_words(found: Finding) -> str:
    """ "95% CI 0.10 to 0.30", of a share in percent; or that there is none."""
    if found.low is None or found.high is None:
        return "no interval"
    return f"95% CI {' to '.join(ends(found))}"


def ends(found: Finding) -> tuple[str, str]:
    """Both ends of the interval, in the form of the value; empty where there is none."""
    if found.low is None or found.high is None:
        return "", ""
    if is_rate(found):
        return percent(found.low), percent(found.high)
    _, low, high = together(found.value, found.low, found.high)
    return low, high


def is_rate(found: Finding) -> bool:
    """Whether it is a share of trials, told in percent; a difference of two is told in points of 1."""
    return found.kind == "mean" and found.unit == "share"


def percent(value: float) -> str:
    """A share from 0 to 1 in percent, with a decimal where it is not whole."""
    return f"{100 * value:.1f}".removesuffix(".0") + "%"


def _part_words(part: Part) -> str:
    if part.value is None:
        return "no value"
    if part.ones is not None:
        return f"{count(part.ones)} of {count(part.n)}"
    told, low, high = together(part.value, part.low, part.high)
    return told if part.low is None else f"{told} ({low} to {high})"


def published_words(found: Published) -> str:
    """The published figure of this model, or those of all models where there is none."""
    if found.model is not None:
        return f"{published_value(found.value)} ({found.model})"
    if found.models:
        return ", ".join(f"{published_value(value)} ({name})" for name, value in found.models.items())
    return published_value(found.value)


def published_value(value: object) -> str:
    """A published figure: numbers to four digits, lists and mappings as they are read."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {published_value(each)}" for name, each in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(published_value, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def depth_words(depth: Depth) -> str:
    """ "layer 5 of 9 (55.6% of the depth)"."""
    return f"layer {depth.layer} of {depth.layers} ({share(depth.layer, depth.layers)} of the depth)"
