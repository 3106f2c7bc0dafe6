"""How a study's figures read in its sentence and in its table."""

from __future__ import annotations

from collections.abc import Sequence

from analyses.statistics.clusters import in_words
from analyses.studies.study import Estimate
from analyses.wording import bare_p, figure, p_value, plural, together


def interval(estimate: Estimate) -> str:
    """ "2.10 (95% CI 1.80 to 2.40)"; the value alone where there is no interval."""
    if estimate.value is None:
        return "undefined"
    if estimate.low is None:
        return figure(estimate.value)
    value, low, high = together(estimate.value, estimate.low, estimate.high)
    return f"{value} (95% CI {low} to {high})"


def cells(estimate: Estimate) -> tuple[str, str]:
    """Value and interval as two cells of a table."""
    if estimate.value is None:
        return "-", "-"
    if estimate.low is None:
        return figure(estimate.value), "-"
    value, low, high = together(estimate.value, estimate.low, estimate.high)
    return value, f"{low} to {high}"


def p_cell(p: float | None) -> str:
    return "-" if p is None else bare_p(p)


def after_holm(p: float | None, family: int) -> str:
    """ "p = 0.003 after Holm over 4 tests"; without Holm where there is one test."""
    return p_value(p) if family < 2 else f"{p_value(p)} after Holm over {family} tests"


def sizes(estimate: Estimate) -> str:
    """ "300 trials, 86 donors x 150 targets"."""
    told = plural(estimate.n, "trial")
    return f"{told}, {in_words(estimate.clusters)}" if estimate.clusters else told


def percent(value: float | None) -> str:
    """A share as a percentage: 0.314 -> "31%", 0.004 -> "0.4%"."""
    if value is None:
        return "undefined"
    scaled = 100 * value
    return f"{figure(scaled, 1 if 0 < abs(scaled) < 10 else 0)}%"


def notes(*parts: str) -> str:
    """Remarks as one, each once."""
    return "; ".join(dict.fromkeys(part for part in parts if part))


def moved(value: float) -> str:
    return "raises" if value > 0 else "lowers"


def joined(sentences: Sequence[str]) -> str:
    return " ".join(sentence for sentence in sentences if sentence)
