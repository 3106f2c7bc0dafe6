"""The bodies of conditions as written in YAML: reserved keys apart from writes, and grids expanded to their
cells, in conditions as in contrasts."""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from runner.config.errors import as_yaml, listed, suggestion
from runner.config.spec import RESERVED, WriteSpec

Plain = str | int | float | bool

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")  # names become columns and folders
_LISTS = ("layers", "heads", "features")  # fields of a write that take a list
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
    """Conditions in the form of `ConditionSpec`; grids: the cells of each condition that has a grid."""

    conditions: dict[str, Any]
    grids: dict[str, list[Cell]]
    faults: list[BodyFault]


def split_bodies(
    conditions: Mapping[str, Any], given: Callable[[str, str], bool] = lambda name, axis: False
) -> Bodies:
    """Writes under `writes`, and each grid cell a condition of its own, named `name[axis=value,...]`. What
    is no body, no write and no grid is left out and told.

    given: whether the user has set the field of a condition that one of its axes runs over. That value then
    takes the place of the axis, so that a sweep over it is not silently undone by the grid.
    """
    out: dict[str, Any] = {}
    grids: dict[str, list[Cell]] = {}
    faults: list[BodyFault] = []
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
        cells = _cells(name, body, faults, given)
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
                    split["writes"][key] = dict(value)
                else:
                    faults.append(BodyFault((name, key), _no_write(key, value)))
            out[cell_name] = split
    return Bodies(out, grids, list(dict.fromkeys(faults)))


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


def _cells(
    name: str, body: Mapping[str, Any], faults: list[BodyFault], given: Callable[[str, str], bool]
) -> list[tuple[str, dict[str, Any], dict[str, Plain]]]:
    grid = body.get("grid")
    if grid is None:
        return [(name, dict(body), {})]
    if not isinstance(grid, Mapping) or not grid:
        faults.append(
            BodyFault((name, "grid"), f"expected axes such as {{v_proj.layers: [3, 5]}}, got {as_yaml(grid)}")
        )
        return [(name, dict(body), {})]
    axes = _axes(name, grid, faults)
    usable = {
        axis: values
        for axis, values in axes.items()
        if _settable(name, axis, body, faults) and not given(name, axis)
    }
    cells = []
    for combination in itertools.product(*usable.values()):
        chosen = dict(zip(usable, combination, strict=True))
        cell = copy.deepcopy(dict(body))
        for axis, value in chosen.items():
            *parents, last = axis.split(".")
            level: Any = cell
            for part in parents:
                level = level.setdefault(part, {})
            level[last] = copy.copy(value)
        told = {axis: _word(value) for axis, value in chosen.items()}
        title = ",".join(f"{axis}={value}" for axis, value in told.items())
        if title and isinstance(cell.get("label"), str):
            cell["label"] = f"{cell['label']} [{title}]"
        cells.append((f"{name}[{title}]" if title else name, cell, told))
    return cells


def _word(value: Any) -> Plain:
    """The value of an axis as it stands in names and columns: a list is `1+2`."""
    return "+".join(map(str, value)) if isinstance(value, list) else value


def _axes(name: str, grid: Mapping[str, Any], faults: list[BodyFault]) -> dict[str, list[Any]]:
    """Axes by dotted path, whether written `{v_proj.layers: [...]}` or `{v_proj: {layers: [...]}}`. Of an
    axis that is wrong those values that are not, so that its field does not count as missing too."""
    axes: dict[str, list[Any]] = {}
    for key, values in grid.items():
        if isinstance(values, Mapping):
            inner = _axes(name, {f"{key}.{part}": value for part, value in values.items()}, faults)
            axes.update(inner)
            continue
        lists = str(key).rpartition(".")[2] in _LISTS
        given = values if isinstance(values, list) else [values]
        sound = {str(_word(v)): v for v in given if _plain(v) or (lists and _plain_list(v))}
        if not isinstance(values, list) or not all(_plain(v) or (lists and _plain_list(v)) for v in values):
            also = ", or of lists of them" if lists else ""
            message = f"expected a list of plain values{also}, got {as_yaml(values)}"
            faults.append(BodyFault((name, "grid", key), message))
        elif not values:
            faults.append(BodyFault((name, "grid", key), "expected at least one value, got an empty list"))
        elif len(sound) < len(values):
            message = f"expected values that differ, got {as_yaml(values)}"
            faults.append(BodyFault((name, "grid", key), message))
        if sound:
            axes[key] = list(sound.values())
    return axes


def _plain(value: object) -> bool:
    return isinstance(value, str | int | float)


def _plain_list(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_plain, value))


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
