"""How a summary looks in a terminal: two tables, then one sentence per contrast and per gate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from analyses.markdown import others, percent, repeat_cell, with_note
from analyses.wording import count, figure, p_value

WIDTH = 110
_WIDE = 100
_SIDE_BY_SIDE = 2
_MAIN = ("mean", "sd", "med", "range")
_SHORT = {"markers": "mark", "perplexity": "ppl"}
_MOST_APART = 4  # columns of other readouts in one table
_SHARES = (">=8", ">=5", "0")
_VERDICTS = {"met": "green", "not met": "bold red", "undecided": "yellow"}
_STYLES = {"fail": "bold red", "warn": "yellow", "expected": "dim", "pass": "green"}


def print_summary(console: Console, summary: Mapping[str, Any]) -> None:
    """Print conditions, contrasts and gates of a summary; no line is wider than 110 columns or the
    terminal."""
    width = min(WIDTH, console.width)
    if summary["unfinished"]:
        name = summary["experiment"].get("name", "This run")
        console.print(Text(f"{name}: {summary['unfinished']}", style=_STYLES["fail"]), width=width)
    # A table that does not fit loses its last columns without a word.
    beside = others(summary)
    fit = _MOST_APART if width >= _WIDE else 0
    console.print(_conditions(summary, beside[:fit], main=True), width=width)
    for start in range(fit, len(beside), _MOST_APART):
        console.print(_conditions(summary, beside[start : start + _MOST_APART], main=False), width=width)
    if summary["contrasts"]:
        console.print(_contrasts(summary), width=width)
    for start in range(0, len(summary["repeats"]), _SIDE_BY_SIDE):
        console.print(_repeats(summary["repeats"][start : start + _SIDE_BY_SIDE]), width=width)
    for each in summary["contrasts"]:
        console.print(Text(with_note(each)), width=width)
        if each.get("adjusted"):
            console.print(Text(each["adjusted"]["sentence"]), width=width)
    for each in summary["checks"]:
        line = Text(f"{each['verdict']}: ", style=_VERDICTS[each["verdict"]])
        line.append(each["sentence"], style="")
        console.print(line, width=width)
    for each in (*summary["trends"], *summary["repeats"]):
        console.print(Text(each["sentence"]), width=width)
    for gate in summary["gates"]:
        line = Text(f"{gate['verdict']}: ", style=_STYLES[gate["verdict"]])
        line.append(gate["sentence"], style="")
        console.print(line, width=width)


def _conditions(summary: Mapping[str, Any], beside: Sequence[str], *, main: bool) -> Table:
    """One row per condition: the primary readout (`main`), and the means of the readouts beside it."""
    primary = summary["primary"]
    title = f"{primary} by condition" if main else "other readouts, means"
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title=title, title_justify="left")
    table.add_column("condition", overflow="fold", min_width=14, max_width=34)
    shares = _SHARES if primary == "score" else ()
    heads = ["n", *((*_MAIN, *shares) if main else ()), *(_SHORT.get(column, column) for column in beside)]
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    for name, condition in summary["conditions"].items():
        readouts = condition["readouts"]
        found = readouts.get(primary, {})
        cells = [count(condition["n"])]
        if main:
            cells += [_short(found.get(key)) for key in ("mean", "sd", "median")]
            cells.append(_range(found.get("minimum"), found.get("maximum")))
            cells += [percent(found.get(key)) for key in ("strong", "moderate", "none")[: len(shares)]]
        cells += [_short(readouts.get(column, {}).get("mean")) for column in beside]
        table.add_row(Text(_told(name, condition["label"])), *cells)
    return table


def _told(name: str, label: str) -> str:
    """Name and label; the cell of a grid, which is in both, once."""
    cell = name[name.index("[") :] if "[" in name else ""
    own = label.removesuffix(cell).rstrip() if cell else label
    return name if own in (name, name.removesuffix(cell)) else f"{name}: {own}"


def _contrasts(summary: Mapping[str, Any]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title="contrasts", title_justify="left")
    table.add_column("contrast", overflow="fold", min_width=14, max_width=46)
    for head in ("n", "diff", "95% CI", "p (Holm)", "d_z ddof 1", "eff. n", "df"):
        table.add_column(head, justify="right", no_wrap=True)
    for each in summary["contrasts"]:
        tost = each["equivalence"]
        interval = "-" if each["ci_low"] is None else f"{figure(each['ci_low'])} to {figure(each['ci_high'])}"
        table.add_row(
            Text(
                f"{each['condition']} - {each['against']}"
                + (f", same within {tost['margin']:g}" if tost else "")
            ),
            "0" if each["n"] is None else count(each["n"]),
            _short(each["difference"]),
            interval,
            "-" if each["p_holm"] is None else p_value(each["p_holm"]).removeprefix("p ").removeprefix("= "),
            _short(each["d_z_ddof1"]),
            "-" if each["effective_n"] is None else count(each["effective_n"]),
            "-" if each["df"] is None else str(each["df"]),
        )
    return table


def _repeats(found: Sequence[Mapping[str, Any]]) -> Table:
    """One row per repeat, one column per contrast."""
    title = "by repeat, each taken alone: difference and 95% CI"
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title=title, title_justify="left")
    table.add_column("repeat", justify="right")
    for each in found:
        table.add_column(Text(f"{each['condition']} - {each['against']}"), justify="right", overflow="fold")
    for rows in zip(*(each["rows"] for each in found), strict=True):
        table.add_row(str(rows[0]["repeat"]), *map(repeat_cell, rows))
    table.add_row("leaves out 0", *(f"{each['excluding_zero']} of {each['of']}" for each in found))
    return table


def _short(value: float | None) -> str:
    """Two decimals, fewer for large numbers, so that a perplexity of 12345.67 does not break the table."""
    if value is None:
        return "-"
    return figure(value, 2 if abs(value) < 100 else 0 if abs(value) >= 1000 else 1)


def _range(low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return "-"
    return "-".join(f"{value:g}" if value == round(value) else f"{value:.1f}" for value in (low, high))
