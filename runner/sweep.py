"""A sweep: one run per combination of values, one after the other, the model loaded once, one table at the
end."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from runner import status
from runner.config.compose import compose
from runner.config.errors import ConfigurationError
from runner.failures import complain, crash
from runner.job import RunResult, run_job, worst
from runner.results.store import atomic_write


@dataclass(frozen=True)
class Job:
    """One run of a sweep. swept: the overrides in which it differs from the others."""

    overrides: tuple[str, ...]
    swept: tuple[str, ...]
    result: RunResult


def run_sweep(jobs: Sequence[Sequence[str]], console: Console, config_dir: Path | None) -> int:
    """Run all jobs, print each failure as it happens, write the combined table; the worst status is
    returned. An interrupt ends the sweep."""
    done: list[Job] = []
    for number, overrides in enumerate(jobs, start=1):
        swept = tuple(word for word in overrides if any(word not in other for other in jobs))
        console.rule(f"job {number} of {len(jobs)}: {' '.join(swept)}")
        result = _run(overrides, console, config_dir)
        done.append(Job(tuple(overrides), swept, result))
        if result.status != status.DONE:
            console.print(f"job {number} ended with status {result.status}", style="red")
        if result.status == status.INTERRUPTED:
            break
    _combine(done, console)
    return worst(job.result.status for job in done)


def _run(overrides: Sequence[str], console: Console, config_dir: Path | None) -> RunResult:
    command = ["python", "-m", "runner", *overrides]
    try:
        return run_job(compose(list(overrides), config_dir), console, command, config_dir)
    except ConfigurationError as error:
        complain(error)
        return RunResult(status.CONFIGURATION)
    except KeyboardInterrupt:
        return RunResult(status.INTERRUPTED)
    except Exception as error:
        return RunResult(crash(error))


def _combine(jobs: Sequence[Job], console: Console) -> None:
    finished = [job for job in jobs if job.result.folder is not None and job.result.summary]
    if not finished:
        return
    first = finished[0].result.folder
    assert first is not None
    folder = _new_folder(first.parent / "sweeps")
    tables = [_with_job(job) for job in finished]
    pq.write_table(pa.concat_tables(tables, promote_options="permissive"), folder / "trials.parquet")
    rows = [row for job in finished for row in _rows(job)]
    body = {
        "jobs": [
            {
                "overrides": list(job.overrides),
                "swept": list(job.swept),
                "status": job.result.status,
                "folder": None if job.result.folder is None else str(job.result.folder),
            }
            for job in jobs
        ],
        "table": rows,
    }
    atomic_write(folder / "summary.json", json.dumps(body, indent=2, default=str).encode())
    _print(rows, console)
    console.print(f"combined table: {folder}")


def _new_folder(sweeps: Path) -> Path:
    sweeps.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        folder = sweeps / f"s{number:04d}"
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            number += 1


def _with_job(job: Job) -> pa.Table:
    assert job.result.folder is not None
    table = pq.read_table(job.result.folder / "trials.parquet")
    extra = {"version": job.result.folder.name, **_values(job)}
    for name, value in extra.items():
        table = table.append_column(name, pa.array([value] * len(table), pa.string()))
    return table


def _values(job: Job) -> dict[str, str]:
    pairs = (word.lstrip("+").partition("=") for word in job.swept)
    return {f"sweep.{key}": value for key, _, value in pairs}


def _rows(job: Job) -> list[dict[str, Any]]:
    assert job.result.folder is not None
    primary = job.result.summary["primary"]
    rows = []
    for name, body in job.result.summary["conditions"].items():
        found = body["readouts"].get(primary) or {}
        rows.append(
            {
                **_values(job),
                "version": job.result.folder.name,
                "condition": name,
                "label": body["label"],
                "n": body["n"],
                "readout": primary,
                "mean": found.get("mean"),
                "sd": found.get("sd"),
            }
        )
    return rows


def _print(rows: Sequence[dict[str, Any]], console: Console) -> None:
    """Means by condition, one column per job; the whole table is in the sweep's folder."""
    axes = [name for name in rows[0] if name.startswith("sweep.")]
    cells = {(row["condition"], row["version"]): row["mean"] for row in rows}
    jobs = {row["version"]: ", ".join(str(row[axis]) for axis in axes) for row in rows}
    title = f"mean {rows[0]['readout']} by {', '.join(axis.removeprefix('sweep.') for axis in axes)}"
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    table.add_column("condition")
    for version, values in jobs.items():
        table.add_column(f"{values}\n{version}", justify="right", overflow="fold")
    for condition in dict.fromkeys(row["condition"] for row in rows):
        means = (cells.get((condition, version)) for version in jobs)
        # As text: the cell of a grid, `name[axis=value]`, would be read as markup.
        table.add_row(Text(condition), *("-" if mean is None else f"{mean:.2f}" for mean in means))
    console.print(table)
