"""What a gate is: a condition, what was checked, a verdict and one plain sentence."""

from __future__ import annotations

from dataclasses import dataclass

VERDICTS = ("fail", "warn", "expected", "pass")
EVERY = "all"


@dataclass(frozen=True)
class Gate:
    """`condition` is a condition's name, or "all" for the whole run. Raises ValueError for an unknown
    verdict."""

    condition: str
    gate: str
    verdict: str
    sentence: str

    def __post_init__(self) -> None:
        if self.verdict not in VERDICTS:
            raise ValueError(f"verdict of gate {self.gate}: expected one of {VERDICTS}, got {self.verdict!r}")
