"""The combined table of a sweep: what every job found, side by side, and the trials of all."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from analyses.findings.words import percent
from analyses.wording import listed, together

SWEPT = "sweep."  # before the keys that were swept, in columns
_EXPERIMENT = f"{SWEPT}experiment"
_MOST_COLUMNS = 6  # jobs side by side; of more, each has lines of its own
_MOST_CELLS = 12  # of a grid, told one by one
_CLASH = (pa.ArrowInvalid, pa.ArrowTypeError)


@dataclass(frozen=True)
class SweepJob:
    """One finished or failed job. values: what was swept -> its value; folder: of its run, None where it got
    none; summary: what `summary.json` holds, empty where there is none."""

    values: Mapping[str, str]
    status: int
    folder: Path | None = None
    summary: Mapping[str, Any] = field(default_factory=dict)
    overrides: tuple[str, ...] = ()

    @property
    def experiment(self) -> str:
        """The experiment's own folder."""
        return "" if self.folder is None else self.folder.parent.name


def sweep_rows(jobs: Sequence[SweepJob]) -> list[dict[str, Any]]:
    """One row for each job and finding; of a job whose experiment declares no findings, for each condition,
    with the mean of what its contrasts are about.

    Every row has the swept values as `sweep.KEY`, `experiment`, `version`, `model` and the model's `layers`.
    """
    return [row for job in jobs if job.folder is not None and job.summary for row in _rows(job)]


def write_sweep(folder: Path, jobs: Sequence[SweepJob]) -> list[dict[str, Any]]:
    """Write `summary.json` (every job, and the rows as `table`), `table.csv` (the rows) and the trials of all
    jobs - `trials.parquet`, or one file for each experiment - and return the rows."""
    rows = sweep_rows(jobs)
    told = [
        {
            "overrides": list(job.overrides),
            "swept": dict(job.values),
            "status": job.status,
            "folder": None if job.folder is None else str(job.folder),
        }
        for job in jobs
    ]
    (folder / "summary.json").write_text(
        json.dumps({"jobs": told, "table": rows}, indent=2, ensure_ascii=False, default=str) + "\n",
        encoding="utf-8",
    )
    flat = pd.json_normalize(rows)  # `depth: {layer: 4}` becomes the column depth.layer
    flat.map(_cell).to_csv(folder / "table.csv", index=False)
    by_experiment: dict[str, list[pa.Table]] = {}
    for job in jobs:
        if job.folder is not None and job.summary:
            by_experiment.setdefault(job.experiment, []).append(_trials(job, job.folder))
    for name, tables in by_experiment.items():
        file = "trials.parquet" if len(by_experiment) == 1 else f"trials_{name}.parquet"
        pq.write_table(concatenated(tables), folder / file)
    return rows


def print_sweep(rows: Sequence[Mapping[str, Any]], console: Console) -> None:
    """Print the rows: a line for each finding or condition and a column for each job, or, of many jobs, a
    line for each row."""
    found = [row for row in rows if "finding" in row]
    means = [row for row in rows if "finding" not in row]
    for part, of in ((found, "finding"), (_grids_together(means), "condition")):
        if part:
            _print(part, of, console)


def concatenated(tables: Sequence[pa.Table]) -> pa.Table:
    """Tables under each other; columns that only some have are null in the others, and those that are of
    kinds which do not go together become text."""
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except _CLASH:
        names = dict.fromkeys(name for table in tables for name in table.column_names)
        clashing = {name for name in names if not _concatenates(name, tables)}
        return pa.concat_tables([_as_text(table, clashing) for table in tables], promote_options="permissive")


def _rows(job: SweepJob) -> Iterator[dict[str, Any]]:
    assert job.folder is not None
    model = job.summary.get("model") or {}
    shared = {
        **{f"{SWEPT}{key}": value for key, value in job.values.items()},
        "experiment": job.experiment,
        "version": job.folder.name,
        "model": model.get("name"),
        "layers": model.get("layers"),
    }
    findings = job.summary.get("findings") or []
    for finding in findings:
        rest = {key: value for key, value in finding.items() if key not in ("name", *shared)}
        yield {**shared, "finding": finding["name"], **rest}
    if not findings:
        for stage, summary in _stages(job.summary):
            yield from ({**shared, **stage, **row} for row in _means(summary))


def _stages(summary: Mapping[str, Any]) -> Iterator[tuple[dict[str, str], Mapping[str, Any]]]:
    """The parts of a summary that have conditions: its stages, or in the flat form itself."""
    stages = summary.get("stages") or {}
    for name, body in stages.items():
        if isinstance(body, Mapping) and "conditions" in body:
            yield {"stage": name}, body
    if not stages:
        yield {}, summary


def _means(summary: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    primary = summary["primary"]
    for name, body in summary["conditions"].items():
        found = body["readouts"].get(primary) or {}
        yield {
            "condition": name,
            "label": body["label"],
            "n": body["n"],
            "readout": primary,
            "mean": found.get("mean"),
            "sd": found.get("sd"),
        }


def _trials(job: SweepJob, folder: Path) -> pa.Table:
    table = pq.read_table(folder / "trials.parquet")
    extra = {"version": folder.name, **{f"{SWEPT}{key}": value for key, value in job.values.items()}}
    for name, value in extra.items():
        table = table.append_column(name, pa.array([value] * len(table), pa.string()))
    return table


def _concatenates(name: str, tables: Sequence[pa.Table]) -> bool:
    parts = [table.select([name]) for table in tables if name in table.column_names]
    try:
        pa.concat_tables(parts, promote_options="permissive")
    except _CLASH:
        return False
    return True


def _as_text(table: pa.Table, names: set[str]) -> pa.Table:
    for name in names & set(table.column_names):
        texts = [None if value is None else _text(value) for value in table[name].to_pylist()]
        table = table.set_column(table.column_names.index(name), name, pa.array(texts, pa.string()))
    return table


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _cell(value: object) -> object:
    """A value as a CSV file has it."""
    return json.dumps(value, default=str) if isinstance(value, list) else value


def _grids_together(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Rows of conditions, those of a large grid in one with the least and the greatest mean."""
    grids: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        name = row["condition"].partition("[")[0]
        grids.setdefault((row["experiment"], row["version"], row.get("stage"), name), []).append(row)
    found: list[Mapping[str, Any]] = []
    for (*_, name), cells in grids.items():
        means = [cell["mean"] for cell in cells if cell["mean"] is not None]
        if len(cells) <= _MOST_CELLS:
            found += cells
        else:
            told = f"{min(means):.2f} to {max(means):.2f}" if means else None
            found.append({**cells[0], "condition": f"{name} ({len(cells):,} cells)", "mean": told})
    return found


def _print(rows: Sequence[Mapping[str, Any]], of: str, console: Console) -> None:
    axes = [key for key in rows[0] if key.startswith(SWEPT) and key != _EXPERIMENT]
    several = len({row["experiment"] for row in rows}) > 1
    columns = list(dict.fromkeys(_column(row, axes, several) for row in rows))
    names = ", ".join(axis.removeprefix(SWEPT) for axis in axes)
    what = "findings" if of == "finding" else f"mean {rows[0]['readout']}"
    table = Table(box=box.SIMPLE_HEAD, title=f"{what} by {names}" if names else what, title_justify="left")
    lines: dict[tuple[str, ...], dict[tuple[str, ...], str]] = {}
    for row in rows:
        line = tuple(filter(None, (row["experiment"] if several else "", _stage(row, of), row[of])))
        lines.setdefault(line, {})[_column(row, axes, several)] = value_in_table(row, of)
    if len(columns) <= _MOST_COLUMNS:
        table.add_column(of)
        for column in columns:
            table.add_column("\n".join(column), justify="right", overflow="fold")
        for line, cells in lines.items():
            # As text: the cell of a grid, `name[axis=value]`, would be read as markup.
            table.add_row(Text(": ".join(line)), *(cells.get(column, "-") for column in columns))
    else:
        table.add_column(of)
        table.add_column(names or "version")
        table.add_column("value", justify="right")
        for line, cells in lines.items():
            for place, (column, value) in enumerate(cells.items()):
                table.add_row(Text("" if place else ": ".join(line)), Text(", ".join(column)), value)
    console.print(table)


def _column(row: Mapping[str, Any], axes: Sequence[str], several: bool) -> tuple[str, ...]:
    """The head of a job's column: its values, and its version where that is of one experiment."""
    values = ", ".join(str(row.get(axis, "-")) for axis in axes)
    return tuple(filter(None, (values, "" if several and axes else row["version"])))


def _stage(row: Mapping[str, Any], of: str) -> str | None:
    """The stage that tells a condition from others of its name; a finding has a name of its own."""
    return row.get("stage") if of == "condition" else None


def value_in_table(row: Mapping[str, Any], of: str) -> str:
    """The figure of a row with its interval; of a layer, with its depth."""
    value = row.get("mean" if of == "condition" else "value")
    if isinstance(value, list):
        return listed([str(each) for each in value])
    if not isinstance(value, int | float):
        return "-" if value is None else str(value)
    if of == "condition":
        return f"{value:.2f}"
    depth = row.get("depth")
    if depth:
        at = str(value) if isinstance(value, int) else f"{value:.2f}"
        return f"{at} ({percent(depth['share'])})"
    figures = [value, row.get("low"), row.get("high")]
    if None in figures[1:] and isinstance(value, int):
        return str(value)
    rate = row.get("unit") == "share" and row.get("kind") == "mean"
    told = [percent(each) for each in figures if each is not None] if rate else together(*figures)
    return told[0] if None in figures else f"{told[0]} [{told[1]}, {told[2]}]"
