"""`list`: what experiments, interventions, models and prompts there are."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from runner.commands.words import Command, take_apart
from runner.status import DONE

COMMAND = Command(
    name="list",
    about="Experiments, interventions, models and prompts, yours of --config-dir DIR among them.",
    examples=("patchbay list", "patchbay list --config-dir my"),
)


def run(words: Sequence[str], console: Console) -> int:
    from runner.config.catalogue import catalogue

    line = take_apart(words)
    console.print(catalogue(line.config_dir, console.width), markup=False, soft_wrap=True)
    return DONE
