"""The bodies of conditions as written in YAML: reserved keys apart from writes, and grids expanded to their
cells, in conditions as in contrasts."""

from __future__ import annotations

import copy
import itertools
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from runner.config.axes import AxisError, AxisValue, Extent, Plain, Relation, axis_values, word_of
from runner.config.errors import as_yaml, listed, suggestion
from runner.config.spec import RESERVED, WriteSpec

MOST_CELLS = 20_000  # of one grid
_MOST_COUNTED = 2_000_000  # combinations that are gone through to count the cells that a relation leaves
_RELATION = "only"  # the key of a grid that is no axis

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")  # names become columns and folders
_SETTABLE = tuple(key for key in RESERVED if key not in ("label", "grid", "same_as"))


@dataclass(frozen=True)
class BodyFault:
    """A mistake in a body; key: path below the conditions."""

    key: tuple[str, ...]
    message: str


@dataclass(frozen=True)
class Cell:
    """One condition that a grid expanded to. values: axis -> value, a list as a word (`1+2`); empty where the
    command line has set every axis."""

    name: str
    values: Mapping[str, Plain]


Grids = Mapping[str, Sequence[Cell]]


@dataclass(frozen=True)
class Bodies:
    """Conditions in the form of `ConditionSpec`; grids: the cells of each condition that has a grid; written:
    (condition, write) -> the write in the file, of those that a list of sites was expanded to."""

    conditions: dict[str, Any]
    grids: dict[str, list[Cell]]
    faults: list[BodyFault]
    written: dict[tuple[str, str], str] = field(default_factory=dict)


def split_bodies(
    conditions: Mapping[str, Any],
    given: Callable[[str, str], bool] = lambda name, axis: False,
    model: Mapping[str, Any] | None = None,
    reference: object = None,
) -> Bodies:
    """Writes under `writes`, each grid cell a condition of its own, named `name[axis=value,...]`, and each
    site of a list a write of its own, named `write_site`. What is no body, no write and no grid is left out
    and told.

    given: whether the user has set the field of a condition that one of its axes runs over. That value then
    takes the place of the axis, so that a sweep over it is not silently undone by the grid. model,
    reference: the keys `model` and `reference_depth`, unchecked; axes in words (`all`, `2-7`) run over what
    the model has, and over one value where that is not said.
    """
    out: dict[str, Any] = {}
    grids: dict[str, list[Cell]] = {}
    faults: list[BodyFault] = []
    written: dict[tuple[str, str], str] = {}
    extent = Extent.of(model, reference)
    for name, body in conditions.items():
        if not isinstance(body, Mapping):
            message = (
                f"expected a mapping of writes, {{}} for a condition that writes nothing, got {as_yaml(body)}"
            )
            faults.append(BodyFault((name,), message))
            continue
        for part in (name, *body):
            if not _NAME.fullmatch(str(part)):
                where = (name,) if part == name else (name, str(part))
                faults.append(BodyFault(where, f"expected a name of letters, digits, _ and -, got '{part}'"))
        cells = _cells(name, body, faults, given, extent)
        if body.get("grid") is not None:
            grids[name] = [Cell(cell_name, values) for cell_name, _, values in cells]
        for cell_name, cell, values in cells:
            split: dict[str, Any] = {"grid": values, "writes": {}}
            for key, value in cell.items():
                if key == "grid":
                    continue
                if key in RESERVED:
                    split[key] = value
                elif isinstance(value, Mapping):
                    for write, fields in _at_each_site(name, key, value, body, faults):
                        split["writes"][write] = fields
                        if write != key:
                            written[cell_name, write] = key
                else:
                    faults.append(BodyFault((name, key), _no_write(key, value)))
            out[cell_name] = split
    return Bodies(out, grids, list(dict.fromkeys(faults)), written)


def expand_contrasts(entries: Sequence[Any], grids: Grids) -> list[tuple[int, Any]]:
    """Pairs of contrasts with the name of a grid replaced by its cells, each with the place of the entry that
    it came from.

    A grid and a condition: each cell with the condition. Two grids: every two cells that agree in the axes
    that both have. A grid and itself: every two of its cells. What is no list of names is left as it is.
    """
    expanded: list[tuple[int, Any]] = []
    for place, entry in enumerate(entries):
        if not isinstance(entry, list) or not any(str(name) in grids for name in entry[:2]):
            expanded.append((place, entry))
            continue
        first, second = (grids.get(str(name), [Cell(str(name), {})]) for name in entry[:2])
        pairs: Iterable[tuple[Cell, Cell]] = (
            itertools.combinations(first, 2) if entry[0] == entry[1] else itertools.product(first, second)
        )
        for one, other in pairs:
            shared = set() if entry[0] == entry[1] else set(one.values) & set(other.values)
            if all(one.values[axis] == other.values[axis] for axis in shared):
                expanded.append((place, [one.name, other.name, *entry[2:]]))
    return expanded


def expand_names(names: Sequence[Any], grids: Grids) -> list[Any]:
    """A list of conditions with the name of a grid replaced by those of its cells, in their order."""
    return [cell for name in names for cell in ([c.name for c in grids[name]] if name in grids else [name])]


def _no_write(key: str, value: object) -> str:
    return (
        f"expected a write (a mapping with a site) or one of the keys {listed(RESERVED)}, got "
        f"{as_yaml(value)}{suggestion(key, RESERVED)}"
    )


def _at_each_site(
    name: str, write: str, fields: Mapping[str, Any], body: Mapping[str, Any], faults: list[BodyFault]
) -> list[tuple[str, dict[str, Any]]]:
    """A write, or one for each site where `site` is a list, all else the same."""
    sites = fields.get("site")
    if not isinstance(sites, list):
        return [(write, dict(fields))]
    key = (name, write, "site")
    names = list(dict.fromkeys(site for site in sites if isinstance(site, str)))
    if len(names) < len(sites) or not names:
        faults.append(
            BodyFault(key, f"expected a site, or a list of sites that differ, got {as_yaml(sites)}")
        )
    taken = [f"{write}_{site}" for site in names if f"{write}_{site}" in body]
    if taken:
        message = f"a list of sites makes a write of each, and {listed(taken)} is there already; rename one"
        faults.append(BodyFault(key, message))
    return [
        (f"{write}_{site}", {**copy.deepcopy(dict(fields)), "site": site})
        for site in names
        if f"{write}_{site}" not in taken
    ]


def _cells(
    name: str,
    body: Mapping[str, Any],
    faults: list[BodyFault],
    given: Callable[[str, str], bool],
    extent: Extent,
) -> list[tuple[str, dict[str, Any], dict[str, Plain]]]:
    grid = body.get("grid")
    if grid is None:
        return [(name, dict(body), {})]
    axes, rules = _flat(grid) if isinstance(grid, Mapping) else ({}, [])
    if not axes:
        faults.append(
            BodyFault((name, "grid"), f"expected axes such as {{v_proj.layers: [3, 5]}}, got {as_yaml(grid)}")
        )
        return [(name, dict(body), {})]
    usable: dict[str, list[AxisValue]] = {}
    for axis, said in axes.items():
        if not _settable(name, axis, body, faults):
            continue
        try:
            values = axis_values(axis, said, _sites(axis, body, axes), extent)
        except AxisError as error:
            faults.append(BodyFault((name, "grid", axis), str(error)))
            values = error.values
        if values and not given(name, axis):
            usable[axis] = values
    cells = []
    for chosen in _kept(name, body, usable, _relations(name, rules, axes, faults), extent, faults):
        cell = copy.deepcopy(dict(body))
        for axis, value in chosen.items():
            *parents, last = axis.split(".")
            level: Any = cell
            for part in parents:
                level = level.setdefault(part, {})
            level[last] = copy.copy(value)
        told = {axis: word_of(value) for axis, value in chosen.items()}
        title = ",".join(f"{axis}={value}" for axis, value in told.items())
        if title and isinstance(cell.get("label"), str):
            cell["label"] = f"{cell['label']} [{title}]"
        cells.append((f"{name}[{title}]" if title else name, cell, told))
    return cells


def _flat(grid: Mapping[str, Any], parents: tuple[str, ...] = ()) -> tuple[dict[str, Any], list[Any]]:
    """Axes by dotted path, whether written `{v_proj.layers: [...]}` or `{v_proj: {layers: [...]}}`, and the
    relations under `only`."""
    axes: dict[str, Any] = {}
    rules: list[Any] = []
    for key, said in grid.items():
        path = (*parents, str(key))
        if isinstance(said, Mapping):
            inner, more = _flat(said, path)
            axes |= inner
            rules += more
        elif path == (_RELATION,):
            rules += said if isinstance(said, list) else [said]
        else:
            axes[".".join(path)] = said
    return axes, rules


def _sites(axis: str, body: Mapping[str, Any], axes: Mapping[str, Any]) -> list[str]:
    """The sites of the write that an axis belongs to, whether it names them or another axis does."""
    write = axis.partition(".")[0]
    fields = body.get(write)
    site = axes.get(f"{write}.site", fields.get("site") if isinstance(fields, Mapping) else None)
    return [str(each) for each in (site if isinstance(site, list) else [site]) if each is not None]


def _relations(
    name: str, rules: Sequence[Any], axes: Mapping[str, Any], faults: list[BodyFault]
) -> list[Relation]:
    relations = []
    for rule in rules:
        try:
            relations.append(Relation.read(rule, tuple(axes)))
        except AxisError as error:
            faults.append(BodyFault((name, "grid", _RELATION), str(error)))
    return relations


def _kept(
    name: str,
    body: Mapping[str, Any],
    usable: Mapping[str, list[AxisValue]],
    relations: Sequence[Relation],
    extent: Extent,
    faults: list[BodyFault],
) -> list[dict[str, AxisValue]]:
    """The combinations of an axis's values that the relations leave; of too many, or none, the first of
    all."""
    every = (dict(zip(usable, values, strict=True)) for values in itertools.product(*usable.values()))
    first = {axis: values[0] for axis, values in usable.items()}
    total = math.prod(len(values) for values in usable.values())
    named = {axis for relation in relations for axis in (relation.one, relation.other)}
    fixed = {axis: _at(body, axis) for axis in named if axis not in usable}
    fixed = {axis: value for axis, value in fixed.items() if value is not None}
    try:
        if total > (_MOST_COUNTED if relations else MOST_CELLS):
            count, kept = total, []
        else:
            kept = [
                cell for cell in every if all(rule.holds({**fixed, **cell}, extent) for rule in relations)
            ]
            count = len(kept)
    except AxisError as error:
        faults.append(BodyFault((name, "grid", _RELATION), str(error)))
        return [first]
    if count > MOST_CELLS:
        before = " before 'only'" if relations and total > _MOST_COUNTED else ""
        message = (
            f"expected at most {MOST_CELLS:,} cells, got {count:,}{before}; take fewer values of an axis"
        )
        faults.append(BodyFault((name, "grid"), message))
        return [first]
    if not kept:
        message = f"no cell is left: in none of {total:,} is {' and '.join(map(str, relations))}"
        faults.append(BodyFault((name, "grid", _RELATION), message))
        return [first]
    return kept


def _at(body: Mapping[str, Any], path: str) -> Any:
    level: Any = body
    for part in path.split("."):
        if not isinstance(level, Mapping):
            return None
        level = level.get(part)
    return level


def _settable(name: str, axis: str, body: Mapping[str, Any], faults: list[BodyFault]) -> bool:
    parts = axis.split(".")
    writes = [key for key, value in body.items() if key not in RESERVED and isinstance(value, Mapping)]
    if parts[0] in _SETTABLE and len(parts) <= 2:
        return True
    if parts[0] not in writes or len(parts) != 2:
        known = [*(f"{write}.layers" for write in writes), *_SETTABLE]
        message = f"expected an axis of this condition, such as {listed(known)}, got '{axis}'"
        faults.append(BodyFault((name, "grid", axis), message + suggestion(axis, known)))
        return False
    if parts[1] not in WriteSpec.model_fields:
        message = f"unknown field '{parts[1]}' of a write{suggestion(parts[1], WriteSpec.model_fields)}"
        faults.append(BodyFault((name, "grid", axis), message))
        return False
    return True
