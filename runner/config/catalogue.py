"""What there is to run, and what one experiment is: `list` and `show`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from runner.config.check import check
from runner.config.compose import compose, config_folders, options
from runner.config.errors import ConfigurationError, Problem, listed, suggestion
from runner.config.resolve import Design, resolve

# libyaml's where it is there, being ten times faster; it builds no more than plain data either.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_GROUPS = ("intervention", "model", "prompts", "readout", "backend", "launch")


def list_experiments(config_dir: Path | None = None) -> list[tuple[str, str]]:
    """(name, question) of every experiment, ours and the user's; of a file that cannot be read, where it
    fails."""
    folders = config_folders(config_dir)
    return [(name, _about("experiment", name, folders)) for name in options("experiment", folders)]


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
        lines += [f"  {name:<{width}}  {_about(group, name, folders)}".rstrip() for name in names]
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


def _about(group: str, name: str, folders: Sequence[Path]) -> str:
    """One line on a file: its question where it is an experiment, else the first sentence of its comment."""
    try:
        text = _path(group, name, folders).read_text(encoding="utf-8")
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
