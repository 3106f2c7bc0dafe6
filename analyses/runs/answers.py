"""How the answer to a query is written: as a table for a terminal, CSV, JSON or Parquet."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any, TextIO

import orjson
import pyarrow.parquet as pq
from rich.console import Console
from rich.text import Text

from analyses.runs.query import Answer, QueryError
from analyses.runs.screen import Column, print_columns
from analyses.wording import count, plural

_NARROWEST = 12  # of a column of texts
_NAMED = 8  # columns that did not fit and are named
_LONGEST = 400  # characters of a cell that are looked at


def print_answer(answer: Answer, console: Console, most: int) -> None:
    """Print an answer as aligned columns: the first `most` rows, and how many there are."""
    shown: list[Mapping[str, Any]] = []
    total = 0
    for batch in answer.batches:
        total += batch.num_rows
        if len(shown) < most:
            shown += batch.slice(0, most - len(shown)).to_pylist()
    columns = [
        _column(name, [row[name] for row in shown], place) for place, name in enumerate(answer.columns)
    ]
    left_out = print_columns(columns, console)
    if total > len(shown):
        console.print(Text(f"{count(len(shown))} of {count(total)} rows; more with rows=N, or format=csv"))
    else:
        console.print(Text(plural(total, "row"), style="dim"))
    if left_out:
        named = [*left_out[:_NAMED], *(["..."] if len(left_out) > _NAMED else [])]
        told = f"{plural(len(left_out), 'column')} more than fit: {', '.join(named)}"
        console.print(Text(f"{told}; all with format=csv or json", style="yellow"))


def _column(name: str, values: list[Any], place: int) -> Column:
    figures = all(value is None or isinstance(value, int | float | Decimal) for value in values)
    cells = [_cell(value) for value in values]
    least = 0 if figures else min(_NARROWEST, max((len(cell) for cell in cells), default=0))
    return Column(name, cells, keep=-place, right=figures and bool(values), least=least)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return "undefined" if math.isnan(value) else f"{value:.4g}" if abs(value) < 1e6 else f"{value:,.0f}"
    if isinstance(value, str):
        return value[:_LONGEST].replace("\n", " ").replace("\r", " ").replace("\t", " ")
    if isinstance(value, int):
        return str(value)
    return orjson.dumps(value, default=str).decode()[:_LONGEST]


def write_csv(answer: Answer, file: TextIO) -> None:
    """The answer as CSV with a head; lists and maps as JSON, what is missing as an empty cell."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(answer.columns)
    for row in _rows(answer):
        writer.writerow([_csv(value) for value in row.values()])


def _csv(value: Any) -> Any:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return orjson.dumps(value, default=str).decode() if isinstance(value, list | dict | tuple) else value


def write_json(answer: Answer, file: TextIO) -> None:
    """The answer as a JSON list of objects, one a line; what is missing or not a number is null."""
    separator = "[\n"
    for row in _rows(answer):
        file.write(separator + orjson.dumps(row, default=str).decode())
        separator = ",\n"
    file.write("[]\n" if separator == "[\n" else "\n]\n")


def write_parquet(answer: Answer, path: Path) -> int:
    """The answer as a Parquet file, whole or not at all; returns its rows. Raises QueryError where the file
    is there already or cannot be written."""
    if path.exists():
        raise QueryError(f"{path} is there already, and nothing is written over it")
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    rows = 0
    try:
        first = next(answer.batches, None)
        if first is None:
            raise QueryError("query: there are no rows, and hence no types of columns, to write")
        with pq.ParquetWriter(aside, first.schema, compression="zstd") as writer:
            for batch in _with(first, answer.batches):
                writer.write_batch(batch)
                rows += batch.num_rows
        os.link(aside, path)  # unlike a rename it fails where another process was faster
    except OSError as error:
        told = error.strerror or str(error)
        # Arrow's have it at their end: "Failed to open local file 'FILE'. Detail: [errno 2] No such file".
        reason = told.partition("Detail: [errno ")[2].partition("] ")[2] or told
        raise QueryError(f"{path} cannot be written ({reason})") from error
    finally:
        aside.unlink(missing_ok=True)
    return rows


def _with(first: Any, rest: Iterator[Any]) -> Iterator[Any]:
    yield first
    yield from rest


def _rows(answer: Answer) -> Iterator[dict[str, Any]]:
    for batch in answer.batches:
        yield from batch.to_pylist()
