"""`prune`: old versions go, where the user says so."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from rich.console import Console
from rich.text import Text

from runner.commands.words import OUTPUT_ROOT, Command, Key, age, flag, read, whole
from runner.config.errors import listed, suggestion
from runner.status import CONFIGURATION, DONE

KEEP: Key[int] = Key("keep", whole(1), 3, "N", "the newest versions of each experiment that stay (3)")
OLDER_THAN: Key[timedelta | None] = Key(
    "older_than", age, None, "30d", "only what ended longer ago than that"
)
YES: Key[bool] = Key("yes", flag, False, "true", "remove; without it, only show what would be removed")
COMMAND = Command(
    name="prune",
    about=(
        "Shows which old versions could go, of all experiments or of one; with yes=true it removes them.\n"
        "The newest finished version stays, what is running, and the jobs of sweeps. Rows that later\n"
        "versions took over are copies and stay with them."
    ),
    takes="[NAME]",
    most=1,
    keys=(KEEP, OLDER_THAN, YES, OUTPUT_ROOT),
    examples=("patchbay prune", "patchbay prune n300_controls keep=1 older_than=30d yes=true"),
)


def run(words: Sequence[str], console: Console) -> int:
    """Show what would go, or remove it; status 2 where something could not be removed."""
    given = read(COMMAND, words)  # mistakes are told before anything heavy is loaded
    from analyses.runs.folders import run_folders
    from analyses.runs.listing import disk, span
    from analyses.runs.pruning import plan
    from analyses.runs.screen import Column, print_columns
    from analyses.tables.run import TableError
    from analyses.wording import plural

    root, name = given[OUTPUT_ROOT], given.free[0] if given.free else None
    names = list(dict.fromkeys(folder.parent.name for folder in run_folders(root)))
    if name is not None and name not in names:
        raise TableError(f"no experiment '{name}': {root} holds {listed(names)}{suggestion(name, names)}")
    found = plan(root, name, keep=given[KEEP], older_than=given[OLDER_THAN])
    if not found.remove:
        console.print(Text(f"{root}: nothing to remove"))
    else:
        columns = [
            Column("RUN", [row.run for row in found.remove], 9, least=20),
            Column("STATUS", [row.status for row in found.remove], 8),
            Column("AGE", [span(row.age_seconds) for row in found.remove], 7, right=True),
            Column("SIZE", [disk(row.bytes) for row in found.remove], 6, right=True),
        ]
        print_columns(columns, console)
    for kept, reason in found.kept.items():
        console.print(Text(f"{kept} stays: it {reason}", style="dim"))
    for origin, runs in found.borrowers.items():
        told = f"{listed(runs)} {'has' if len(runs) == 1 else 'have'} copies of rows that {origin} computed"
        console.print(Text(f"{told}: they stay, and their origin names a version that is gone", style="dim"))
    if not found.remove:
        return DONE
    total = f"{plural(len(found.remove), 'version')}, {disk(found.bytes)}"
    if not given[YES]:
        again = " ".join(["patchbay prune", *words, "yes=true"])
        console.print(Text(f"would remove {total}; nothing has been removed. To remove them:\n  {again}"))
        return DONE
    tried = [_remove(Path(row.folder)) for row in found.remove]
    refused = [sentence for sentence in tried if sentence is not None]
    for sentence in refused:
        console.print(Text(sentence, style="red"))
    gone = len(found.remove) - len(refused)
    console.print(Text(f"removed {plural(gone, 'version')}" if refused else f"removed {total}"))
    return CONFIGURATION if refused else DONE


def _remove(folder: Path) -> str | None:
    """Remove a version whole; a sentence where somebody writes it or it cannot be removed."""
    aside = folder.with_name(f".{folder.name}.{os.getpid()}.removed")
    try:
        with (folder / "lock").open("ab") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return f"{folder} stays: another process has begun to write it"
            folder.rename(aside)  # at once: a reader sees the whole version or none
        shutil.rmtree(aside)
    except OSError as error:
        left = f"; what is left of it is in {aside}" if aside.exists() else ""
        return f"{folder} cannot be removed ({error.strerror or error}){left}"
    return None
