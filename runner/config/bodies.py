"""The bodies of conditions as written in YAML: reserved keys apart from writes, and grids expanded to their
cells."""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from runner.config.errors import listed, suggestion
from runner.config.spec import RESERVED, WriteSpec

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")  # names become columns and folders
_SETTABLE = tuple(key for key in RESERVED if key not in ("label", "grid", "same_as"))


@dataclass(frozen=True)
class BodyFault:
    """A mistake in a body; key: path below the conditions."""

    key: tuple[str, ...]
    message: str


def split_bodies(conditions: Mapping[str, Any]) -> tuple[dict[str, Any], list[BodyFault]]:
    """Conditions in the form of `ConditionSpec`: writes under `writes`, each grid cell a condition of its
    own, named `name[axis=value,...]`. What is no body, no write and no grid is left out and told."""
    out: dict[str, Any] = {}
    faults: list[BodyFault] = []
    for name, body in conditions.items():
        if not isinstance(body, Mapping):
            message = f"expected a mapping of writes, {{}} for a condition that writes nothing, got {body!r}"
            faults.append(BodyFault((name,), message))
            continue
        for part in (name, *body):
            if not _NAME.fullmatch(str(part)):
                where = (name,) if part == name else (name, str(part))
                faults.append(BodyFault(where, f"expected a name of letters, digits, _ and -, got '{part}'"))
        for cell_name, cell, values in _cells(name, body, faults):
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
    return out, list(dict.fromkeys(faults))


def _no_write(key: str, value: object) -> str:
    return (
        f"expected a write (a mapping with a site) or one of the keys {listed(RESERVED)}, got {value!r}"
        f"{suggestion(key, RESERVED)}"
    )


def _cells(
    name: str, body: Mapping[str, Any], faults: list[BodyFault]
) -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    grid = body.get("grid")
    if grid is None:
        return [(name, dict(body), {})]
    if not isinstance(grid, Mapping) or not grid:
        faults.append(
            BodyFault((name, "grid"), f"expected axes such as {{v_proj.layers: [3, 5]}}, got {grid!r}")
        )
        return [(name, dict(body), {})]
    axes = _axes(name, grid, faults)
    usable = {axis: values for axis, values in axes.items() if _settable(name, axis, body, faults)}
    cells = []
    for combination in itertools.product(*usable.values()):
        chosen = dict(zip(usable, combination, strict=True))
        cell = copy.deepcopy(dict(body))
        for axis, value in chosen.items():
            *parents, last = axis.split(".")
            level: Any = cell
            for part in parents:
                level = level.setdefault(part, {})
            level[last] = value
        title = ",".join(f"{axis}={value}" for axis, value in chosen.items())
        if isinstance(cell.get("label"), str):
            cell["label"] = f"{cell['label']} [{title}]"
        cells.append((f"{name}[{title}]" if title else name, cell, chosen))
    return cells


def _axes(name: str, grid: Mapping[str, Any], faults: list[BodyFault]) -> dict[str, list[Any]]:
    """Axes by dotted path, whether written `{v_proj.layers: [...]}` or `{v_proj: {layers: [...]}}`."""
    axes: dict[str, list[Any]] = {}
    for key, values in grid.items():
        if isinstance(values, Mapping):
            inner = _axes(name, {f"{key}.{part}": value for part, value in values.items()}, faults)
            axes.update(inner)
        elif (
            not isinstance(values, list)
            or not values
            or not all(isinstance(v, (str, int, float)) for v in values)
        ):
            faults.append(BodyFault((name, "grid", key), f"expected a list of plain values, got {values!r}"))
        elif len(set(map(str, values))) < len(values):
            faults.append(BodyFault((name, "grid", key), f"expected values that differ, got {values!r}"))
        else:
            axes[key] = values
    return axes


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
