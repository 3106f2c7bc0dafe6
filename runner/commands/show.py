"""`show`: one experiment, as its file has it and in words."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from runner.commands.words import Command, take_apart
from runner.config.errors import ConfigurationError, Problem
from runner.status import DONE

COMMAND = Command(
    name="show",
    about="The YAML of an experiment (or intervention, model, prompts), and its conditions in words.",
    takes="NAME [KEY=VALUE ...] [--config-dir DIR]",
    examples=("patchbay show n300_kv_only", "patchbay show n300_kv_only experiment.n=20"),
)


def run(words: Sequence[str], console: Console) -> int:
    from runner.config.catalogue import show
    from runner.config.compose import compose, config_folders, options
    from runner.config.sweeps import show_sweep, swept_experiments

    line = take_apart(words)
    if not line.words:
        raise ConfigurationError([Problem("command line", "show", "expected the name of an experiment")])
    name, rest = line.words[0].removeprefix("+experiment="), line.words[1:]
    lines: list[str] = []
    if name in options("experiment", config_folders(line.config_dir)):
        chosen = (f"+experiment={name}", *rest)
        lines = show_sweep(chosen, line.config_dir)
        composed = compose(chosen, line.config_dir)
        if swept_experiments(composed):  # of its own it has no conditions to show
            file = composed.files[-1]
            lines = [str(file), "", file.read_text(encoding="utf-8").rstrip(), *lines]
            console.print("\n".join(lines), markup=False)
            return DONE
    console.print("\n".join([show(name, list(rest), line.config_dir), *lines]), markup=False)
    return DONE
