"""`recheck`: whether published figures can be true together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from runner.commands.words import Command, Key, formats, one_of, read
from runner.config.errors import ConfigurationError, Problem
from runner.status import DONE, INERT

if TYPE_CHECKING:
    from analyses.published.rechecked import Rechecked

CONTRADICTED = INERT  # 3: what is claimed did not happen
_KEY_WIDTH, _PRINTED_WIDTH = 60, 24
_SHOWN = ("contradictory", "figures", "all")
SHOW: Key[str] = Key("show", one_of(*_SHOWN), "figures", "|".join(_SHOWN), "which (figures: no settings)")
FORMAT = formats("table", "json")
COMMAND = Command(
    name="recheck",
    about=(
        "Published figures, recomputed: which are reproduced to their printed digits, which cannot be\n"
        "true beside the others, and of which nothing can be recomputed. FILE is one of your own or an\n"
        "embedded one (transfer, cross_model); without it, all embedded ones. Status 3: a contradiction\n"
        "that the file does not itself declare. docs/recheck.md has the format."
    ),
    takes="[FILE ...]",
    most=None,
    keys=(SHOW, FORMAT),
    examples=(
        "patchbay recheck published/transfer.yaml",
        "patchbay recheck my_paper.yaml show=contradictory",
        "patchbay recheck format=json",
    ),
)


def run(words: Sequence[str], console: Console) -> int:
    """Recheck every file and print what was found. Raises ConfigurationError for files that cannot be
    read."""
    given = read(COMMAND, words)  # mistakes are told before anything heavy is loaded
    from analyses.published.recheck import PublishedError, embedded, find, recheck, unexpected

    found: dict[str, list[Rechecked]] = {}
    problems: list[Problem] = []
    for name in given.free or tuple(map(str, embedded().values())):
        try:
            path = find(name)
            found[str(path)] = recheck(path)
        except PublishedError as error:
            problems += [Problem(str(error.path), key, told) for key, told in error.problems]
    if problems:
        raise ConfigurationError(problems)
    if given[FORMAT] == "json":
        import orjson

        told = {path: [asdict(each) for each in rows] for path, rows in found.items()}
        print(orjson.dumps(told, option=orjson.OPT_INDENT_2).decode())
    else:
        _print(found, given[SHOW], console)
    return CONTRADICTED if any(unexpected(rows) for rows in found.values()) else DONE


def _print(found: Mapping[str, Sequence[Rechecked]], show: str, console: Console) -> None:
    from analyses.published.rechecked import CONTRADICTORY, NOTHING, VERDICTS

    figures = tuple(verdict for verdict in VERDICTS if verdict != NOTHING)
    wanted = {"contradictory": (CONTRADICTORY,), "all": VERDICTS}.get(show, figures)
    for path, rows in found.items():
        counts = Counter(row.verdict for row in rows)
        told = ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS if counts[verdict])
        console.print(Text(f"{Path(path).name}: {told}", style="bold"))
        for verdict in wanted:
            mine = [row for row in rows if row.verdict == verdict]
            if mine:
                table = Table(
                    title=verdict, title_justify="left", box=None, pad_edge=False, show_header=False
                )
                table.add_column(no_wrap=True, overflow="ellipsis", max_width=_KEY_WIDTH)
                table.add_column(max_width=_PRINTED_WIDTH, overflow="fold")
                table.add_column(overflow="fold")
                for row in mine:
                    style = "bold red" if verdict == CONTRADICTORY and not row.expected else ""
                    sentence = f"{row.sentence}; the file says so itself" if row.expected else row.sentence
                    table.add_row(*(Text(cell, style=style) for cell in (row.key, row.printed, sentence)))
                console.print(Text(""), table, sep="\n")
        console.print()
    _end(found, console)


def _end(found: Mapping[str, Sequence[Rechecked]], console: Console) -> None:
    from analyses.published.recheck import unexpected
    from analyses.published.rechecked import CONTRADICTORY

    wrong = sum(len(unexpected(rows)) for rows in found.values())
    declared = sum(row.verdict == CONTRADICTORY and row.expected for rows in found.values() for row in rows)
    if wrong:
        one = "1 figure contradicts what stands beside it."
        told = one if wrong == 1 else f"{wrong} figures contradict what stands beside them."
    else:
        but = f" but the {declared} that the files declare" if declared else ""
        told = f"No figure contradicts what stands beside it{but}."
    console.print(Text(told))
