"""Which file, or the command line, set a key of a composed configuration."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.types import Override

from runner.config.errors import Problem

COMMAND_LINE = "command line"
_NOT_HYDRA = "Hydra's own settings cannot be changed; it only composes files here"
_OF_HYDRA = re.compile(r"(override\s+)?/?hydra/")


@dataclass(frozen=True)
class LoadedFile:
    """One YAML file as it was merged. package: the keys under which its content was put."""

    path: Path
    package: tuple[str, ...]
    content: Any

    @staticmethod
    def read(path: Path, package: str) -> LoadedFile:
        """Read a file that Hydra has already accepted."""
        with path.open(encoding="utf-8") as stream:
            content = yaml.safe_load(stream)
        return LoadedFile(path, tuple(package.split(".")) if package else (), content)

    def sets(self, key: Sequence[str | int]) -> bool:
        """Whether the file itself has the key."""
        rest = list(key)
        for part in self.package:
            if not rest:
                return True
            if rest.pop(0) != part:
                return False
        return _has(self.content, rest)

    def forbidden(self) -> Iterator[Problem]:
        """What composing would swallow: settings of Hydra's own, which nothing here reads."""
        if not isinstance(self.content, dict):
            return
        where = str(self.path)
        if "hydra" in self.content or self.package[:1] == ("hydra",):
            yield Problem(where, "hydra", _NOT_HYDRA)
        for entry in self.content.get("defaults") or []:
            words = [*entry, *entry.values()] if isinstance(entry, dict) else [entry]
            if any(isinstance(word, str) and _OF_HYDRA.match(word) for word in words):
                yield Problem(where, "defaults", _NOT_HYDRA)

    def missing(self) -> Iterator[tuple[str, ...]]:
        """The keys, from the root, whose value the file leaves open (`???`)."""
        yield from ((*self.package, *key) for key in _open_keys(self.content))


@dataclass(frozen=True)
class Origins:
    """The files in the order in which they were merged, and the overrides that came after them."""

    load: Callable[[], tuple[LoadedFile, ...]]
    overrides: tuple[Override, ...]

    @cached_property
    def files(self) -> tuple[LoadedFile, ...]:
        """Read when first asked for: a configuration without mistakes needs nobody to be named."""
        return self.load()

    def of(self, key: Sequence[str | int]) -> str:
        """The last source that set the key; for a key that nothing set, of its nearest parent that something
        did."""
        for length in range(len(key), 0, -1):
            part = key[:length]
            for override in self.overrides:
                if _overrides(override, part):
                    return COMMAND_LINE
            for file in reversed(self.files):
                if file.sets(part):
                    return str(file.path)
            if any(
                override.key_or_group.split(".")[:length] == list(map(str, part))
                for override in self.overrides
            ):
                return COMMAND_LINE
        # A key that is required and that nobody gave belongs into the experiment, the last file to be merged.
        return str(self.files[-1].path) if self.files else COMMAND_LINE


def merge_shapes(merged: dict[str, Any], content: Any) -> Iterator[tuple[tuple[str, ...], str]]:
    """Merge one file's content, put under its package, into what came before, as composing does; yields (key,
    sentence) for each value that composing cannot merge, which leaves what was there."""
    if not isinstance(content, dict):
        yield (), f"expected a mapping of keys, got {_kind(content)}"
        return
    for key, value in content.items():
        before = merged.get(str(key))
        message = shape_clash(before, value)
        if message is not None:
            yield (str(key),), message
        elif isinstance(before, dict) and isinstance(value, dict):
            yield from (((str(key), *rest), message) for rest, message in merge_shapes(before, value))
        else:
            merged[str(key)] = copy.deepcopy(value)


def shape_clash(before: object, value: object) -> str | None:
    """What is wrong with a list where a mapping stands, or the reverse; None where the two go together."""
    if isinstance(before, dict) and isinstance(value, list):
        return f"expected a mapping, {{name: ...}}, got {_kind(value)}"
    if isinstance(before, list) and isinstance(value, dict):
        return f"expected a list, [...], got {_kind(value)}"
    return None


def _kind(value: object) -> str:
    name = (
        "a list" if isinstance(value, list) else "a mapping" if isinstance(value, dict) else "a plain value"
    )
    text = repr(value)
    return f"{name}: {text if len(text) <= 80 else f'{text[:77]}...'}"


def _overrides(override: Override, key: Sequence[str | int]) -> bool:
    path = override.key_or_group.split(".")
    parts = [str(part) for part in key]
    if len(path) >= len(parts):
        return path == parts
    return path == parts[: len(path)] and _has(override.value(), key[len(path) :])


def _open_keys(content: Any) -> Iterator[tuple[str, ...]]:
    if isinstance(content, dict):
        for key, value in content.items():
            if value == "???":
                yield (str(key),)
            elif key != "defaults":
                yield from ((str(key), *rest) for rest in _open_keys(value))


def _has(content: Any, key: Sequence[str | int]) -> bool:
    for part in key:
        inside_list = isinstance(content, list) and isinstance(part, int) and part < len(content)
        if not inside_list and not (isinstance(content, dict) and part in content):
            return False
        content = content[part]
    return True
