"""`try`: the texts of one item in all conditions."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from runner.commands.words import Command, take_apart
from runner.config.errors import ConfigurationError, Problem, listed

COMMAND = Command(
    name="try",
    about="The texts of one item in all conditions, at once; nothing is stored.",
    takes="+experiment=NAME [item=N] [KEY=VALUE ...] [--config-dir DIR]",
    examples=("patchbay try +experiment=n300_kv_only item=3",),
)


def run(words: Sequence[str], console: Console) -> int:
    from runner.config.compose import compose
    from runner.config.sweeps import swept_experiments

    line = take_apart(words)
    chosen = [word for word in line.words if word.startswith("+experiment=")]
    experiments = swept_experiments(compose(chosen, line.config_dir)) if chosen else ()
    if experiments:
        message = f"'{chosen[0]}' sweeps over experiments; expected one of them: {listed(experiments)}"
        raise ConfigurationError([Problem("command line", "try", message)])
    from runner.try_item import try_item

    return try_item(list(line.words), line.config_dir, console)
