"""What does not fit between the declared analyses of an experiment and its stages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from analyses.findings.cross_model import published
from analyses.studies.naming import DERIVED as OF_PROMPTS
from analyses.studies.naming import matched, named
from analyses.studies.study import NoStudy
from analyses.tables.axes import axis_named, grid_name
from analyses.tables.columns import LENGTHS
from runner.config.readouts.readout import DERIVED, OF_OUTPUT, columns_of, scalar_columns
from runner.config.spec import ReadoutSpec, Spec, plain
from runner.config.stages.analysis_spec import (
    AnalysisSpec,
    DecompositionSpec,
    InteractionSpec,
    LocalisationSpec,
    PredictorsSpec,
    ShareSpec,
    SpecificitySpec,
    VarianceSpec,
)
from runner.config.stages.finding_checks import (
    Fault,
    Key,
    condition_faults,
    expected,
    readout_faults,
    spec_of,
)
from runner.config.stages.stand_ins import Given, grid_names

N_NEW = "n_new"


def analysis_faults(analyses: Mapping[str, AnalysisSpec], stages: Sequence[Given]) -> Iterator[Fault]:
    """Analyses of stages, conditions, grids, columns or axes that are not there, or that say nothing."""
    for name, analysis in analyses.items():
        for key, message in _analysis(analysis, stages):
            yield ("analyses", name, *key), message


def _analysis(analysis: AnalysisSpec, stages: Sequence[Given]) -> Iterator[Fault]:
    spec = yield from spec_of(analysis.stage, stages)
    if spec is None:
        return
    if not isinstance(analysis, DecompositionSpec):
        primary = spec.contrasts.primary
        if analysis.readout is not None:
            yield from readout_faults(("readout",), analysis.readout, spec, scalar=True)
        elif spec.contrasts.family == "none" and primary not in scalar_columns(spec):
            # Where contrasts are declared, a primary readout that is not there is their mistake.
            known = scalar_columns(spec)
            message = f"missing: the stage has no primary readout; {expected('a column', known, None)}"
            yield ("readout",), message
    if isinstance(analysis, InteractionSpec):
        yield from _interaction(analysis, spec)
    elif isinstance(analysis, ShareSpec):
        yield from _share(analysis, spec)
    elif isinstance(analysis, SpecificitySpec):
        yield from _specificity(analysis, spec)
    elif isinstance(analysis, DecompositionSpec):
        yield from _decomposition(analysis, spec)
    elif isinstance(analysis, PredictorsSpec):
        yield from _predictors(analysis, spec)
    elif isinstance(analysis, VarianceSpec):
        yield from _variance(analysis, spec)
    else:
        yield from _localisation(analysis, spec)


def _interaction(analysis: InteractionSpec, spec: Spec) -> Iterator[Fault]:
    cells = {place: getattr(analysis.cells, place) for place in type(analysis.cells).model_fields}
    told = [fault for place, word in cells.items() for fault in _several(("cells", place), word, spec)]
    yield from told
    if told:
        return
    try:
        rows = matched(cells, _plain(spec))
    except NoStudy as error:
        yield ("cells",), str(error)
        return
    for names in rows.values():
        if len(set(names.values())) < len(names):
            places = [f"{place}: {name}" for place, name in names.items()]
            yield ("cells",), f"expected four different conditions, got {', '.join(places)}"
            return


def _share(analysis: ShareSpec, spec: Spec) -> Iterator[Fault]:
    against = analysis.against or spec.contrasts.baseline
    yield from _several(("of",), analysis.of, spec)
    yield from _one(("in",), analysis.in_, spec)
    yield from _one(("against",), against, spec)
    if analysis.in_ == against:
        yield ("in",), f"expected another condition than {against}: its effect on itself is 0"
    for index, name in enumerate(_names(analysis.of)):
        if name in (analysis.in_, against):
            what = "1" if name == analysis.in_ else "0"
            yield _at(("of",), analysis.of, index), f"the share of {name} is {what} in any case"


def _specificity(analysis: SpecificitySpec, spec: Spec) -> Iterator[Fault]:
    yield from _one(("treatment",), analysis.treatment, spec)
    yield from _several(("controls",), analysis.controls, spec)
    yield from _one(("against",), analysis.against or spec.contrasts.baseline, spec)
    if not _names(analysis.controls):
        yield ("controls",), f"expected at least one condition ({', '.join(grid_names(spec))}), got none"
    for index, name in enumerate(_names(analysis.controls)):
        if name == analysis.treatment:
            yield _at(("controls",), analysis.controls, index), f"{name} is the treatment itself"
    yield from _columns(("beside",), analysis.beside, spec)


def _decomposition(analysis: DecompositionSpec, spec: Spec) -> Iterator[Fault]:
    yield from readout_faults(("of",), analysis.of, spec, scalar=True)
    yield from _columns(("into",), analysis.into, spec)
    yield from _columns(("beside",), analysis.beside, spec)
    for index, name in enumerate(analysis.into):
        if name == analysis.of:
            yield ("into", index), f"{name} is the whole itself"
    for index, pair in enumerate(analysis.contrasts):
        for place, name in enumerate(pair):
            yield from _one(("contrasts", index, place), name, spec)
    contrasts = spec.contrasts
    if not analysis.contrasts and contrasts.family == "none" and not contrasts.extra:
        yield ("contrasts",), "missing: the stage declares no contrast, so that there is none to take apart"


def _predictors(analysis: PredictorsSpec, spec: Spec) -> Iterator[Fault]:
    yield from _one(("condition",), analysis.condition, spec)
    if analysis.high <= analysis.low:
        yield ("high",), f"expected more than low ({analysis.low:g}), got {analysis.high:g}"
    columns = [*LENGTHS, *scalar_columns(spec)]
    readout = analysis.readout or spec.contrasts.primary
    same = _same_measured(readout, spec)
    for index, word in enumerate(analysis.features):
        found = named(word, spec.conditions)
        condition, column = found if found is not None else (analysis.condition, word)
        known = columns if found is not None else [*columns, *OF_PROMPTS]
        if column not in known:
            offered = [*known, "CONDITION.COLUMN"] if found is None else known
            yield ("features", index), expected("a feature", offered, column)
        elif condition == analysis.condition and column in same:
            message = f"{column} of {condition} is what is to be told, or measured on the same"
            yield ("features", index), f"{message}; expected what is known apart from it"


def _variance(analysis: VarianceSpec, spec: Spec) -> Iterator[Fault]:
    if analysis.conditions is not None:
        yield from _several(("conditions",), analysis.conditions, spec)
    if analysis.against is not None:
        yield from _one(("against",), analysis.against, spec)


def _localisation(analysis: LocalisationSpec, spec: Spec) -> Iterator[Fault]:
    grids = [name for name in grid_names(spec) if name not in spec.conditions]
    if analysis.of not in grids:
        yield ("of",), expected("a grid of the stage", grids, analysis.of)
    else:
        axes = list(
            next(body.grid for name, body in spec.conditions.items() if grid_name(name) == analysis.of)
        )
        if axis_named(analysis.axis, axes) is None:
            yield ("axis",), expected(f"an axis of {analysis.of}", axes, analysis.axis)
    if analysis.against is not None:
        told = list(condition_faults(("against",), analysis.against, spec))
        yield from told or _unmatched(analysis, spec)
    if analysis.published is not None:
        try:
            published(analysis.published, None)
        except KeyError as error:
            yield ("published",), str(error.args[0])


def _unmatched(analysis: LocalisationSpec, spec: Spec) -> Iterator[Fault]:
    if analysis.of not in grid_names(spec):
        return
    try:
        matched({"of": analysis.of, "against": analysis.against or ""}, _plain(spec))
    except NoStudy as error:
        yield ("against",), str(error)


def _plain(spec: Spec) -> dict[str, dict[str, Any]]:
    return {name: plain(body) for name, body in spec.conditions.items()}


def _names(word: str | Sequence[str]) -> tuple[str, ...]:
    return (word,) if isinstance(word, str) else tuple(word)


def _at(key: Key, word: str | Sequence[str], index: int) -> Key:
    return key if isinstance(word, str) else (*key, index)


def _several(key: Key, word: str | Sequence[str], spec: Spec) -> Iterator[Fault]:
    for index, name in enumerate(_names(word)):
        yield from condition_faults(_at(key, word, index), name, spec)


def _one(key: Key, name: str, spec: Spec) -> Iterator[Fault]:
    """A condition, not a grid of several."""
    cells = [each for each in spec.conditions if grid_name(each) == name]
    if name not in spec.conditions and len(cells) > 1:
        yield key, f"'{name}' is a grid of {len(cells)} cells; expected one condition, such as '{cells[0]}'"
    else:
        yield from condition_faults(key, name, spec)


def _columns(key: Key, names: Sequence[str], spec: Spec) -> Iterator[Fault]:
    for index, name in enumerate(names):
        yield from readout_faults((*key, index), name, spec, scalar=True)


def _same_measured(column: str, spec: Spec) -> set[str]:
    """The columns that are measured on the same as a column: of readouts of its kind, or of any kind that is
    measured on the generated text, its length included; and what is derived from one of these."""
    _, _, names = spec.stage
    bodies = {name: spec.readout[name] for name in names if name in spec.readout}
    columns = {name: set(columns_of(name, body)) for name, body in bodies.items()}
    derived = {name: _read(body) for name, body in bodies.items() if body.kind in DERIVED}
    found = {column}
    for _ in derived:  # one may be derived from another
        found = found.union(*(read for name, read in derived.items() if columns[name] & found))
    kinds = {str(body.kind) for name, body in bodies.items() if columns[name] & found} - set(DERIVED)
    if kinds & set(OF_OUTPUT):
        kinds |= set(OF_OUTPUT)
        found.add(N_NEW)
    found = found.union(*(columns[name] for name, body in bodies.items() if body.kind in kinds))
    for _ in derived:
        found = found.union(*(columns[name] for name, read in derived.items() if read & found))
    return found


def _read(body: ReadoutSpec) -> set[str]:
    """The columns that a derived readout is computed from."""
    return {word.partition("[")[0] for word in (body.of, body.minus) if word is not None}
