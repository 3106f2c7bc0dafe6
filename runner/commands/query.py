"""`query`: SQL over the trials of all runs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from runner.commands.words import OUTPUT_ROOT, Command, Given, Key, folder, formats, read, whole
from runner.status import DONE

FORMAT = formats("table", "csv", "json")
ROWS: Key[int] = Key("rows", whole(1), 40, "N", "rows of a table that are shown (40)")
PARQUET: Key[Path | None] = Key("parquet", folder, None, "FILE", "write the answer to a new Parquet file")
_EXAMPLES = (
    "SELECT run, condition, count(*) AS n, avg(score) AS mean FROM trials_all WHERE status = 'ok' "
    "GROUP BY ALL",
    "SELECT run, condition, write, sum(asked) AS asked, sum(written) AS written FROM receipts GROUP BY ALL",
    "SELECT run, status, model, headline, config->>'$.sampling.seed' AS seed FROM runs ORDER BY started",
)
COMMAND = Command(
    name="query",
    about=(
        "Answers one SELECT over the views trials, receipts, runs, contrasts and gates of all runs, also of\n"
        "those that go on. Without a query it lists the views and their columns. Nothing can be written."
    ),
    takes='"SELECT ..."',
    most=1,
    keys=(FORMAT, ROWS, PARQUET, OUTPUT_ROOT),
    examples=tuple(f'patchbay query "{example}"' for example in _EXAMPLES),
)


def run(words: Sequence[str], console: Console) -> int:
    """Print or write the answer. Raises TableError where there is none."""
    given = read(COMMAND, words)
    if not given.free:
        return _views(given, console)
    from analyses.runs.answers import print_answer, write_csv, write_json, write_parquet
    from analyses.runs.query import query

    answer = query(given.free[0], given[OUTPUT_ROOT])
    for name, reason in answer.skipped.items():
        print(f"left out: {name}: {reason}", file=sys.stderr)
    path = given[PARQUET]
    if path is not None:
        rows = write_parquet(answer, path)
        console.print(Text(f"{rows:,} rows in {path}"))
    elif given[FORMAT] == "csv":
        write_csv(answer, sys.stdout)
    elif given[FORMAT] == "json":
        write_json(answer, sys.stdout)
    else:
        print_answer(answer, console, given[ROWS])
    return DONE


def _views(given: Given, console: Console) -> int:
    from analyses.runs.query import describe

    for view in describe(given[OUTPUT_ROOT]):
        console.print(Text(view.name, style="bold").append(f": {view.says}", style="not bold"))
        if view.of is None:
            told = [f"{name} {kind}" for name, kind in view.columns]
            writes = f"; WRITE.RECEIPT of {', '.join(view.writes)} (see receipts)" if view.writes else ""
            console.print(Padding(Text(", ".join(told) + writes, style="dim"), (0, 0, 0, 2)))
    console.print(Text('A name with a dot stands in quotation marks: "kv.relative_change".'))
    console.print()
    console.print(Text("Examples:", style="bold"))
    for example in COMMAND.examples:
        console.print(Text(f"  {example}"), soft_wrap=True)
    return DONE
