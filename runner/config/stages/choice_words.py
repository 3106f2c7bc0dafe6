"""`choice:NAME` in a stage: the words that an earlier choice fills in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from runner.config.errors import listed, suggestion
from runner.config.stages.known import Chosen, Known

Key = tuple[str | int, ...]

_WORD = re.compile(r"choice:([A-Za-z_][A-Za-z0-9_]*)(?:/([A-Za-z0-9_.-]+))?")
_LISTS = ("layers", "heads", "features")  # fields that can take several chosen values
_TEXTS = ("positions", "from_positions", "keys")  # fields that no number can stand in


def choice_named(word: object) -> str | None:
    """The choice that a word names; None for anything else."""
    found = _WORD.fullmatch(word) if isinstance(word, str) else None
    return None if found is None else found[1]


@dataclass
class Filled:
    """A body with chosen values in the place of words. used: names of the choices; faults: (key, message)."""

    body: Any
    used: set[str] = field(default_factory=set)
    faults: list[tuple[Key, str]] = field(default_factory=list)


def fill(body: Any, known: Known, key: Key = ()) -> Filled:
    """Put what was chosen in the place of every `choice:NAME` and `choice:NAME/AXIS` below a mapping. A field
    takes the axis whose last part it is called by."""
    out = Filled(None)
    out.body = _filled(body, known, key, out)
    return out


def _filled(value: Any, known: Known, key: Key, out: Filled) -> Any:
    if isinstance(value, Mapping):
        return {name: _filled(each, known, (*key, name), out) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_filled(each, known, (*key, index), out) for index, each in enumerate(value)]
    if not isinstance(value, str) or not value.startswith("choice:"):
        return value
    found = _WORD.fullmatch(value)
    if found is None:
        out.faults.append((key, f"expected choice:NAME or choice:NAME/AXIS, got '{value}'"))
        return value
    name, axis = found[1], found[2]
    if name not in known.choices:
        message = f"expected a choice of an earlier stage ({listed(known.choices)}), got '{name}'"
        out.faults.append((key, message + suggestion(name, known.choices)))
        return value
    out.used.add(name)
    field_name = next(str(part) for part in reversed(key) if isinstance(part, str)).rpartition(".")[2]
    return _chosen(known.choices[name], axis or field_name, field_name, key, out)


def _chosen(chosen: Chosen, axis: str, field_name: str, key: Key, out: Filled) -> Any:
    if chosen.items is not None:
        out.faults.append((key, f"'{chosen.name}' is a choice of items, which `items: choice:...` takes"))
        return None
    if not chosen.cells:
        return None  # an empty choice: the stage is left out
    axes = list(chosen.cells[0])
    fitting = [one for one in axes if axis in (one, one.rpartition(".")[2])]
    if len(fitting) != 1:
        what = "one axis" if not fitting else "one axis alone"
        out.faults.append(
            (key, f"expected {what} of the choice '{chosen.name}' ({listed(axes)}), got '{axis}'")
        )
        return None
    values = list(dict.fromkeys(cell[fitting[0]] for cell in chosen.cells))
    if field_name in _TEXTS and not isinstance(values[0], str):
        message = f"expected an axis of positions, but {fitting[0]} of '{chosen.name}' is a number"
        out.faults.append((key, message))
        return None
    if chosen.most > 1 and field_name not in _LISTS:
        message = f"expected a choice of one, but '{chosen.name}' takes up to {chosen.most}"
        out.faults.append((key, message))
        return None
    if len(values) == 1:
        return values[0]
    if field_name not in _LISTS:
        several = f"{len(values)} ({listed(map(str, values))})"
        message = f"expected one value, but '{chosen.name}' has chosen {several}"
        out.faults.append((key, message))
        return values[0]
    return values
