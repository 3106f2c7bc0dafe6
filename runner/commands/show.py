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
    from runner.config.shown import show

    line = take_apart(words)
    if not line.words:
        raise ConfigurationError([Problem("command line", "show", "expected the name of an experiment")])
    name, rest = line.words[0].removeprefix("+experiment="), line.words[1:]
    console.print(show(name, list(rest), line.config_dir), markup=False)
    return DONE
