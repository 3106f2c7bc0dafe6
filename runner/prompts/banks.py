"""Prompt banks: JSON lines with id, group and text, read strictly."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from runner.config.errors import ConfigurationError, Problem, listed, suggestion

_REQUIRED = ("id", "group", "text")
_COUNTS = ("tokens", "words")
_KEYS = (*_REQUIRED, *_COUNTS, "split", "roles", "facts")
_NAME = re.compile(r"[a-z][a-z0-9_]*")

Split = Literal["extract", "validate", "test"]
Fact = str | int | float | bool | tuple[str, ...]
SPLITS: tuple[str, ...] = Split.__args__  # type: ignore[attr-defined]


def _nothing() -> Mapping[str, Any]:
    return MappingProxyType({})


@dataclass(frozen=True)
class Prompt:
    """One prompt of a bank. tokens: the count that the bank states, None where it states none; split
    likewise.

    spans: marked parts of the text by name, (start, end) half-open in characters; `roles` in the file, where
    `prompts.roles` are something else: further donors. facts: what is known about the prompt. Both are
    read-only. bank_text: the text as the bank has it, where a template wrote this one; None: `text`.
    """

    id: str
    group: str
    text: str
    tokens: int | None = None
    split: Split | None = None
    spans: Mapping[str, tuple[int, int]] = field(default_factory=_nothing, hash=False)
    facts: Mapping[str, Fact] = field(default_factory=_nothing, hash=False)
    bank_text: str | None = None

    @property
    def source(self) -> str:
        """The text as the bank has it."""
        return self.text if self.bank_text is None else self.bank_text


@dataclass(frozen=True)
class Bank:
    """A bank as read. sha256: of the file's bytes."""

    name: str
    path: Path
    sha256: str
    prompts: tuple[Prompt, ...]

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups in the order of their first prompt."""
        return tuple(dict.fromkeys(prompt.group for prompt in self.prompts))

    def only(self, groups: str | Sequence[str], split: Literal["all"] | Split = "all") -> tuple[Prompt, ...]:
        """The prompts of the groups and the split named, in the bank's order; `all` for every one.

        Raises ConfigurationError for a group that the bank does not have, and where no prompt is left.
        """
        chosen = self.prompts
        if groups != "all":
            unknown = [group for group in groups if group not in self.groups]
            if unknown or not groups:
                raise ConfigurationError(
                    [_unknown_group(self, group) for group in unknown]
                    or [Problem(str(self.path), "", "expected at least one group, got an empty list")]
                )
            chosen = tuple(prompt for prompt in chosen if prompt.group in groups)
        if split == "all":
            return chosen
        left = tuple(prompt for prompt in chosen if prompt.split == split)
        if not left:
            raise ConfigurationError([_empty_split(self, chosen, split)])
        return left


def find_bank(name: str, language: str, folders: Sequence[Path]) -> Path:
    """The file of a bank: a path to a JSONL file as it stands, else prompts/banks/<language>/<name>.jsonl in
    the first of the configuration folders that has it. Raises ConfigurationError naming the banks that
    exist."""
    if name.endswith(".jsonl") or "/" in name:
        path = Path(name).expanduser()
        if path.is_file():
            return path
        raise ConfigurationError(
            [Problem(name, "", "expected a JSON-lines file of prompts, found no such file")]
        )
    banks = [folder / "prompts" / "banks" / language for folder in folders]
    for folder in banks:
        if (folder / f"{name}.jsonl").is_file():
            return folder / f"{name}.jsonl"
    known = sorted({path.stem for folder in banks if folder.is_dir() for path in folder.glob("*.jsonl")})
    offered = f"a bank of the language '{language}' ({listed(known)}) or the path of a .jsonl file"
    message = f"expected {offered}, got '{name}'"
    raise ConfigurationError([Problem(str(banks[-1]), "", message + suggestion(name, known))])


def read_bank(name: str, path: Path) -> Bank:
    """Read a bank. Raises ConfigurationError with every fault of the file, each as `file:line`."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ConfigurationError([Problem(str(path), "", f"cannot be read: {error.strerror}")]) from error
    problems: list[Problem] = []
    prompts: list[Prompt] = []
    lines_of: dict[str, int] = {}
    for number, line in enumerate(raw.split(b"\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        found = _read_line(where, line)
        if isinstance(found, list):
            problems += found
            continue
        if found.id in lines_of:
            message = f"expected ids that differ, got '{found.id}' again (first in line {lines_of[found.id]})"
            problems.append(Problem(where, "id", message))
        lines_of.setdefault(found.id, number)
        prompts.append(found)
    if not prompts and not problems:
        problems.append(Problem(str(path), "", "expected at least one prompt, the file has none"))
    if problems:
        raise ConfigurationError(problems)
    return Bank(name, path, hashlib.sha256(raw).hexdigest(), tuple(prompts))


def _read_line(where: str, line: bytes) -> Prompt | list[Problem]:
    try:
        value = json.loads(line.decode("utf-8"), object_pairs_hook=_keys_once)
    except UnicodeDecodeError as error:
        return [
            Problem(
                where, "", f"expected UTF-8, got byte 0x{line[error.start]:02x} at column {error.start + 1}"
            )
        ]
    except json.JSONDecodeError as error:
        return [Problem(where, "", f"expected one JSON object a line: {error.msg} at column {error.colno}")]
    except _Twice as error:
        return [Problem(where, "", str(error))]
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, lists within lists
        return [Problem(where, "", f"expected one JSON object a line: {error}")]
    if not isinstance(value, dict):
        return [Problem(where, "", "expected a JSON object with id, group and text")]
    problems = []
    for key in _REQUIRED:
        if key not in value:
            other = suggestion(key, [k for k in value if k not in _REQUIRED])
            problems.append(
                Problem(where, key, f"expected the keys {listed(_REQUIRED)}, this one is missing{other}")
            )
        elif not isinstance(value[key], str):
            problems.append(Problem(where, key, f"expected a text, got {value[key]!r}"))
        elif not value[key].strip():
            problems.append(Problem(where, key, "expected a text that is not empty"))
        else:
            message = _not_encodable(value[key])
            if message is not None:
                problems.append(Problem(where, key, message))
    for key in _COUNTS:
        if key in value and (not _is_integer(value[key]) or value[key] < 1):
            problems.append(Problem(where, key, f"expected a count of at least 1, got {value[key]!r}"))
    if "split" in value and value["split"] not in SPLITS:
        near = suggestion(value["split"], SPLITS) if isinstance(value["split"], str) else ""
        message = f"expected one of {listed(SPLITS)}, got {_shown(value['split'])}{near}"
        problems.append(Problem(where, "split", message))
    text = value.get("text")
    problems += _faulty_spans(where, value.get("roles", {}), text if isinstance(text, str) else None)
    problems += _faulty_facts(where, value.get("facts", {}))
    for key in value:
        if key not in _KEYS:
            message = f"unknown key; a prompt has {listed(_KEYS)}{suggestion(key, _KEYS)}"
            problems.append(Problem(where, _printable(key), message))
    if problems:
        return problems
    return Prompt(
        value["id"],
        value["group"],
        value["text"],
        value.get("tokens"),
        value.get("split"),
        MappingProxyType({name: (start, end) for name, (start, end) in value.get("roles", {}).items()}),
        MappingProxyType({name: _frozen(fact) for name, fact in value.get("facts", {}).items()}),
    )


class _Twice(Exception):
    """A key that stands twice in one object, of which JSON readers silently keep the last."""


def _keys_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    twice = [key for index, key in enumerate(keys) if key in keys[:index]]
    if twice:
        raise _Twice(f"expected keys that differ, got '{_printable(twice[0])}' twice in one object")
    return dict(pairs)


def _faulty_spans(where: str, roles: object, text: str | None) -> Iterator[Problem]:
    """What is wrong with the `roles` of a line. text: None where it is wrong itself."""
    if not isinstance(roles, dict):
        message = f"expected a mapping of names to [start, end] in characters, got {_shown(roles)}"
        yield Problem(where, "roles", message)
        return
    for name, span in roles.items():
        key = f"roles.{_printable(name)}"
        if not _NAME.fullmatch(name):
            yield Problem(where, key, _bad_name(name))
        if not isinstance(span, list) or len(span) != 2 or not all(map(_is_integer, span)):
            yield Problem(where, key, f"expected [start, end] in characters of the text, got {_shown(span)}")
            continue
        start, end = span
        if not 0 <= start < end or (text is not None and end > len(text)):
            size = "the text" if text is None else f"the {len(text)} characters of the text"
            yield Problem(where, key, f"expected 0 <= start < end within {size}, got [{start}, {end}]")
        elif text is not None and text[start:end] != text[start:end].strip():
            message = f"expected a span that neither begins nor ends in white space, got {text[start:end]!r}"
            yield Problem(where, key, message)


def _faulty_facts(where: str, facts: object) -> Iterator[Problem]:
    if not isinstance(facts, dict):
        message = f"expected a mapping of names to what is known, got {_shown(facts)}"
        yield Problem(where, "facts", message)
        return
    for name, fact in facts.items():
        key = f"facts.{_printable(name)}"
        if not _NAME.fullmatch(name):
            yield Problem(where, key, _bad_name(name))
        for message in _faulty_fact(fact):
            yield Problem(where, key, message)


def _faulty_fact(fact: object) -> Iterator[str]:
    if isinstance(fact, bool | int) or (isinstance(fact, float) and math.isfinite(fact)):
        return
    texts = [fact] if isinstance(fact, str) else fact
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        yield f"expected a text, a number, true, false or a list of texts, got {_shown(fact)}"
        return
    if not texts:
        yield "expected at least one text in the list, got an empty list"
    for text in texts:
        message = _not_encodable(text)
        if message is not None:
            yield message
        elif not text.strip():
            yield f"expected a text that is not empty, got {_shown(fact)}"


def _bad_name(name: str) -> str:
    return (
        "expected a name of small letters, digits and underscores that begins with a letter, got "
        f"'{_printable(name)}'"
    )


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _shown(value: object) -> str:
    """A value as JSON, cut where it is long; halves of surrogate pairs come out escaped."""
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _frozen(fact: Any) -> Fact:
    frozen: Fact = tuple(fact) if isinstance(fact, list) else fact
    return frozen


def _not_encodable(text: str) -> str | None:
    """JSON can escape half of a surrogate pair (`\\ud83d`), which is no character and no tokenizer reads."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return (
            "expected text that UTF-8 can hold, got half of a surrogate pair "
            f"(\\u{ord(text[error.start]):04x}) as character {error.start + 1}"
        )
    return None


def _empty_split(bank: Bank, chosen: Sequence[Prompt], split: str) -> Problem:
    held = [word for word in SPLITS if any(prompt.split == word for prompt in chosen)]
    without = sum(prompt.split is None for prompt in chosen)
    message = (
        f"expected prompts of the split '{split}', none of the {len(chosen)} chosen is; their splits: "
        f"{listed(held)}, {without} without one"
    )
    return Problem(str(bank.path), "", message)


def _unknown_group(bank: Bank, group: str) -> Problem:
    message = (
        f"expected a group of the bank ({listed(bank.groups)}), got '{group}'{suggestion(group, bank.groups)}"
    )
    return Problem(str(bank.path), "", message)
