"""What contrasts, covariates and checks ask of the readouts' columns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from analyses.tables.columns import LENGTHS
from runner.config.errors import listed, suggestion
from runner.config.layers import LayerError
from runner.config.readouts.readout import (
    Fault,
    ReadoutError,
    all_columns,
    resolve_entry,
    scalar_columns,
)
from runner.config.spec import CheckSpec, Spec


@dataclass(frozen=True)
class Check:
    """A check, resolved: what `CheckSpec` says, with the column and the entry (None: it holds one number) of
    each side, and both sides as they were written."""

    name: str
    of: str
    readout: str
    column: str
    entry: int | None
    expect: str
    against: str
    than: str
    than_column: str
    than_entry: int | None
    value: float | None
    within: float


def contrast_faults(spec: Spec) -> Iterator[Fault]:
    """What contrasts, covariates and checks ask of columns that no readout gives."""
    columns, contrasts = all_columns(spec), spec.contrasts
    scalar = scalar_columns(spec)
    compared = contrasts.family != "none" or contrasts.extra or contrasts.same or contrasts.trends
    if not compared:
        pass  # without a comparison nothing is primary
    elif contrasts.primary in columns and contrasts.primary not in scalar:
        yield (
            ("contrasts", "primary"),
            f"expected a column with one number a trial ({listed(scalar)}), got the list "
            f"'{contrasts.primary}'",
        )
    elif contrasts.primary not in columns:
        yield (
            ("contrasts", "primary"),
            f"expected a column of the readouts ({listed(scalar)}), got '{contrasts.primary}'"
            f"{suggestion(contrasts.primary, scalar)}",
        )
    for index, name in enumerate(contrasts.covariates):
        offered = [column for column in (*LENGTHS, *scalar) if column != contrasts.primary]
        if name not in offered:
            message = f"expected a column with one number a trial ({listed(offered)}), got '{name}'"
            yield ("contrasts", "covariates", index), message + suggestion(name, offered)
        elif name in contrasts.covariates[:index]:
            yield ("contrasts", "covariates", index), f"'{name}' is listed twice; remove one"
    for name, check in contrasts.checks.items():
        for key, message in _check_faults(check, spec):
            yield ("contrasts", "checks", name, *key), message


def _check_faults(check: CheckSpec, spec: Spec) -> Iterator[Fault]:
    _, conditions, _ = spec.stage
    for key, condition in (("of", check.of), ("against", check.against)):
        if condition is not None and condition not in conditions:
            yield (
                (key,),
                f"expected a condition ({listed(conditions)}), got '{condition}'"
                f"{suggestion(condition, conditions)}",
            )
    if check.value is not None and (check.against is not None or check.than is not None):
        yield ("value",), "expected one thing to hold it against: a value, or a condition or readout"
    if check.value is None and check.against is None and check.than is None:
        yield (), "expected something to hold it against: against (a condition), than (a readout) or value"
    if check.within and check.expect in ("higher", "lower"):
        yield ("within",), f"nothing reads it with expect: {check.expect}"
    for key, word in (("readout", check.readout), ("than", check.than)):
        if word is not None:
            try:
                resolve_entry(word, spec)
            except (ReadoutError, LayerError) as error:
                yield (key,), str(error)


def resolve_checks(spec: Spec) -> tuple[Check, ...]:
    """The checks of an experiment. Raises as `resolve_entry` does."""
    found = []
    for name, check in spec.contrasts.checks.items():
        column, entry = resolve_entry(check.readout, spec)
        than = check.readout if check.than is None else check.than
        than_column, than_entry = resolve_entry(than, spec)
        found.append(
            Check(
                name=name,
                of=check.of,
                readout=check.readout,
                column=column,
                entry=entry,
                expect=check.expect,
                against=check.of if check.against is None else check.against,
                than=than,
                than_column=than_column,
                than_entry=than_entry,
                value=check.value,
                within=check.within,
            )
        )
    return tuple(found)
