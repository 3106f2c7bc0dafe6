"""`train-organism`: the embedded model, trained anew."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from runner.commands.words import Command

COMMAND = Command(
    name="train-organism",
    about="Train the embedded model anew: about eight minutes on two cores.",
    takes="[--out DIR] [--checkpoint FILE] [--seed N]",
)


def run(words: Sequence[str], console: Console) -> int:
    from organisms.train import main as train

    return train(list(words))
