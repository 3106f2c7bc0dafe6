"""A composed configuration as plain data: interpolations followed, and everything refused that could name
code."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, ListConfig
from omegaconf.errors import OmegaConfBaseException

MISSING = "???"
MISSING_VALUE = "missing: a value must be given here (???)"
_DEEPEST = 40  # an interpolation that contains itself would be followed for ever
_CODE_KEY = re.compile(r"_[a-z]+_")
_RESOLVER = re.compile(r"\$\{[^{}]*:")
_NESTED = re.compile(r"\$\{[^{}]*\$\{")


@dataclass(frozen=True)
class Unresolvable:
    """A value that is not there or must not be followed. key: its path."""

    key: tuple[str | int, ...]
    message: str


def to_plain(config: DictConfig) -> tuple[dict[str, Any], list[Unresolvable]]:
    """Plain dictionaries, lists and scalars, with what could not be resolved set to None and listed.

    Refused are `???` left over, interpolations to nothing, every resolver (`${oc.env:...}`), and keys such as
    `_target_`, with which other programs name code.
    """
    faults: list[Unresolvable] = []
    return _mapping(config, (), faults), faults


def _mapping(config: DictConfig, path: tuple[str | int, ...], faults: list[Unresolvable]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key in config:
        if not isinstance(key, str):
            message = f"expected a text as key, got {key!r}; YAML reads bare yes, no and numbers so: quote it"
            faults.append(Unresolvable((*path, str(key)), message))
        elif _CODE_KEY.fullmatch(key):
            faults.append(Unresolvable((*path, key), "nothing in a YAML file names code; remove this key"))
        else:
            out[key] = _value(config, key, (*path, key), faults)
    return out


def _value(config: Any, key: str | int, path: tuple[str | int, ...], faults: list[Unresolvable]) -> Any:
    node = config._get_node(key)
    written = node._value() if node is not None and hasattr(node, "_value") else None
    message = _refused(written, len(path))
    if message is None:
        try:
            value = config[key]
        except OmegaConfBaseException as error:
            message = f"'{written}' refers to nothing that can be had: {str(error).splitlines()[0]}"
        except RecursionError:
            message = f"'{written}' refers to itself"
    if message is not None:
        faults.append(Unresolvable(path, message))
        return None
    if isinstance(value, DictConfig):
        return _mapping(value, path, faults)
    if isinstance(value, ListConfig):
        return [_value(value, index, (*path, index), faults) for index in range(len(value))]
    if isinstance(value, bytes):
        faults.append(Unresolvable(path, "expected a text, a number, a list or a mapping, got bytes"))
        return None
    return value


def _refused(written: object, depth: int) -> str | None:
    if depth > _DEEPEST:
        return "nested too deeply; an interpolation refers to itself"
    if not isinstance(written, str):
        return None
    if written == MISSING:
        return MISSING_VALUE
    if _RESOLVER.search(written) or _NESTED.search(written):
        return f"only plain interpolations such as ${{model.language}} are followed, got '{written}'"
    return None
