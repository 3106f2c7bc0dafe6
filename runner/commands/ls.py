"""`ls`: the runs and sweeps under an output root."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from rich.console import Console
from rich.text import Text

from runner.commands.words import OUTPUT_ROOT, Command, Key, formats, one_of, read
from runner.config.errors import listed
from runner.status import DONE

_SORTS = ("name", "age", "size", "seconds", "status", "model")
SORT: Key[str] = Key("sort", one_of(*_SORTS), "name", "|".join(_SORTS), "order (name; age: newest first)")
FORMAT = formats("table", "json")
COMMAND = Command(
    name="ls",
    about=(
        "Runs and sweeps: how each stands, its trials, failed gates, and its first finding or contrast.\n"
        "PATTERN is a part of NAME/v0001, or a glob. Only manifests and summaries are read."
    ),
    takes="[PATTERN]",
    most=1,
    keys=(SORT, FORMAT, OUTPUT_ROOT),
    examples=("patchbay ls", "patchbay ls 'n300_*' sort=age", "patchbay ls refusal format=json"),
)


def run(words: Sequence[str], console: Console) -> int:
    """Print the list; status 0, also where there is nothing to list. Raises TableError where the output root
    that was asked for is no folder."""
    given = read(COMMAND, words)  # mistakes are told before anything heavy is loaded
    from analyses.runs.folders import run_folders
    from analyses.runs.listing import list_runs
    from analyses.tables.run import TableError

    root, pattern = given[OUTPUT_ROOT], given.free[0] if given.free else None
    if given.has(OUTPUT_ROOT) and not root.is_dir():
        raise TableError(f"output_root: {root} is not there")
    rows = list_runs(root, pattern, sort=given[SORT])
    if given[FORMAT] == "json":
        import orjson

        print(orjson.dumps([asdict(row) for row in rows], option=orjson.OPT_INDENT_2).decode())
        return DONE
    if not rows:
        names = list(dict.fromkeys(folder.parent.name for folder in run_folders(root)))
        if pattern is None or not names:
            told = "holds no runs" if root.is_dir() else "is not there"
            console.print(Text(f"{root} {told}; another folder is given as output_root=DIR"))
        else:
            console.print(Text(f"no run of {root} matches '{pattern}'; it holds {listed(names)}"))
        return DONE
    from analyses.runs.screen import print_runs

    print_runs(rows, console)
    return DONE
