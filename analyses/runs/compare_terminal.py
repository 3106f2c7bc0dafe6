"""A comparison of runs on the terminal: what came out the same, what differs, and by how much."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby
from typing import TypeVar

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from analyses.runs.comparison import Compared, Comparison, Effect, Tested, Versus
from analyses.runs.differences import Difference
from analyses.wording import bare_p, count, figure, listed, plural, share, together

MOST_ROWS = 40  # of a table; the page has all
MOST_KEYS = 8  # of one kind of difference
MOST_SENTENCES = 3
_WIDE = 100  # columns from which on the interval has a place of its own
_LONG = 60  # characters of a value
_HASH, _HASH_SHOWN = re.compile(r"[0-9a-f]{40,64}"), 12  # of a commit or a file
_Row = TypeVar("_Row", bound=Tested)


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Print a comparison: for each run against the first, the conditions, the effects and what differs."""
    for side in comparison.sides:
        if side.warning:
            console.print(Text(side.warning, style="yellow"))
        if side.failing:
            console.print(
                Text(f"{side.name}: {plural(len(side.failing), 'gate')} failed: {side.failing[0]}", "red")
            )
    for one in comparison.versus:
        _print(one, console)
    console.print(
        Text(
            "Paired on shared items, clustered by donor and target; Holm over "
            f"{plural(comparison.family, 'test')}.",
            style="dim",
        )
    )


def short_names(first: str, second: str) -> tuple[str, str]:
    """Two runs of one experiment by their versions; others by their whole names."""
    (mine, _, one), (theirs, _, other) = first.rpartition("/"), second.rpartition("/")
    return (one, other) if mine == theirs else (first, second)


def value_in_words(value: object) -> str:
    """A value of a configuration in a line."""
    told = listed(list(map(str, value))) if isinstance(value, list | tuple) else str(value)
    if _HASH.fullmatch(told):
        return told[:_HASH_SHOWN]
    return told if len(told) <= _LONG else f"{told[: _LONG - 3]}..."


def items_in_words(one: Versus, names: tuple[str, str]) -> str:
    """Which items and conditions both runs have, and which only one."""
    parts = [f"{plural(one.shared, 'item')} in both"]
    for number, name, conditions in (
        (one.only_first, names[0], one.names_first),
        (one.only_second, names[1], one.names_second),
    ):
        parts += [f"{count(number)} only in {name}"] if number else []
        parts += [f"only {name} has {listed(conditions)}"] if conditions else []
    parts += [f"{mine} of {names[0]} does what {other} of {names[1]} does" for mine, other in one.renamed]
    return "; ".join(parts) + "."


def _print(one: Versus, console: Console) -> None:
    names = short_names(one.first, one.second)
    console.print()
    console.print(Text(f"{one.second} against {one.first}", style="bold"))
    console.print(Text(one.headline))
    for operation in one.operations:
        console.print(Text(operation.sentence, style="red" if operation.warns else "yellow"))
    for note in one.notes:
        console.print(Text(note, style="yellow"))
    wide = console.width >= _WIDE
    if one.conditions:
        readouts = listed(list(dict.fromkeys(each.readout for each in one.conditions if each.readout)))
        console.print(_conditions(one.conditions, names, readouts, wide))
        _more(one.conditions, console)
    moved = [each for each in one.effects if each.test is not None]
    if moved:
        console.print(_effects(moved, names, wide))
        _more(moved, console)
    for each in one.shown[:MOST_SENTENCES]:
        console.print(Text(each.sentence))
    if len(one.shown) > MOST_SENTENCES:
        left = plural(len(one.shown) - MOST_SENTENCES, "further difference")
        console.print(Text(f"{left}, in bold above; the page has all sentences", style="dim"))
    console.print(Text(items_in_words(one, names), style="dim"))
    _print_differences(one.differences, names, console)


def _conditions(rows: Sequence[Compared], names: tuple[str, str], readouts: str, wide: bool) -> Table:
    shared = " of shared trials" if any(each.test for each in rows) else ""
    title = f"mean {readouts}{shared}" if readouts else "conditions"
    table = _table(title, ("condition", *names, "difference"), wide, "same")
    for each in _largest(rows):
        means = together(each.mean_first, each.mean_second) if each.readout else ["-", "-"]
        same = share(each.same.same, each.same.of) if each.same.of else "-"
        _row(table, each, [each.condition], means, same, wide)
    return table


def _effects(rows: Sequence[Effect], names: tuple[str, str], wide: bool) -> Table:
    table = _table("effect of a condition against another", ("contrast", *names, "difference"), wide, None)
    for each in _largest(rows):
        means = together(each.effect_first, each.effect_second)
        _row(table, each, [f"{each.condition} - {each.against}"], means, None, wide)
    return table


def _table(title: str, columns: Sequence[str], wide: bool, last: str | None) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    first, *numbers = columns
    table.add_column(first, overflow="fold")
    for name in (*numbers, *(["95% CI"] if wide else []), "p", "pairs", *([last] if last else [])):
        table.add_column(name.replace("/", "/\n"), justify="right", overflow="fold")
    return table


def _row(
    table: Table,
    each: Tested,
    head: list[str],
    means: Sequence[str],
    last: str | None,
    wide: bool,
) -> None:
    test = each.test
    told, interval, p = "-", "-", "-"
    if test is not None:
        told = figure(test.mean)
        if test.ci_low is not None and test.ci_high is not None:
            told, low, high = together(test.mean, test.ci_low, test.ci_high)
            interval = f"{low} to {high}"
        p = "-" if each.p_holm is None else bare_p(each.p_holm)
    cells = [*head, *means, told, *([interval] if wide else []), p, count(0 if test is None else test.n)]
    # As text: the cell of a grid, `name[axis=value]`, would be read as markup.
    table.add_row(
        *(Text(cell) for cell in (*cells, *([last] if last is not None else []))), style="bold" * each.shown
    )


def _largest(rows: Sequence[_Row]) -> Sequence[_Row]:
    """All rows in their order, or of very many those that differ most."""
    if len(rows) <= MOST_ROWS:
        return rows
    return sorted(rows, key=lambda each: -abs(each.difference or 0.0))[:MOST_ROWS]


def _more(rows: Sequence[object], console: Console) -> None:
    if len(rows) > MOST_ROWS:
        left = count(len(rows) - MOST_ROWS)
        console.print(Text(f"  the {MOST_ROWS} that differ most; {left} more on the page", style="dim"))


def _print_differences(found: Sequence[Difference], names: tuple[str, str], console: Console) -> None:
    if not found:
        console.print(Text("Configuration, model, prompts, packages and machine are the same.", style="dim"))
        return
    table = Table(box=box.SIMPLE_HEAD, title="what differs", title_justify="left")
    for name in ("", "key", *names):
        table.add_column(name.replace("/", "/\n"), overflow="fold")
    for of, group in groupby(found, key=lambda each: each.of):
        entries = list(group)
        for place, each in enumerate(entries[:MOST_KEYS]):
            values = (value_in_words(each.first), value_in_words(each.second))
            table.add_row(*(Text(cell) for cell in ("" if place else of, each.key, *values)))
        if len(entries) > MOST_KEYS:
            table.add_row("", Text(f"and {count(len(entries) - MOST_KEYS)} more", style="dim"), "", "")
    console.print(table)
