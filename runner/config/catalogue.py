"""What there is to run, and what one experiment is: `list` and `show`."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from runner.config.check import Experiment, check_experiment
from runner.config.compose import compose, config_folders, options
from runner.config.errors import ConfigurationError, Problem, listed, suggestion
from runner.config.resolve import Design, resolve
from runner.config.stages.known import MEASURE
from runner.graph import nodes_of, stands_in

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
    experiment = check_experiment(compose([f"+experiment={chosen}", *overrides], config_dir))
    text = path.read_text(encoding="utf-8").rstrip()
    return "\n".join([str(path), "", text, "", *_stages_in_words(experiment)])


def _stages_in_words(experiment: Experiment) -> list[str]:
    """The conditions of every stage that measures; of a grid with many cells the first."""
    if not experiment.staged:
        return _in_words(resolve(experiment.spec))
    lines: list[str] = []
    for stage, node in zip(experiment.stages, nodes_of(experiment), strict=True):
        lines += ["", f"stage {stage.name} ({stage.kind}): {node.what} -> {node.gives}"]
        note = stands_in(stage, experiment)
        lines += [f"  {note}"] if note is not None else []
        if stage.kind == MEASURE and stage.spec is not None:
            told = _in_words(resolve(stage.spec), whole_grids=False)
            lines += [f"  {line}" if line else "" for line in told[1:]]
    return lines[1:]


def _in_words(design: Design, *, whole_grids: bool = True) -> list[str]:
    """The conditions in words. whole_grids: with every cell of a grid, not the first alone."""
    lines = [f"With model {design.model.name} ({design.model.layers} layers):"]
    lines += [f"  {note}" for note in design.layer_notes]
    seen: dict[str, int] = {}
    for condition in design.conditions:
        grid = condition.name.partition("[")[0]
        seen[grid] = seen.get(grid, 0) + 1
        if seen[grid] > 1 and not whole_grids:
            continue
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
