"""What a choice demands of a cell, a row or an item: one bound on one figure."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

BOUNDS = {
    "above": "above",
    "at_least": "at least",
    "below": "below",
    "at_most": "at most",
    "equals": "equal to",
}
_COMPARE: Mapping[str, Callable[[Any, float], Any]] = {
    "above": operator.gt,
    "at_least": operator.ge,
    "below": operator.lt,
    "at_most": operator.le,
    "equals": operator.eq,
}
_PERCENT = re.compile(r"(\d+(?:\.\d+)?)%")
_NUMBERS = re.compile(r"-?\d+(?:\.\d+)?(?:\+-?\d+(?:\.\d+)?)*")


@dataclass(frozen=True)
class Metric:
    """A figure that is the mean of a readout in `of` (a condition, or a grid cell by cell), less that in
    `minus`. of is None for a column of an artefact's table."""

    readout: str
    of: str | None = None
    minus: str | None = None

    @property
    def name(self) -> str:
        """As tables head it: "ablate: refusal", "patched - corrupted: p"."""
        if self.of is None:
            return self.readout
        return f"{self.of if self.minus is None else f'{self.of} - {self.minus}'}: {self.readout}"

    @property
    def words(self) -> str:
        """As sentences have it: "refusal of ablate", "p of patched less that of corrupted"."""
        if self.of is None:
            return self.readout
        return f"{self.readout} of {self.of}" + ("" if self.minus is None else f" less that of {self.minus}")


@dataclass(frozen=True)
class Criterion:
    """One demand: `metric`, or the value of `axis`, against `limit`. A depth such as "80%" is that share of
    the layers of the model."""

    bound: str
    limit: float | str
    metric: Metric | None = None
    axis: str | None = None

    @property
    def words(self) -> str:
        """ "kl of ablate at most 0.1"."""
        subject = str(self.axis).rpartition(".")[2] if self.metric is None else self.metric.words
        limit = self.limit if isinstance(self.limit, str) else f"{self.limit:g}"
        return f"{subject} {BOUNDS[self.bound]} {limit}"

    def holds(self, value: object, layers: int | None = None) -> bool:
        """Whether a value meets it; a list (`3+4`) does where each of its numbers does. False for an
        undefined value, and for a word under a bound that needs a number."""
        if self.bound == "equals" and isinstance(value, str) and value == self.limit:
            return True
        limit = self._number(layers)
        numbers = as_numbers(value)
        if limit is None or not numbers:
            return False
        return all(_COMPARE[self.bound](number, limit) for number in numbers)

    def hold(self, values: NDArray[np.float64], layers: int | None = None) -> NDArray[np.bool_]:
        """`holds` of every entry of an array."""
        limit = self._number(layers)
        if limit is None:
            return np.zeros(values.shape, dtype=bool)
        return np.asarray(_COMPARE[self.bound](values, limit), dtype=bool)

    def _number(self, layers: int | None) -> float | None:
        if not isinstance(self.limit, str):
            return float(self.limit)
        found = _PERCENT.fullmatch(self.limit)
        if found is None:
            return None
        if layers is None:
            raise ValueError(f"{self.words}: a depth needs the number of layers of the model")
        return float(found[1]) / 100 * layers


@dataclass(frozen=True)
class Objective:
    """What decides between those that pass: the lowest or highest mean of a metric, or size of it."""

    direction: str  # lowest, highest
    metric: Metric
    absolute: bool = False

    def rank(self, value: float) -> float:
        """A number that is smaller the better the value."""
        size = abs(value) if self.absolute else value
        return size if self.direction == "lowest" else -size

    @property
    def words(self) -> str:
        """ "lowest refusal of ablate"."""
        return f"{self.direction} {'absolute ' if self.absolute else ''}{self.metric.words}"


def read_criterion(given: Mapping[str, Any]) -> Criterion:
    """A criterion from plain data. Raises ValueError unless it has exactly one bound, and a readout or an
    axis."""
    bounds = [name for name in BOUNDS if given.get(name) is not None]
    if len(bounds) != 1:
        raise ValueError(f"{_told(given)}: expected exactly one of {', '.join(BOUNDS)}, got {len(bounds)}")
    axis, readout = given.get("axis"), given.get("readout")
    if (axis is None) == (readout is None):
        raise ValueError(f"{_told(given)}: expected a readout (of a condition) or an axis")
    metric = None if readout is None else Metric(str(readout), given.get("of"), given.get("minus"))
    return Criterion(bounds[0], given[bounds[0]], metric, axis)


def read_objective(rule: Mapping[str, Any]) -> Objective | None:
    """The objective of a rule, None where it has none. Raises ValueError for a rule with two."""
    given = [name for name in ("lowest", "highest") if rule.get(name) is not None]
    if len(given) > 1:
        raise ValueError("expected lowest or highest, got both")
    if not given:
        return None
    told = rule[given[0]]
    metric = Metric(str(told["readout"]), told.get("of"), told.get("minus"))
    return Objective(given[0], metric, bool(told.get("absolute")))


def as_numbers(value: object) -> tuple[float, ...]:
    """The numbers of an axis value: of 4 or "4" one, of [3, 4] or "3+4" two; none of a word or NaN."""
    if isinstance(value, bool):
        return (float(value),)
    if isinstance(value, str):
        return tuple(float(part) for part in value.split("+") if part) if _NUMBERS.fullmatch(value) else ()
    if isinstance(value, Sequence):
        parts = [as_numbers(part) for part in value]
        return tuple(number for part in parts for number in part) if all(parts) else ()
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return ()
    return () if math.isnan(number) else (number,)


def _told(given: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}: {value}" for key, value in given.items() if value is not None) or "criterion"
