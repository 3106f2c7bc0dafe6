"""What a check is: one identity, the tolerance that it holds within, and what measuring it gave."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from backends.conformance.subject import Subject

Verdict = Literal["ok", "violated", "not applicable"]
Need = Literal["float32", "rotary"]


@dataclass(frozen=True)
class Tolerance:
    """How far two sides of an identity may lie apart. bound: largest allowed error; of: what it is a share
    of."""

    name: str
    bound: float
    of: str


T0 = Tolerance("T0", 0.0, "bit for bit")
T1 = Tolerance("T1", 1e-5, "of the largest magnitude")
T2 = Tolerance("T2", 1e-4, "of the largest magnitude")
CHANCE = Tolerance("chance", 4.5, "standard deviations")  # passed by chance but once in 150,000 draws
COSINE = Tolerance("cosine", 1e-6, "below a cosine of 1")


@dataclass(frozen=True)
class Finding:
    """What a check measured. error: to be at most its tolerance; broken: statements that must hold and do
    not; details: further figures, by name; note: a sentence for the reader."""

    error: float
    broken: tuple[str, ...] = ()
    details: Mapping[str, float] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Check:
    """One identity. says: the identity in a sentence; needs: what a model must have for it to mean anything;
    mixture: the tolerance for mixtures of experts, where a changed token regroups the others' products."""

    name: str
    section: str
    tolerance: Tolerance
    run: Callable[[Subject], Finding]
    says: str
    needs: tuple[Need, ...] = ()
    mixture: Tolerance | None = None


@dataclass(frozen=True)
class Measurement:
    """A check on one model. error: None where it was not measured. sentence: what broke, or why it says
    nothing here."""

    check: Check
    error: float | None
    tolerance: Tolerance
    verdict: Verdict
    sentence: str = ""
    details: Mapping[str, float] = field(default_factory=dict)


def judged(check: Check, tolerance: Tolerance, found: Finding) -> Measurement:
    """The verdict on a finding. An error that is not a number is a violation."""
    broken = list(found.broken)
    if not found.error <= tolerance.bound:
        broken.insert(0, f"error {found.error:.3g}, allowed {tolerance.bound:g} ({tolerance.of})")
    sentence = "; ".join(broken) if broken else found.note
    verdict: Verdict = "violated" if broken else "ok"
    return Measurement(check, found.error, tolerance, verdict, sentence, found.details)
