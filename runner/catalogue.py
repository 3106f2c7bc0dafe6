"""What there is to run, and what one experiment is: `list` and `show`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from runner.check import check
from runner.compose import compose, config_folders, options
from runner.errors import ConfigurationError, Problem, listed, suggestion
from runner.resolve import Design, resolve

_GROUPS = ("intervention", "model", "prompts", "readout", "backend", "launch")


def list_experiments(config_dir: Path | None = None) -> list[tuple[str, str]]:
    """(name, question) of every experiment, ours and the user's. Raises ConfigurationError for a file that is
    not YAML."""
    folders = config_folders(config_dir)
    return [(name, _question(name, folders)) for name in options("experiment", folders)]


def catalogue(config_dir: Path | None = None) -> str:
    """Experiments with their questions, then what they can be made of: interventions, models, prompts and so
    on."""
    folders = config_folders(config_dir)
    experiments = list_experiments(config_dir)
    width = max((len(name) for name, _ in experiments), default=0)
    lines = ["experiment"]
    lines += [f"  {name:<{width}}  {question}".rstrip() for name, question in experiments]
    for group in _GROUPS:
        lines += ["", group]
        names = options(group, folders)
        width = max((len(name) for name in names), default=0)
        lines += [
            f"  {name:<{width}}  {_first_comment(_path(group, name, folders))}".rstrip() for name in names
        ]
    lines += ["", "Run one:   python -m runner +experiment=NAME", "Read one:  python -m runner show NAME"]
    return "\n".join(lines)


def show(name: str, overrides: Sequence[str] = (), config_dir: Path | None = None) -> str:
    """An experiment's YAML with its comments, then its conditions in words as they resolve with the overrides
    given.

    Raises ConfigurationError for an unknown experiment and for whatever is wrong with it.
    """
    folders = config_folders(config_dir)
    chosen = name.removeprefix("+experiment=")
    known = options("experiment", folders)
    if chosen not in known:
        message = f"expected an experiment ({listed(known)}), got '{chosen}'{suggestion(chosen, known)}"
        raise ConfigurationError([Problem("command line", "show", message)])
    path = _path("experiment", chosen, folders)
    spec = check(compose([f"+experiment={chosen}", *overrides], config_dir))
    text = path.read_text(encoding="utf-8").rstrip()
    return "\n".join([str(path), "", text, "", *_in_words(resolve(spec))])


def _in_words(design: Design) -> list[str]:
    lines = [f"With model {design.model.name} ({design.model.layers} layers):"]
    lines += [f"  {note}" for note in design.layer_notes]
    for condition in design.conditions:
        label = "" if condition.label == condition.name else f": {condition.label}"
        lines += ["", f"{condition.name}{label}", *(f"  {sentence}" for sentence in condition.words)]
    return lines


def _path(group: str, name: str, folders: Sequence[Path]) -> Path:
    return next(path for folder in folders if (path := folder / group / f"{name}.yaml").is_file())


def _question(name: str, folders: Sequence[Path]) -> str:
    path = _path("experiment", name, folders)
    try:
        content: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigurationError([Problem(str(path), "", f"not readable as plain YAML: {error}")]) from error
    if isinstance(content, dict) and isinstance(content.get("experiment"), dict):
        question = content["experiment"].get("question")
        if isinstance(question, str):
            return question
    return _first_comment(path)


def _first_comment(path: Path) -> str:
    """The first sentence of the comment that a file begins with."""
    words: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# @package"):
            words += line.lstrip("# ").split()
    sentence, stop, _ = " ".join(words).partition(". ")
    return f"{sentence}." if stop else sentence
