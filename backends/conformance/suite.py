"""All checks, and how they are run on a model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from backends.conformance import (
    cache,
    composition,
    decomposition,
    equivariance,
    features,
    linear,
    liveness,
    noops,
    sampling,
    sources,
    transplant,
    values,
)
from backends.conformance.check import Check, Measurement, Need, judged
from backends.conformance.planted import PLANTED
from backends.conformance.subject import LEAST_CONTEXT, NotApplicable, Subject, Suite
from backends.contract import Backend, ModelInfo, OutOfMemory

CHECKS: tuple[Check, ...] = (
    *noops.CHECKS,
    *liveness.CHECKS,
    *decomposition.CHECKS,
    *transplant.CHECKS,
    *equivariance.CHECKS,
    *linear.CHECKS,
    *cache.CHECKS,
    *composition.CHECKS,
    *values.CHECKS,
    *sources.CHECKS,
    *features.CHECKS,
    *sampling.CHECKS,
)


def run(backend: Backend, suite: Suite = "short") -> list[Measurement]:
    """Every check on a loaded model. suite: `short` looks at a few layers, `full` at all. Raises OutOfMemory
    where even one row does not fit."""
    return list(measure(backend, suite))


def run_planted(backend: Backend, suite: Suite = "short") -> list[Measurement]:
    """The checks whose truth is known, on the model that `planted.plant` made."""
    return list(measure(backend, suite, PLANTED))


def measure(
    backend: Backend, suite: Suite = "short", checks: Sequence[Check] = CHECKS
) -> Iterator[Measurement]:
    """These checks, one after the other, each as soon as it is measured."""
    subject = Subject(backend, suite)
    for check in checks:
        yield one(subject, check)


def one(subject: Subject, check: Check) -> Measurement:
    """One check. Whatever it raises but lack of memory is a violation that says what was raised: on a model
    of a user's own, one broken identity must not hide the others."""
    mixed = subject.mixture and check.mixture is not None
    tolerance = check.mixture if mixed and check.mixture is not None else check.tolerance
    lacks = [reason for need in check.needs if (reason := _lacks(subject.info, need)) is not None]
    if subject.info.context < LEAST_CONTEXT:
        lacks.append(f"a context of {subject.info.context} tokens; checks take {LEAST_CONTEXT}")
    if lacks:
        return Measurement(check, None, tolerance, "not applicable", "; ".join(lacks))
    try:
        return judged(check, tolerance, check.run(subject))
    except NotApplicable as reason:
        return Measurement(check, None, tolerance, "not applicable", str(reason))
    except OutOfMemory:
        raise
    except Exception as error:
        said = " ".join(str(error).split())
        return Measurement(check, None, tolerance, "violated", f"{type(error).__name__}: {said}")


def _lacks(info: ModelInfo, need: Need) -> str | None:
    """Why a model does not have what a check needs; None where it does."""
    if need == "float32":
        return None if info.dtype == "float32" else f"its tolerance is for float32, and this is {info.dtype}"
    return None if info.rotary else "its positions are learned, not rotary"
