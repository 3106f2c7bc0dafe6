"""What pydantic found, as a sentence: what was expected, what stands there, the nearest right word."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from runner.config.errors import as_yaml, listed, suggestion
from runner.config.spec import Spec
from runner.config.stages.forms import OUTLINE

Key = tuple[str | int, ...]

_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "a text",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "tuple_type": "a list",
    "none_required": "null",
    "finite_number": "a finite number",
}
_BY_KEY = {
    "layers": "a layer index, a list, a range such as 5-8, 'all', a depth such as 84% or a landmark",
    "heads": "a list such as [q0, q3] or [kv1]",
    "groups": "'all' or a list of groups",
    "extra": "pairs of conditions, [[a, b], ...]",
    "same": "pairs of conditions with a margin, [[a, b, {margin: 0.6}], ...]",
    "icc": "two shares of the variance, [between donors, between targets], such as [0.1, 0.1]",
    "device": "auto, cpu, cuda or cuda:N",
    "from": "the name of an earlier stage",
    "stages": "a mapping of stages, {name: {kind: measure, conditions: ...}}",
}
_BOUNDS = {
    "greater_than": ("gt", "more than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}


def existing_path(mapping: Mapping[str, Any], detail: Mapping[str, Any]) -> Key:
    """The path of an error within the mapping itself: pydantic adds the names of the types that it tried."""
    path: list[str | int] = []
    level: Any = mapping
    for part in detail["loc"]:
        inside_list = isinstance(level, list) and isinstance(part, int) and part < len(level)
        if inside_list or (isinstance(level, dict) and part in level):
            level = level[part]
        elif detail["type"] == "missing" and isinstance(level, dict):
            return (*path, part)
        else:
            break
        path.append(part)
    return tuple(path)


def complaint(
    path: Key, details: Sequence[Mapping[str, Any]], mapping: Mapping[str, Any], root: type[BaseModel] = Spec
) -> str:
    """One sentence for everything that pydantic says of one key. root: the model of the mapping."""
    kinds = {detail["type"] for detail in details}
    got = _at(mapping, path)
    if "extra_forbidden" in kinds:
        known = known_keys(path[:-1], root)
        return f"unknown key; expected one of {listed(known)}{suggestion(str(path[-1]), known)}"
    if kinds == {"missing"}:
        return f"missing: expected {_noun(path)}"
    named = _by_key(path)
    if named is not None:
        return f"expected {named}, got {as_yaml(got)}{_depth_hint(path, got)}"
    words = [word for detail in details if detail["type"] == "literal_error" for word in _words(detail)]
    others = [_phrase(detail) for detail in details if detail["type"] != "literal_error"]
    if words:
        expected = f"one of {listed(words)}" if len(words) > 1 else words[0]
        also = "".join(f", or {phrase}" for phrase in dict.fromkeys(others))
        return f"expected {expected}{also}, got {as_yaml(got)}{suggestion(str(got), words)}"
    return f"expected {' or '.join(dict.fromkeys(others))}, got {as_yaml(got)}{_yaml_hint(got, kinds)}"


def known_keys(path: Key, root: type[BaseModel] = Spec) -> tuple[str, ...]:
    """The keys that exist at a path of the configuration, or of another model."""
    shape: Any = root
    for part in path:
        shape = _below(shape, part)
        if shape is None:
            return ()
    found = _model_in(shape)
    if found is None:
        return ()
    also = OUTLINE if found is Spec else ()
    return (*also, *_fields(found))


def _fields(found: type[BaseModel]) -> tuple[str, ...]:
    return tuple(name if one.alias is None else one.alias for name, one in found.model_fields.items())


def _below(shape: Any, part: str | int) -> Any:
    found = _model_in(shape)
    if found is not None:
        field = found.model_fields.get(str(part))
        return None if field is None else field.annotation
    for option in _options(shape):
        if typing.get_origin(option) is dict:
            return typing.get_args(option)[1]
    return None


def _model_in(shape: Any) -> type[BaseModel] | None:
    for option in _options(shape):
        if isinstance(option, type) and issubclass(option, BaseModel):
            return option
    return None


def _options(shape: Any) -> list[Any]:
    origin = typing.get_origin(shape)
    if origin is typing.Annotated:
        return _options(typing.get_args(shape)[0])
    if origin in (typing.Union, types.UnionType):
        return [option for part in typing.get_args(shape) for option in _options(part)]
    return [shape]


def _by_key(path: Key) -> str | None:
    for part in reversed(path):
        if isinstance(part, str):
            return _BY_KEY.get(part) if "model" not in path else None
    return None


def _noun(path: Key) -> str:
    named = _by_key(path)
    if named is not None:
        return named
    return f"a value for '{path[-1]}'"


def _phrase(detail: Mapping[str, Any]) -> str:
    kind, context = detail["type"], detail.get("ctx", {})
    if kind in _EXPECTED:
        return _EXPECTED[kind]
    if kind in _BOUNDS:
        key, words = _BOUNDS[kind]
        return f"{words} {context[key]}"
    if kind == "value_error":
        return str(context["error"]).removeprefix("expected ")
    if kind == "string_pattern_mismatch":
        return "a name of letters, digits and _ (experiments: also - and .), or the words of this key"
    if kind == "string_too_short":
        return "a text that is not empty"
    return str(detail["msg"])


def _words(detail: Mapping[str, Any]) -> list[str]:
    expected = str(detail["ctx"]["expected"])
    return re.findall(r"'([^']*)'", expected) or [expected]


def _at(mapping: Mapping[str, Any], path: Key) -> Any:
    level: Any = mapping
    for part in path:
        if isinstance(level, dict):
            level = level.get(part)
        elif isinstance(level, list) and isinstance(part, int) and part < len(level):
            level = level[part]
    return level


def _depth_hint(path: Key, value: object) -> str:
    """A fraction where layers are expected is most likely meant as a depth."""
    named = [part for part in path if isinstance(part, str)]
    if named[-1:] == ["layers"] and isinstance(value, float) and 0 < value < 1:
        return f"; did you mean '{100 * value:g}%'?"
    return ""


def _yaml_hint(value: Any, kinds: set[str]) -> str:
    if "string_type" not in kinds or isinstance(value, (dict, list)) or value is None:
        return ""
    if isinstance(value, bool):
        return "; YAML reads bare yes, no, on and off as true and false: put the text in quotes"
    return "; YAML reads this as a number: put the text in quotes"
