"""What does not fit between the findings and figures of an experiment and its stages."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence

from analyses.choices.criteria import BOUNDS
from analyses.findings.cross_model import published
from runner.config.errors import listed, suggestion
from runner.config.readouts.readout import all_columns, scalar_columns
from runner.config.spec import Spec
from runner.config.stages.spec import (
    CriterionSpec,
    ExtractStageSpec,
    FigureSpec,
    FindingSpec,
    SelectStageSpec,
)
from runner.config.stages.stand_ins import ARTEFACT_COLUMNS, Given, grid_names

Key = tuple[str | int, ...]
Fault = tuple[Key, str]
# What each kind of finding is about, and the keys that it has beside `label`, `published` and its own.
_KINDS = {
    "readout": ("a measurement", ("stage", "of", "against", "reduce", "by", "items")),
    "axis": ("a choice", ("choice",)),
    "column": ("an artefact", ("artefact", "choice")),
}


def finding_faults(
    findings: Mapping[str, FindingSpec], figures: Mapping[str, FigureSpec], stages: Sequence[Given]
) -> Iterator[Fault]:
    """Findings and figures about stages, conditions, readouts, axes or choices that are not there."""
    for name, finding in findings.items():
        for key, message in (*_finding(finding, stages), *_published(finding)):
            yield ("findings", name, *key), message
    for name, figure in figures.items():
        for key, message in _figure(figure, stages):
            yield ("figures", name, *key), message


def _finding(finding: FindingSpec, stages: Sequence[Given]) -> Iterator[Fault]:
    kinds = [key for key in ("readout", "axis", "column") if getattr(finding, key) is not None]
    if len(kinds) != 1:
        got = f"got {listed(kinds)}" if kinds else "got none of them"
        yield (
            (),
            "expected one of readout (of a measurement), axis (of a choice) and column (of an artefact), "
            f"{got}",
        )
        return
    about, keys = _KINDS[kinds[0]]
    for key in sorted(finding.model_fields_set - {"label", "published", *_KINDS, *keys}):
        yield (key,), f"nothing reads it in a finding about {about}"
    if finding.readout is not None:
        spec = yield from spec_of(finding.stage, stages)
        if spec is None:
            return
        if finding.of is None:
            yield ("of",), f"missing: expected a condition or grid of the stage ({listed(grid_names(spec))})"
        for key in ("of", "against"):
            yield from condition_faults((key,), getattr(finding, key), spec)
        if finding.of is not None and finding.of == finding.against:
            yield ("against",), f"expected another condition than `of`: {finding.of} less itself is zero"
        if finding.reduce == "any" and finding.of in spec.conditions and "[" not in finding.of:
            message = f"any takes the largest value over the cells of a grid, and '{finding.of}' is none"
            yield ("reduce",), message
        yield from readout_faults(("readout",), finding.readout, spec, scalar=True)
        if finding.by not in (None, "group"):
            yield from _axis(("by",), str(finding.by), spec, also=("group",))
        for index, criterion in enumerate(finding.items):
            yield from _criterion(("items", index), criterion, spec)
        return
    if finding.axis is not None:
        chosen = yield from _choice(finding.choice, stages)
        if chosen is not None:
            fitting = [axis for axis in chosen.over if finding.axis in (axis, axis.rpartition(".")[2])]
            if len(fitting) != 1:
                yield (
                    ("axis",),
                    f"expected an axis of the choice '{finding.choice}' ({listed(chosen.over)}), got "
                    f"'{finding.axis}'",
                )
        return
    names = [stage.name for stage in stages if isinstance(stage.body, ExtractStageSpec)]
    if finding.artefact not in names:
        yield ("artefact",), expected("an artefact of a stage", names, finding.artefact)
    if finding.column not in ARTEFACT_COLUMNS:
        yield ("column",), expected("a column of an artefact", ARTEFACT_COLUMNS, finding.column)
    if finding.choice is not None:
        yield from _choice(finding.choice, stages)


def _published(finding: FindingSpec) -> Iterator[Fault]:
    if finding.published is None:
        return
    try:
        published(finding.published, None)
    except KeyError as error:
        yield ("published",), str(error.args[0])


def _figure(figure: FigureSpec, stages: Sequence[Given]) -> Iterator[Fault]:
    spec = yield from spec_of(figure.stage, stages)
    if spec is None:
        return
    if not figure.of:
        yield ("of",), f"expected at least one condition or grid ({listed(grid_names(spec))}), got none"
    for index, name in enumerate(figure.of):
        yield from condition_faults(("of", index), name, spec)
    yield from condition_faults(("against",), figure.against, spec)
    yield from readout_faults(("readout",), figure.readout, spec, scalar=figure.kind != "layers")
    needed = {"heatmap": ("x", "y"), "curve": ("x",)}.get(figure.kind, ())
    for key in ("x", "y"):
        axis = getattr(figure, key)
        if axis is None and key in needed:
            yield (key,), f"missing: a {figure.kind} needs the axis {key}"
        elif axis is not None and key not in needed:
            yield (key,), f"nothing reads it in a figure of the kind {figure.kind}"
        elif axis is not None:
            yield from _axis((key,), axis, spec)
    if figure.by not in (None, "group"):
        yield from _axis(("by",), str(figure.by), spec, also=("group",))


def spec_of(name: str | None, stages: Sequence[Given]) -> Generator[Fault, None, Spec | None]:
    """The specification of a stage that measures; a flat experiment's one goes without saying."""
    measured = {stage.name: stage.spec for stage in stages if stage.kind == "measure"}
    if name is None and len(measured) == 1:
        return next(iter(measured.values()))
    if name not in measured:
        yield ("stage",), expected("a stage that measures", list(measured), name)
        return None
    return measured[name]


def _choice(name: str | None, stages: Sequence[Given]) -> Generator[Fault, None, SelectStageSpec | None]:
    choices = {stage.name: stage.body for stage in stages if isinstance(stage.body, SelectStageSpec)}
    if name not in choices:
        yield ("choice",), expected("a choice of a select stage", list(choices), name)
        return None
    return choices[name]


def condition_faults(key: Key, name: str | None, spec: Spec) -> Iterator[Fault]:
    """A name that is neither a condition nor a grid; None is not looked at."""
    names = (*grid_names(spec), *spec.conditions)
    if name is not None and name not in names:
        yield key, expected("a condition or grid of the stage", grid_names(spec), name)


def readout_faults(key: Key, name: str, spec: Spec, *, scalar: bool) -> Iterator[Fault]:
    """A name that is no column of the readouts. scalar: with one number a trial."""
    columns = scalar_columns(spec) if scalar else list(all_columns(spec))
    if name not in columns:
        what = "a column with one number a trial" if scalar else "a column of the readouts"
        yield key, expected(what, columns, name)


def _axis(key: Key, name: str, spec: Spec, also: tuple[str, ...] = ()) -> Iterator[Fault]:
    axes = list(dict.fromkeys(axis for one in spec.conditions.values() for axis in one.grid))
    if name not in axes:
        yield key, expected("an axis of the stage", (*also, *axes), name)


def _criterion(key: Key, one: CriterionSpec, spec: Spec) -> Iterator[Fault]:
    given = [bound for bound in BOUNDS if getattr(one, bound) is not None]
    if len(given) != 1:
        yield key, f"expected one bound ({listed(BOUNDS)}), got {listed(given) if given else 'none'}"
    if one.readout is None or one.axis is not None:
        yield key, "expected a readout of a condition: axes are of cells, and these are items"
        return
    for field in ("of", "minus"):
        yield from condition_faults((*key, field), getattr(one, field), spec)
    yield from readout_faults((*key, "readout"), one.readout, spec, scalar=True)


def expected(what: str, known: Sequence[str], got: object) -> str:
    """What is said of a word that is none of the known ones, or of none."""
    if got is None:
        return f"missing: expected {what} ({listed(known)})"
    return f"expected {what} ({listed(known)}), got '{got}'{suggestion(str(got), known)}"
