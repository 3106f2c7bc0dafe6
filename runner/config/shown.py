"""What one experiment is, in its file's words and in ours: `show`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from runner.config.catalogue import path_of
from runner.config.check import Experiment, check_experiment
from runner.config.compose import compose
from runner.config.errors import ConfigurationError, Problem, listed, suggestion
from runner.config.folders import config_folders, options
from runner.config.resolve import Design, resolve
from runner.config.stages.known import MEASURE
from runner.config.sweeps import show_sweep, swept_experiments
from runner.graph import nodes_of, stands_in


def show(name: str, overrides: Sequence[str] = (), config_dir: Path | None = None) -> str:
    """An experiment's YAML with its comments, then its conditions in words as they resolve with the overrides
    given, and the jobs that it sweeps over.

    Raises ConfigurationError for an unknown experiment and for whatever is wrong with it.
    """
    folders = config_folders(config_dir)
    chosen = name.removeprefix("+experiment=")
    known = options("experiment", folders)
    if chosen not in known:
        message = f"expected an experiment ({listed(known)}), got '{chosen}'{suggestion(chosen, known)}"
        raise ConfigurationError([Problem("command line", "show", message)])
    path = path_of("experiment", chosen, folders)
    composed = compose([f"+experiment={chosen}", *overrides], config_dir)
    lines = [str(path), "", path.read_text(encoding="utf-8").rstrip()]
    if not swept_experiments(composed):  # else it has no conditions of its own
        lines += ["", *_stages_in_words(check_experiment(composed))]
    return "\n".join([*lines, *show_sweep(composed, config_dir)])


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
