"""What a stage reads of earlier ones, and what stands in at the door for what it will give itself."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from backends.positions import PositionError, Positions
from backends.writes import LAYERLESS
from runner.config.layers import LayerError, resolve_layers
from runner.config.spec import Spec
from runner.config.stages.choice_words import choice_named
from runner.config.stages.known import Artefact, Chosen, Known, Plain
from runner.config.stages.spec import AnyStage, ExtractStageSpec, SelectStageSpec
from runner.config.writes.widths import width_of

Key = tuple[str | int, ...]

_ARTEFACT = re.compile(r"(?:(?:random|orthogonal):)?artefact:([A-Za-z_][A-Za-z0-9_]*)")
_FILE = re.compile(r"(?:(?:random|orthogonal):)?artefact:(.+\.safetensors)")
ARTEFACT_COLUMNS = ("norm", "resid_norm", "separation", "consistency")
ARTEFACT_AXES = ("layer", "position", "group")


class Given(Protocol):
    """A stage as far as it is checked."""

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def body(self) -> Any: ...
    @property
    def spec(self) -> Spec | None: ...


def artefact_named(word: object) -> str | None:
    """The artefact of this experiment that a value names; None for anything else (also a path)."""
    found = _ARTEFACT.fullmatch(word) if isinstance(word, str) else None
    return None if found is None else found[1]


def artefact_files(body: AnyStage) -> tuple[Path, ...]:
    """Files of artefacts of other runs that a stage reads, each once."""
    found = (_FILE.fullmatch(word) for word in _texts(body.model_dump(mode="python", by_alias=True)))
    return tuple(dict.fromkeys(Path(one[1]) for one in found if one is not None))


def source_of(body: ExtractStageSpec) -> str:
    """The artefact that an extract stage is made `from`, which may be written as `artefact:NAME` too."""
    return (body.from_ or "").removeprefix("artefact:")


def names_read(body: AnyStage) -> tuple[str, ...]:
    """Names of the earlier stages whose choices, artefacts or tables a stage reads, each once."""
    plain = body.model_dump(mode="python", by_alias=True)
    found = [name for word in _texts(plain) for name in (choice_named(word), artefact_named(word)) if name]
    if isinstance(body, SelectStageSpec):
        found += [body.from_, *([] if body.but is None else [body.but])]
    elif isinstance(body, ExtractStageSpec) and body.from_ is not None:
        found.append(source_of(body))
    return tuple(dict.fromkeys(found))


def keys_naming(body: object, names: Collection[str]) -> list[Key]:
    """The keys below a mapping whose word is of a choice or an artefact of one of these names."""
    return [key for key, word in _words(body) if {choice_named(word), artefact_named(word)} & {*names}]


def _texts(value: object) -> Iterator[str]:
    yield from (word for _, word in _words(value))


def _words(value: object, key: Key = ()) -> Iterator[tuple[Key, str]]:
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, Mapping):
        for name, each in value.items():
            yield from _words(each, (*key, name))
    elif isinstance(value, list | tuple):
        for index, each in enumerate(value):
            yield from _words(each, (*key, index))


def grid_cells(spec: Spec, name: str) -> list[Mapping[str, Plain]]:
    """The cells of a grid by its name, as axes with their values; of a condition without a grid one, with no
    axes; none where there is no such condition."""
    return [body.grid for condition, body in spec.conditions.items() if condition.partition("[")[0] == name]


def grid_names(spec: Spec) -> tuple[str, ...]:
    """Names of grids and of conditions without one, each once."""
    return tuple(dict.fromkeys(name.partition("[")[0] for name in spec.conditions))


def chosen_stand_in(name: str, body: SelectStageSpec, before: Sequence[Given]) -> Chosen:
    """A choice that is still to be made: the first cell that there is to choose from."""
    if body.items:
        return Chosen(name, items=frozenset(), pending=True)
    first = _first_cell(body, before)
    cell = {axis: first.get(axis, 0) for axis in body.over}
    return Chosen(name, (cell,), pending=True, most=body.top if body.draw is None else body.draw)


def _first_cell(body: SelectStageSpec, before: Sequence[Given]) -> Mapping[str, Plain]:
    """The first cell of the table that a choice is made from; {} where there is none."""
    source = next((stage for stage in before if stage.name == body.from_), None)
    if source is None or source.spec is None:
        return {}
    if isinstance(source.body, ExtractStageSpec):
        layers = extracted_layers(source.body, source.spec)
        positions = relative_positions(source.body.positions)
        return {"layer": layers[0], "position": f"index:{positions[0] if positions else -1}", "group": ""}
    cells = [one.grid for one in source.spec.conditions.values()]
    return next((cell for cell in cells if set(body.over) <= set(cell)), {})


def extracted_stand_in(name: str, body: ExtractStageSpec, spec: Spec, known: Known) -> Artefact:
    """An artefact that is still to be extracted: vectors of ones of the shape that it will have. Positions
    that only the prompts decide, and groups, are left open."""
    if body.from_ is not None:
        source = known.artefacts.get(source_of(body))
        groups = source.groups if source is not None else ()
        dims = (*(("group",) if source is not None and "group" in source.dims else ()), "width")
        shape = (*([len(groups)] if "group" in dims else []), spec.model.width)
        return Artefact(name, np.ones(shape, dtype=np.float32), dims, "attn_out", (), groups)
    width = width_of(body.site, spec.model) or 1
    layers = extracted_layers(body, spec)
    groups = ("",) if body.by == "group" else ()
    positions = relative_positions(body.positions) if body.each_position else ()
    each = body.each_position
    dims = (
        *(("group",) if groups else ()),
        *(("position",) if each else ()),
        *(() if body.site in LAYERLESS else ("layer",)),
        "width",
    )
    sizes = {"group": 1, "position": max(1, len(positions)), "layer": len(layers), "width": width}
    vectors = np.ones([sizes[dim] for dim in dims], dtype=np.float32)
    return Artefact(name, vectors, dims, body.site, layers, groups, positions)


def extracted_layers(body: ExtractStageSpec, spec: Spec) -> tuple[int, ...]:
    """Absolute layers that an extract stage reads; all of them where its word is wrong, which is told by
    itself."""
    try:
        return resolve_layers(body.layers, spec.model.layers, spec.reference_depth, spec.model.landmarks)
    except LayerError:
        return tuple(range(spec.model.layers))


def relative_positions(word: str) -> tuple[int, ...]:
    """Positions from the last token (-1) that a word names in prompts of any length; none where the prompt
    decides."""
    try:
        positions = Positions.parse(word)
    except PositionError:
        return ()
    if positions.kind == "last" and positions.percent is None:
        return tuple(range(-positions.count, 0))
    if positions.kind == "index" and positions.count < 0:
        return (positions.count,)
    return ()
