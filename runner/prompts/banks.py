"""Prompt banks: JSON lines with id, group and text, read strictly."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from runner.config.errors import ConfigurationError, Problem, listed, suggestion

_REQUIRED = ("id", "group", "text")
_OPTIONAL = {"tokens": int, "words": int}


@dataclass(frozen=True)
class Prompt:
    """One prompt of a bank. tokens: the count that the bank states, None where it states none."""

    id: str
    group: str
    text: str
    tokens: int | None = None


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

    def only(self, groups: str | Sequence[str]) -> tuple[Prompt, ...]:
        """The prompts of the groups named, in the bank's order; `all` for every group.

        Raises ConfigurationError for a group that the bank does not have.
        """
        if groups == "all":
            return self.prompts
        unknown = [group for group in groups if group not in self.groups]
        if unknown or not groups:
            raise ConfigurationError(
                [_unknown_group(self, group) for group in unknown]
                or [Problem(str(self.path), "", "expected at least one group, got an empty list")]
            )
        return tuple(prompt for prompt in self.prompts if prompt.group in groups)


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
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return [
            Problem(
                where, "", f"expected UTF-8, got byte 0x{line[error.start]:02x} at column {error.start + 1}"
            )
        ]
    except json.JSONDecodeError as error:
        return [Problem(where, "", f"expected one JSON object a line: {error.msg} at column {error.colno}")]
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
    for key, kind in _OPTIONAL.items():
        if key in value and (
            not isinstance(value[key], kind) or isinstance(value[key], bool) or value[key] < 1
        ):
            problems.append(Problem(where, key, f"expected a count of at least 1, got {value[key]!r}"))
    known = (*_REQUIRED, *_OPTIONAL)
    for key in value:
        if key not in known:
            message = f"unknown key; a prompt has {listed(known)}{suggestion(key, known)}"
            shown = key.encode("utf-8", "backslashreplace").decode("utf-8")
            problems.append(Problem(where, shown, message))
    if problems:
        return problems
    return Prompt(value["id"], value["group"], value["text"], value.get("tokens"))


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


def _unknown_group(bank: Bank, group: str) -> Problem:
    message = (
        f"expected a group of the bank ({listed(bank.groups)}), got '{group}'{suggestion(group, bank.groups)}"
    )
    return Problem(str(bank.path), "", message)
