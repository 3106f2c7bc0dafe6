"""What there is to run: `list`. Reads files and composes nothing."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from runner.config.folders import config_folders, options

# libyaml's where it is there, being ten times faster; it builds no more than plain data either.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_NARROWEST = 30  # columns for the text of an entry, however narrow the terminal
# Group -> how a file of it is chosen; NAME stands for the file's name.
_GROUPS = {
    "experiment": "+experiment=NAME",
    "intervention": "+intervention@conditions.MINE=NAME adds it as the condition MINE",
    "model": "model=NAME",
    "prompts": "prompts=NAME",
    "readout": "readouts=[NAME]",
    "backend": "backend=NAME",
    "launch": "launch=NAME",
}
_BANKS = "banks of prompts"
_BANKS_CHOSEN = "prompts.donors.bank=NAME, prompts.targets.bank=NAME; prompts in each language"


def list_experiments(config_dir: Path | None = None) -> list[tuple[str, str]]:
    """(name, question) of every experiment, ours and the user's; of a file that cannot be read, where it
    fails."""
    return _entries("experiment", config_folders(config_dir))


def catalogue(config_dir: Path | None = None, width: int = 110) -> str:
    """Experiments with their questions, then what they can be made of: interventions, models, prompts, banks
    and so on, each under the words that choose it. width: columns at which lines break."""
    folders = config_folders(config_dir)
    lines: list[str] = []
    for group, chosen in _GROUPS.items():
        lines += _block(group, chosen, _entries(group, folders), width)
        if group == "prompts":
            lines += _block(_BANKS, _BANKS_CHOSEN, _banks(folders), width)
    lines += ["Run one:   python -m runner +experiment=NAME", "Read one:  python -m runner show NAME"]
    return "\n".join(lines)


def _block(title: str, chosen: str, entries: Sequence[tuple[str, str]], width: int) -> list[str]:
    """A title, a line for each entry, broken under its own text, and an empty line."""
    names = max((len(name) for name, _ in entries), default=0)
    lines = [f"{title}: {chosen}"]
    for name, about in entries:
        lines += textwrap.wrap(
            about,
            max(width, names + _NARROWEST),
            initial_indent=f"  {name:<{names}}  ",
            subsequent_indent=" " * (names + 4),
            break_on_hyphens=False,
        ) or [f"  {name}"]
    return [*lines, ""]


def _entries(group: str, folders: Sequence[Path]) -> list[tuple[str, str]]:
    return [(name, _about(group, name, folders)) for name in options(group, folders)]


def _banks(folders: Sequence[Path]) -> list[tuple[str, str]]:
    """(name, prompts in each language) of every bank; of two of one name and language, the first counts."""
    found: dict[str, dict[str, str]] = {}
    for folder in folders:
        for path in sorted((folder / "prompts" / "banks").glob("*/*.jsonl")):
            found.setdefault(path.stem, {}).setdefault(path.parent.name, _prompts_in(path))
    return [
        (name, ", ".join(f"{language} {count}" for language, count in sorted(found[name].items())))
        for name in sorted(found)
    ]


def _prompts_in(path: Path) -> str:
    try:
        return str(sum(1 for line in path.read_bytes().splitlines() if line.strip()))
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def path_of(group: str, name: str, folders: Sequence[Path]) -> Path:
    """The file of a group's entry, the user's before ours."""
    return next(path for folder in folders if (path := folder / group / f"{name}.yaml").is_file())


def _about(group: str, name: str, folders: Sequence[Path]) -> str:
    """One line on a file: its question where it is an experiment, else the first sentence of its comment."""
    try:
        text = path_of(group, name, folders).read_text(encoding="utf-8")
        content: Any = yaml.load(text, Loader=_LOADER)
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark is not None else ""
        return f"cannot be read: {line}{error.problem or error.context}"
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        return f"cannot be read: {' '.join(str(error).split())}"
    if isinstance(content, dict) and isinstance(content.get("experiment"), dict):
        question = content["experiment"].get("question")
        if isinstance(question, str) and group == "experiment":
            return " ".join(question.split())
    return _first_comment(text)


def _first_comment(text: str) -> str:
    """The first sentence of the comment that a file begins with."""
    words: list[str] = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# @package"):
            words += line.lstrip("# ").split()
    sentence, stop, _ = " ".join(words).partition(". ")
    return f"{sentence}." if stop else sentence
