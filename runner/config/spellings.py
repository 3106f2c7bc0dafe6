"""Values in YAML files that are not read as they are written: `1:30`, `010`, `0x1f`, `1_000`, `no`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import yaml

from runner.config.errors import Problem

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's where it is there, being ten times faster
_INT, _FLOAT, _BOOL = (f"tag:yaml.org,2002:{name}" for name in ("int", "float", "bool"))
_PLAIN_INT = re.compile(r"[-+]?(0|[1-9][0-9]*)")
# Whatever may be such a value, and some texts that are none: good enough to leave most files unparsed.
_NUMBER = r"[-+]?(?:0(?:[0-7_]+|x[0-9a-f_]+|b[01_]+)|[0-9.]+[:_][0-9:_.e+-]*)"
_SUSPECT = re.compile(
    rf"(?:[:\-,\[{{]|^)[ \t]*(?:{_NUMBER}|yes|no|on|off)[ \t]*(?:[,\]}}#\r]|$)", re.IGNORECASE | re.MULTILINE
)


def suspects(folders: Iterable[Path]) -> list[Path]:
    """The YAML files that may hold such a value, found by their text alone."""
    return [path for folder in folders for path in folder.rglob("*.yaml") if _SUSPECT.search(_text(path))]


def misread(path: Path, package: Sequence[str]) -> Iterator[Problem]:
    """The values of one file that YAML reads as another number, or as true or false, than stands there.

    package: the keys under which the file's content is put. The file must be YAML that loads.
    """
    root = yaml.compose(_text(path), Loader=_LOADER)
    if root is not None:
        yield from _walk(root, tuple(package), path, set())


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""  # whether this file is read at all, and what that says, is for composing to find out


def _walk(node: yaml.Node, key: tuple[str, ...], path: Path, above: set[int]) -> Iterator[Problem]:
    if id(node) in above:  # an anchor that contains itself
        return
    inside = above | {id(node)}
    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            yield from _walk(value, (*key, str(name.value)), path, inside)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield from _walk(value, (*key, str(index)), path, inside)
    elif isinstance(node, yaml.ScalarNode) and not node.style:
        message = _message(node.tag, node.value)
        if message is not None:
            yield Problem(f"{path}:{node.start_mark.line + 1}", ".".join(key), message)


def _message(tag: str, text: str) -> str | None:
    if tag == _BOOL and text.lower() not in ("true", "false"):
        read = "true" if yaml.safe_load(text) else "false"
        return (
            f"expected true, false or a text in quotes, got {text}, which YAML reads as {read}; "
            f"quote it or write {read}"
        )
    odd_int = tag == _INT and not _PLAIN_INT.fullmatch(text)
    if odd_int or (tag == _FLOAT and re.search("[:_]", text)):
        return (
            f"expected a number in plain digits or a text in quotes, got {text}, which YAML reads as "
            f"{yaml.safe_load(text)}; quote it or write the number"
        )
    return None
