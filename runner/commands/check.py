"""`check`: identities that must hold, measured on a model."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from runner.commands.words import Command, take_apart

COMMAND = Command(
    name="check",
    about="Identities that must hold (a write of the value that is there changes nothing, ...), measured.",
    takes="model=NAME [suite=full] [KEY=VALUE ...] [--config-dir DIR]",
    examples=("patchbay check model=organism", "patchbay check model=organism suite=full"),
)


def run(words: Sequence[str], console: Console) -> int:
    from runner.check import check_model

    line = take_apart(words)
    return check_model(line.words, line.config_dir, console)
