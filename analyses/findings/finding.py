"""What a finding is: one figure of an experiment, with all that must stand beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from analyses.findings.cross_model import Published
from analyses.findings.measured import Side


@dataclass(frozen=True)
class Part:
    """A finding for one group of items, one value of an axis, or one cell: `key` in words."""

    key: str
    value: float | None
    low: float | None = None
    high: float | None = None
    n: int = 0
    ones: int | None = None
    note: str = ""


@dataclass(frozen=True)
class Depth:
    """A layer of `layers`; share is layer / L, the depth as this project counts it."""

    layer: int
    layers: int

    @property
    def share(self) -> float:
        return self.layer / self.layers


@dataclass(frozen=True)
class Finding:
    """One figure that the experiment is for.

    kind: mean, difference, choice, artefact. what: of what, in words; readout: that it is of, with `reduce`
    in words. unit: share (every value is 0 or 1), or empty. value is None
    where there is none, and note says why; low, high: its 95% interval. p: of the test of a difference;
    p_holm: corrected over all findings of the run that have one. sides: both means of a difference. by: the
    same for each group or axis value. fixed: best cells taken alone, where the value is the largest of many.
    in_sample: the sentence of a stage that evaluates on what its inputs were chosen on.
    """

    name: str
    label: str
    kind: str
    what: str
    readout: str = ""
    stage: str | None = None
    value: Any = None
    low: float | None = None
    high: float | None = None
    n: int = 0
    items: int = 0
    unit: str = ""
    p: float | None = None
    p_holm: float | None = None
    mcnemar: float | None = None
    family: int = 0
    method: str = ""
    sides: tuple[Side, ...] = ()
    by: tuple[Part, ...] = ()
    by_axis: str = ""
    fixed: tuple[Part, ...] = ()
    depth: Depth | None = None
    published: Published | None = None
    in_sample: str = ""
    note: str = ""
    sentence: str = ""
