"""The sub-commands: one module each, imported when it is called.

A module has `COMMAND`, what its help says and which words it takes, and `run(words, console) -> status`.
"""

from __future__ import annotations

import gc
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runner.commands.words import Command, wants_help
from runner.config.errors import ConfigurationError, Problem, suggestion
from runner.status import DONE

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class Entry:
    """A sub-command in the list of all. usage: how it is written; says: what it does, in a few words."""

    module: str
    usage: str
    says: str


BEFORE: dict[str, Entry] = {
    "list": Entry("list_all", "list", "experiments, interventions, models, prompts"),
    "show": Entry("show", "show NAME", "an experiment: its YAML, its conditions in words"),
    "graph": Entry("graph", "graph NAME [format=mermaid]", "its stages, and what flows between them"),
    "try": Entry("try_one", "try +experiment=NAME item=3", "texts of one item in all conditions, at once"),
    "check": Entry("check", "check model=NAME [suite=full]", "identities that must hold, measured"),
    "train-organism": Entry("train_organism", "train-organism", "train the embedded model anew"),
}
AFTER: dict[str, Entry] = {
    "ls": Entry("ls", "ls [PATTERN]", "runs: how they stand, and what they found"),
    "report": Entry("report", "report RUN", "write report.html and the figures of a run anew"),
    "compare": Entry("compare", "compare RUN RUN", "runs on the items that they share"),
    "query": Entry("query", 'query "SELECT ..."', "SQL over the trials of all runs"),
    "repro": Entry("repro", "repro RUN", "run a sample of a run's trials again"),
    "rescore": Entry("rescore", "rescore RUN readout=NAME", "score stored texts again, without the model"),
    "recheck": Entry("recheck", "recheck [FILE]", "can published figures be true together?"),
    "prune": Entry("prune", "prune [NAME] [keep=3]", "remove old versions"),
}
ENTRIES = BEFORE | AFTER


def subcommand(name: str, words: Sequence[str], console: Callable[[], Console]) -> int:
    """Carry out a sub-command, or print its help. console: makes what it prints to. Raises ConfigurationError
    for one that does not exist."""
    if name not in ENTRIES:
        known = ", ".join(ENTRIES)
        hint = suggestion(name, ENTRIES)
        message = f"no such command (commands: {known}){hint}; an experiment is run by +experiment={name}"
        raise ConfigurationError([Problem("command line", name, message)])
    module = importlib.import_module(f"runner.commands.{ENTRIES[name].module}")
    command: Command = module.COMMAND
    if wants_help(words):
        print(command.help(), end="")
        return DONE
    run: Callable[[Sequence[str], Console], int] = module.run
    gc.enable()
    return run(words, console())


def overview() -> str:
    """All sub-commands, a line each, for the help of the program."""
    width = len("+experiment=NAME [KEY=VALUE ...]")  # as the lines above it in the help
    groups = (BEFORE, AFTER)
    return "\n\n".join(
        "\n".join(f"  patchbay {entry.usage:<{width}}  {entry.says}" for entry in group.values())
        for group in groups
    )
