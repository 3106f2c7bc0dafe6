"""How lists of runs and answers to queries look in a terminal: columns that fit its width."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from analyses.runs.listing import LIVE, SWEEP, Row, disk, span
from analyses.wording import count

_GAP = 2
_STYLES = {
    "done": "green",
    "running": "cyan",
    "starting": "cyan",
    "elsewhere": "yellow",
    "interrupted": "yellow",
    "killed": "yellow",
    "empty": "dim",
    "failed": "bold red",
    "broken": "bold red",
}
_LONGEST_NAME = 44  # of a run that is shown whole, to be copied, also where there is little room
_EXTRA = 75  # columns to be kept less than this are no more than extra
_WHOLE = 36  # columns in which most of what was found has room
_NARROWEST = 24  # columns below which what was found says nothing


@dataclass(frozen=True)
class Column:
    """A column of a list. keep: columns with a lower one are left out first; least: how narrow it may get (0:
    it keeps the width of its cells); rather: columns that are no more than extra go before it gets narrower
    than that; right: figures stand to the right."""

    head: str
    cells: Sequence[str]
    keep: int
    right: bool = False
    least: int = 0
    rather: int = 0
    styles: Sequence[str] = ()

    @property
    def width(self) -> int:
        return max(cell_len(self.head), *(cell_len(cell) for cell in self.cells))


def print_runs(rows: Sequence[Row], console: Console) -> None:
    """Print a line for each run, as many columns as the terminal has room for, then what is the matter with
    those that have something the matter."""
    columns = [
        Column("RUN", [row.run for row in rows], 99, least=_LONGEST_NAME),
        Column(
            "STATUS", [_status(row) for row in rows], 98, styles=[_STYLES.get(r.status, "") for r in rows]
        ),
        Column("MODEL", [row.model or "" for row in rows], 60, least=8),
        Column("N", [_whole(row.n) for row in rows], 40, right=True),
        Column("OK", [_ok(row) for row in rows], 90, right=True),
        Column(
            "INVALID", [_whole(row.invalid) for row in rows], 71, right=True, styles=["yellow"] * len(rows)
        ),
        Column("FAILED", [_whole(row.failed) for row in rows], 72, right=True, styles=["red"] * len(rows)),
        Column("REUSED", [_whole(row.reused) for row in rows], 30, right=True),
        Column("GATES", [_gates(row) for row in rows], 80, styles=[_gate_style(row) for row in rows]),
        Column("FOUND", [row.headline or "" for row in rows], 85, least=_NARROWEST, rather=_WHOLE),
        Column("AGE", [span(row.age_seconds) for row in rows], 75, right=True),
        Column("TIME", [span(row.seconds) for row in rows], 20, right=True),
        Column("SIZE", [disk(row.bytes) for row in rows], 10, right=True),
    ]
    print_columns([c for c in columns if any(cell not in ("", "0") for cell in c.cells)], console)
    for row in rows:
        if row.note:
            console.print(Text(f"{row.run}: {row.note}", style="yellow"))


def print_columns(columns: Sequence[Column], console: Console) -> list[str]:
    """Print columns beside one another. Where they do not fit, those that may get narrower do, and after
    that those are left out that are least to be kept; their heads are returned."""
    shown, widths = _fitted(list(columns), console.width)
    console.print(Text(_line([c.head for c in shown], shown, widths), style="bold"), no_wrap=True, crop=True)
    for number in range(len(shown[0].cells)):
        line = Text()
        for column, width in zip(shown, widths, strict=True):
            style = column.styles[number] if column.styles else ""
            line.append(_cell(column.cells[number], width, column.right), style=style)
            line.append(" " * _GAP)
        line.rstrip()
        console.print(line, no_wrap=True, crop=True)
    return [column.head for column in columns if column not in shown]


def _fitted(columns: Sequence[Column], room: int) -> tuple[list[Column], list[int]]:
    """The columns that are shown, with their widths."""
    for droppable, rather in ((_EXTRA, True), (math.inf, False)):
        shown = list(columns)
        while True:
            least = [max(column.least, column.rather if rather else 0) for column in shown]
            widths, over = _narrowed(shown, room, least)
            if over <= 0:
                return shown, widths
            lowest = min(shown, key=lambda column: column.keep)
            if lowest.keep >= droppable or len(shown) == 1:
                break
            shown.remove(lowest)
    return shown, widths


def _narrowed(columns: Sequence[Column], room: int, least: Sequence[int]) -> tuple[list[int], int]:
    """Widths of columns, the widest of those that may get narrower first; and by how much they are still too
    wide together."""
    widths = [column.width for column in columns]
    over = sum(widths) + _GAP * (len(columns) - 1) - room
    for number in sorted(range(len(columns)), key=lambda n: -widths[n]):
        if over > 0 and columns[number].least:
            give = min(over, max(widths[number] - least[number], 0))
            widths[number] -= give
            over -= give
    return widths, over


def _line(cells: Sequence[str], columns: Sequence[Column], widths: Sequence[int]) -> str:
    parts = (_cell(cell, w, c.right) for cell, c, w in zip(cells, columns, widths, strict=True))
    return (" " * _GAP).join(parts).rstrip()


def _cell(text: str, width: int, right: bool) -> str:
    if cell_len(text) > width:
        return set_cell_size(text, width - 1) + "…"
    room = " " * (width - cell_len(text))
    return room + text if right else text + room


def _status(row: Row) -> str:
    if row.status in LIVE and row.planned:
        done = sum(n for n in (row.ok, row.invalid, row.failed) if n is not None)
        return f"{row.status} {100 * done // row.planned}%"
    return row.status


def _ok(row: Row) -> str:
    if row.ok is None or row.planned is None:
        return _whole(row.ok)
    if row.kind == SWEEP:
        return f"{row.ok}/{row.planned} jobs"
    return count(row.ok) if row.ok == row.planned else f"{count(row.ok)}/{count(row.planned)}"


def _gates(row: Row) -> str:
    told: Mapping[str, int | None] = {"fail": row.gates_failed, "warn": row.gates_warned}
    return ", ".join(f"{number} {word}" for word, number in told.items() if number)


def _gate_style(row: Row) -> str:
    return "bold red" if row.gates_failed else "yellow"


def _whole(value: int | None) -> str:
    return "" if value is None else count(value)
