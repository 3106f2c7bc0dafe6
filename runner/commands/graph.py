"""`graph`: the stages of an experiment."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from runner.commands.words import Command, take_apart

COMMAND = Command(
    name="graph",
    about="The stages of an experiment, and what flows between them.",
    takes="NAME [format=mermaid] [KEY=VALUE ...] [--config-dir DIR]",
    examples=("patchbay graph refusal_direction", "patchbay graph refusal_direction format=mermaid"),
)


def run(words: Sequence[str], console: Console) -> int:
    from runner.graph import graph

    line = take_apart(words)
    return graph(line.words, line.config_dir, console)
