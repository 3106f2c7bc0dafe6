"""Figures as they were printed: the values that they can stand for."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import product

Given = str | int | float
_FORM = re.compile(r"(?P<sign><=|>=|<|>|)\s*(?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)")
_SLACK = 1e-9  # of the value: what arithmetic adds to what rounding took
_WRITTEN = {"\N{MINUS SIGN}": "-", "\N{EN DASH}": "-", "\N{LESS-THAN OR EQUAL TO}": "<="}
_WRITTEN |= {"\N{GREATER-THAN OR EQUAL TO}": ">="}


@dataclass(frozen=True)
class Figure:
    """All values from `low` to `high` that are printed as `text`: those within half a unit of its last digit,
    or those below or above it where it is printed with < or >."""

    text: str
    low: float
    high: float

    @staticmethod
    def of(given: Given) -> Figure:
        """The figure of a text such as "0.63", "9.89e-24", "2.20" or "< 0.001"; a number stands for its
        shortest text. Raises ValueError for any other text."""
        text = str(given).strip()
        plain = text.lower()
        for written, meant in _WRITTEN.items():
            plain = plain.replace(written, meant)
        found = _FORM.fullmatch(plain)
        if found is None:
            raise ValueError(f"expected a number as printed, such as 0.63, 9.89e-24 or < 0.001, got {text!r}")
        number = Decimal(found["number"])
        value = float(number)
        if found["sign"]:
            below = found["sign"].startswith("<")
            return Figure(text, -math.inf if below else value, value if below else math.inf)
        exponent = number.as_tuple().exponent
        assert isinstance(exponent, int)
        half = 0.5 * 10.0**exponent + _SLACK * abs(value)
        return Figure(text, value - half, value + half)

    @property
    def value(self) -> float | None:
        """The number itself; None of a bound."""
        return (self.low + self.high) / 2 if math.isfinite(self.high - self.low) else None

    def holds(self, value: float) -> bool:
        """Whether a value would have been printed so."""
        return self.low <= value <= self.high

    def meets(self, low: float, high: float) -> bool:
        """Whether some value from low to high would have been printed so."""
        return self.low <= high + _SLACK * abs(high) and low - _SLACK * abs(low) <= self.high

    def whole_numbers(self, times: int = 1) -> range:
        """The whole numbers k for which k / times would have been printed so."""
        return range(math.ceil(self.low * times - _SLACK), math.floor(self.high * times + _SLACK) + 1)


Span = tuple[float, float]


def span(function: Callable[..., float], *parts: Span) -> Span:
    """The least and the greatest value of a function that is monotone in each argument, over a box."""
    values = [function(*corner) for corner in product(*parts)]
    return min(values), max(values)


def sizes(part: Span) -> Span:
    """The absolute values of an interval."""
    low, high = part
    least = 0.0 if low <= 0 <= high else min(abs(low), abs(high))
    return least, max(abs(low), abs(high))


def in_words(part: Span) -> str:
    """An interval as one figure where its ends agree to four digits, else both ends."""
    low, high = (f"{value:.4g}" for value in part)
    return low if low == high else f"{low} to {high}"


@dataclass(frozen=True)
class Printed:
    """The figures of one t test as they were printed; None of what was not.

    n: of the pairs, or, with arms = 2, of each arm (one number for both, or two). mean, sd, se and ci are of
    the difference that is tested; means and sds those of the two arms. d is Cohen's, by the sd of the
    differences (arms = 1) or the pooled one (arms = 2); ddof is that of its sd, 1 unless said otherwise.
    one_sided: of p. integer: the values are whole numbers, so that the mean is a whole number over n. least
    and most bound every value. clustered: se, t, p and ci are those of clustered values, so that only they
    belong together.
    """

    n: int | Sequence[int] | None = None
    arms: int = 1
    mean: Given | None = None
    sd: Given | None = None
    se: Given | None = None
    means: Sequence[Given] | None = None
    sds: Sequence[Given] | None = None
    t: Given | None = None
    df: Given | None = None
    p: Given | None = None
    d: Given | None = None
    ci: Sequence[Given] | None = None
    confidence: float = 0.95
    ddof: int = 1
    one_sided: bool = False
    integer: bool = False
    least: float | None = None
    most: float | None = None
    clustered: bool = False
