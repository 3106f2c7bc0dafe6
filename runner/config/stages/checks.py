"""What does not fit between the stages of an experiment: what a choice is made from, and on which prompts."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

from analyses.choices.criteria import BOUNDS
from runner.config.errors import listed, suggestion
from runner.config.layer_scales import scale_faults
from runner.config.readouts.readout import all_columns, scalar_columns
from runner.config.spec import Spec
from runner.config.stages.choice_words import choice_named
from runner.config.stages.forms import NOT_EXTRACTED
from runner.config.stages.in_sample import in_sample
from runner.config.stages.spec import (
    CriterionSpec,
    ExtractStageSpec,
    MeasureStageSpec,
    ObjectiveSpec,
    SelectStageSpec,
)
from runner.config.stages.stand_ins import (
    ARTEFACT_AXES,
    ARTEFACT_COLUMNS,
    Given,
    grid_cells,
    grid_names,
    source_of,
)
from runner.prompts.pools import BankReader

Key = tuple[str | int, ...]
Fault = tuple[Key, str]
_OF_CELLS = ("over", "where", "lowest", "highest", "draw", "but")
_OF_PROMPTS = ("prompts", "split", "items", "n", "minus", "by")


def stage_faults(
    stage: Given,
    before: Sequence[Given],
    names: Collection[str],
    reader: BankReader,
    unsound: Collection[str] = (),
) -> tuple[list[Fault], str | None]:
    """What is wrong with a stage beside those before it, and, where it says `in_sample: true`, the sentence
    on what it evaluates in sample. names: of all stages; reader: of their banks; unsound: those
    before it of which something is wrong; about what they would give nothing is said."""
    body = stage.body
    if isinstance(body, SelectStageSpec):
        return list(_select(body, before, names, unsound)), None
    faults = [] if choice_named(body.items) in unsound else list(_items(body, before, names))
    if isinstance(body, ExtractStageSpec):
        return faults + list(_extract(body, before, names, unsound)), None
    assert isinstance(body, MeasureStageSpec)
    shared = in_sample(stage, [one for one in before if one.name not in unsound], reader)
    if shared is not None and not body.in_sample:
        faults.append(
            (
                (),
                f"{shared}: what was fitted to prompts is not tested by them. Give the stage another "
                "`split`, or "
                "say in_sample: true, which the report repeats",
            )
        )
    if shared is None and body.in_sample and stage.spec is not None and not unsound:
        faults.append(
            (("in_sample",), "nothing was chosen or extracted on the prompts of this stage; remove it")
        )
    return faults, shared


def _earlier(name: str, before: Sequence[Given], names: Collection[str]) -> str:
    """Why a name is none of an earlier stage."""
    known = [stage.name for stage in before]
    later = "; it stands later in the file" if name in names and name not in known else ""
    return f"expected an earlier stage ({listed(known)}), got '{name}'{later or suggestion(name, known)}"


def _items(body: Any, before: Sequence[Given], names: Collection[str]) -> Iterator[Fault]:
    if body.items is None:
        return
    name = choice_named(body.items)
    if name is None or "/" in body.items:
        yield ("items",), f"expected choice:NAME, a choice of items, got '{body.items}'"
        return
    found = next((stage for stage in before if stage.name == name), None)
    if found is None:
        yield ("items",), _earlier(name, before, names)
    elif not isinstance(found.body, SelectStageSpec) or not found.body.items:
        yield ("items",), f"'{name}' is no choice of items; a select stage with `items` makes one"


def _extract(
    body: ExtractStageSpec, before: Sequence[Given], names: Collection[str], unsound: Collection[str]
) -> Iterator[Fault]:
    if body.site in NOT_EXTRACTED:
        yield (
            ("site",),
            f"expected a site with a row of activations for each position, got {body.site}",
        )
    given = body.model_fields_set
    if body.minus is not None and body.minus == body.of:
        yield ("minus",), f"expected another prompt than `of`: {body.of} less {body.minus} is zero"
    if body.from_ is None:
        for key in ("heads", "through"):
            if key in given:
                yield (key,), "nothing reads it without `from`, the artefact whose heads are summed"
        return
    name = source_of(body)
    source = next((stage for stage in before if stage.name == name), None)
    if source is None and name not in unsound:
        yield ("from",), _earlier(name, before, names)
    elif source is not None and not isinstance(source.body, ExtractStageSpec):
        yield ("from",), f"expected a stage that extracts; '{name}' is one of kind {source.kind}"
    for key in ("heads", "through"):
        if getattr(body, key) is None:
            yield (key,), f"missing: an artefact `from` another needs {key}"
    if body.heads is not None and choice_named(body.heads) is None:
        yield ("heads",), f"expected choice:NAME, a choice of heads, got '{body.heads}'"
    for key in (*_OF_PROMPTS, "of", "site", "layers", "positions", "each_position"):
        if key in given:
            yield (key,), "nothing reads it with `from`: that artefact has it already"


def _select(
    body: SelectStageSpec, before: Sequence[Given], names: Collection[str], unsound: Collection[str]
) -> Iterator[Fault]:
    source = next((stage for stage in before if stage.name == body.from_), None)
    sound = body.from_ not in unsound
    if sound and (source is None or isinstance(source.body, SelectStageSpec)):
        what = _earlier(body.from_, before, names) if source is None else "expected a stage with a table"
        yield ("from",), what
        return
    deciding = [key for key in ("lowest", "highest", "draw", "items") if getattr(body, key)]
    if len(deciding) != 1:
        got = f"got {listed(deciding)}" if deciding else "got none of them"
        yield (), f"expected one of lowest, highest, draw (cells) and items, {got}"
        return
    if body.items:
        for key in _OF_CELLS:
            if getattr(body, key):
                yield (key,), "nothing reads it where items are chosen"
    elif not body.over:
        yield ("over",), "missing: expected the axes of the cells to choose from"
    for axis in dict.fromkeys(axis for axis in body.over if body.over.count(axis) > 1):
        yield ("over",), f"names the axis '{axis}' {body.over.count(axis)} times"
    if body.draw is None:
        for key in ("but", "seed"):
            if key in body.model_fields_set:
                yield (key,), "nothing reads it without draw, which takes cells at random"
    if body.but is not None and body.but not in unsound:
        yield from _but(body, before, names)
    if body.draw is not None and "top" in body.model_fields_set:
        yield ("top",), "nothing reads it beside draw, which says how many are taken"
    spec = source.spec if source is not None and sound else None
    if source is not None and isinstance(source.body, ExtractStageSpec):
        yield from _of_artefact(body, source.body)
    elif spec is not None:
        yield from _of_measured(body, spec)
    else:
        for place, one in _parts(body):
            yield from _bounds(place, one, body)
    if source is not None and spec is not None:
        yield from scale_faults(body, source.body, spec)


def _but(body: SelectStageSpec, before: Sequence[Given], names: Collection[str]) -> Iterator[Fault]:
    """What a random choice leaves out has to be a choice of the same cells."""
    other = next((stage for stage in before if stage.name == body.but), None)
    if other is None:
        yield ("but",), _earlier(str(body.but), before, names)
    elif not isinstance(other.body, SelectStageSpec) or other.body.items:
        yield ("but",), f"'{body.but}' is no choice of cells; a select stage with `over` makes one"
    elif set(other.body.over) != set(body.over):
        axes = f"({listed(body.over)}), and '{body.but}' is over {listed(other.body.over)}"
        yield ("but",), f"expected a choice over the same axes {axes}"


def _of_artefact(body: SelectStageSpec, source: ExtractStageSpec) -> Iterator[Fault]:
    if body.items:
        yield ("items",), "expected a stage that measures: an artefact's table has no items"
    for index, axis in enumerate(body.over):
        if axis not in ARTEFACT_AXES:
            message = f"expected an axis of an artefact ({listed(ARTEFACT_AXES)}), got '{axis}'"
            yield ("over", index), message + suggestion(axis, ARTEFACT_AXES)
    for key, one in _parts(body):
        if one.of is not None or one.minus is not None:
            yield (*key, "of"), "an artefact's table has columns and no conditions"
        if one.readout is not None and one.readout not in ARTEFACT_COLUMNS:
            message = f"expected a column of an artefact ({listed(ARTEFACT_COLUMNS)}), got '{one.readout}'"
            yield (*key, "readout"), message + suggestion(one.readout, ARTEFACT_COLUMNS)
        elif one.readout == "separation" and source.minus is None:
            message = f"'{body.from_}' has no minus, from which it could be separated"
            yield (*key, "readout"), message
        yield from _bounds(key, one, body)


def _of_measured(body: SelectStageSpec, spec: Spec) -> Iterator[Fault]:
    names = grid_names(spec)
    axes = list(dict.fromkeys(axis for one in spec.conditions.values() for axis in one.grid))
    for index, axis in enumerate(body.over):
        if axis not in axes:
            message = f"expected an axis of a grid in '{body.from_}' ({listed(axes)}), got '{axis}'"
            yield ("over", index), message + suggestion(axis, axes)
    cells = [cell for name in names for cell in grid_cells(spec, name) if {*body.over} <= {*cell}]
    count = len({tuple(cell[axis] for axis in body.over) for cell in cells})
    for key in ("top", "draw"):
        wanted = getattr(body, key)
        if body.over and cells and wanted is not None and wanted > count:
            message = f"expected at most {count} cells, which is how many '{body.from_}' has, got {wanted}"
            yield (key,), message
    scalar = scalar_columns(spec)
    for place, one in _parts(body):
        for field, name in (("of", one.of), ("minus", one.minus)):
            if name is None:
                continue
            if name not in names:
                message = f"expected a condition or grid of '{body.from_}' ({listed(names)}), got '{name}'"
                yield (*place, field), message + suggestion(name, names)
            elif (
                not body.items
                and field == "of"
                and {*body.over} <= {*axes}
                and not _divided(spec, name, body.over)
            ):
                message = f"expected a grid with the axes {listed(body.over)}, '{name}' has them not"
                yield (*place, field), message
        if one.readout is not None and one.readout not in scalar:
            lists = one.readout in all_columns(spec)
            message = f"expected a column with one number a trial ({listed(scalar)}), got '{one.readout}'"
            yield (*place, "readout"), message + (" (a list)" if lists else suggestion(one.readout, scalar))
        yield from _bounds(place, one, body)


def _divided(spec: Spec, name: str, axes: Iterable[str]) -> bool:
    cells = grid_cells(spec, name)
    return all(set(axes) <= set(cell) for cell in cells) or not set(axes)


def _parts(body: SelectStageSpec) -> Iterator[tuple[Key, CriterionSpec | ObjectiveSpec]]:
    for field in ("where", "items"):
        for index, one in enumerate(getattr(body, field)):
            yield (field, index), one
    for field in ("lowest", "highest"):
        if getattr(body, field) is not None:
            yield (field,), getattr(body, field)


def _bounds(key: Key, one: CriterionSpec | ObjectiveSpec, body: SelectStageSpec) -> Iterator[Fault]:
    if isinstance(one, ObjectiveSpec):
        return
    given = [bound for bound in BOUNDS if getattr(one, bound) is not None]
    if len(given) != 1:
        yield key, f"expected one bound ({listed(BOUNDS)}), got {listed(given) if given else 'none'}"
    if (one.readout is None) == (one.axis is None):
        yield key, "expected a readout (of a condition) or an axis"
    if one.axis is not None and one.axis not in body.over:
        yield (*key, "axis"), f"expected an axis that is chosen over ({listed(body.over)}), got '{one.axis}'"
    for bound in given:
        value = getattr(one, bound)
        if isinstance(value, str) and not (one.axis is not None and _is_depth(value)):
            yield (
                (*key, bound),
                f"expected a number{', or a depth such as 80%' if one.axis else ''}, got '{value}'",
            )


def _is_depth(word: str) -> bool:
    number = word.removesuffix("%")
    return number != word and number.replace(".", "", 1).isdigit() and float(number) <= 100
