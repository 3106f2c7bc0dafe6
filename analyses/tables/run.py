"""Which rows a results folder holds: trials and manifest, finished or still running."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from analyses.tables.columns import GRID, NUMBER, NUMBERS, RECEIPTS, STRUCTURE
from analyses.tables.join import join
from analyses.tables.prompts import types_of_pandas

SCHEMA = 1
SCORES = ("score", "markers", "bonus", "strict", "perplexity")
_UNFINISHED = ("running", "interrupted")
REQUIRED = ("stage", "condition", "item", "repeat", "status")
_BEFORE: Mapping[str, Any] = {"stage": "", "repeat": 0}  # what trials of a schema without these columns were


class TableError(Exception):
    """A results folder that cannot be read; the message names the file and what was expected."""


@dataclass(frozen=True)
class Run:
    """One results folder: `trials`, one row per (stage, condition, item, repeat), and its manifest."""

    trials: pd.DataFrame
    manifest: Mapping[str, Any]
    folder: Path


def load_run(folder: Path | str) -> Run:
    """Read a run: `trials.parquet`, or the plan joined with the segments of a run that is not finished.

    Of an older schema, columns that it did not have yet get the value that they would have had. Raises
    TableError: no folder, no or unreadable manifest, a newer schema, no table at all, a broken line that is
    not the last of its segment, or a table without the columns that every analysis needs.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise TableError(f"{folder}: expected the folder of a run, found {_found(folder)}")
    manifest = _read_manifest(folder / "manifest.json")
    table, plan = folder / "trials.parquet", folder / "plan.parquet"
    # A run that goes on after failed trials keeps its table of before until it ends.
    if table.is_file() and not (plan.is_file() and manifest.get("status") in _UNFINISHED):
        source, trials = table, _frame(_read_parquet(table))
    elif plan.is_file():
        source, trials = plan, _so_far(folder, plan, manifest)
    else:
        raise TableError(f"{folder}: expected trials.parquet, or plan.parquet and segments; found neither")
    if older_schema(manifest) is not None:
        trials = trials.assign(**{k: v for k, v in _BEFORE.items() if k not in trials.columns})
    missing = [name for name in REQUIRED if name not in trials.columns]
    if missing:
        raise TableError(
            f"{source}: expected the columns {', '.join(REQUIRED)}; missing: {', '.join(missing)}"
        )
    return Run(trials=trials, manifest=manifest, folder=folder)


def read_rows(folder: Path, places: NDArray[np.int64]) -> pd.DataFrame:
    """Some rows of the table of a run that has ended, at ascending places, with all columns. Raises
    TableError where it cannot be read."""
    path = folder / "trials.parquet"
    try:
        with pq.ParquetFile(path, memory_map=True) as file:
            sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
            first = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
            held = np.flatnonzero(np.histogram(places, first)[0]) if sizes else np.arange(0)
            starts = np.cumsum([0, *(sizes[group] for group in held)])
            group_of = np.searchsorted(first, places, side="right") - 1
            within = places - first[group_of] + starts[np.searchsorted(held, group_of)]
            return _frame(file.read_row_groups(held.tolist()).take(pa.array(within)))
    except (OSError, pa.ArrowException) as error:
        raise TableError(f"{path}: expected a Parquet table, but it cannot be read: {error}") from error


def value_columns(trials: pd.DataFrame) -> tuple[str, ...]:
    """The scalar readouts of a table: the behaviour scores first, then every other numeric column.

    Receipts (`<write>.positions_prefill`, ...), grid axes, lists and the trial's own fields are not.
    """
    known = [name for name in SCORES if name in trials.columns]
    others = [
        str(name)
        for name in trials.columns
        if name not in (*STRUCTURE, *SCORES)
        and not str(name).startswith(f"{GRID}.")
        and str(name).rpartition(".")[2] not in RECEIPTS
        and pd.api.types.is_numeric_dtype(trials[name])
    ]
    return (*known, *others)


def ok_rows(trials: pd.DataFrame, condition: str) -> pd.DataFrame:
    """The valid trials of one condition."""
    return trials[(trials["condition"] == condition) & (trials["status"] == "ok")]


def conditions_of(trials: pd.DataFrame, manifest: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the conditions, in the manifest's order; those that only the table knows come last."""
    declared = list(manifest.get("conditions", {}))
    return (*declared, *(name for name in trials["condition"].unique() if name not in declared))


def _found(path: Path) -> str:
    if path.exists():
        return "a file"
    parent = path.parent
    versions = sorted(p.name for p in parent.glob("*") if p.is_dir()) if parent.is_dir() else []
    return f"nothing; {parent} holds {', '.join(versions)}" if versions else "nothing"


def _read_manifest(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise TableError(f"{path}: expected the manifest of a run, found nothing")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise TableError(f"{path}: expected JSON: {error}") from error
    if not isinstance(manifest, dict):
        raise TableError(f"{path}: expected a JSON object, got {type(manifest).__name__}")
    if manifest.get("schema") != SCHEMA and older_schema(manifest) is None:
        raise TableError(f"{path}: schema: expected {SCHEMA}, got {manifest.get('schema')!r}")
    return manifest


def older_schema(manifest: Mapping[str, Any]) -> str | None:
    """One sentence where an earlier version of patchbay wrote a manifest, else None."""
    schema = manifest.get("schema")
    if schema is not None and (not isinstance(schema, int) or isinstance(schema, bool) or schema >= SCHEMA):
        return None
    has = "has no schema" if schema is None else f"is of schema {schema}"
    return (
        f"The manifest {has}, expected {SCHEMA}: an earlier version of patchbay wrote this run. What it has "
        "is shown."
    )


def _read_parquet(path: Path) -> pa.Table:
    try:
        return pq.read_table(path, memory_map=True)
    except (OSError, pa.ArrowException) as error:
        raise TableError(f"{path}: expected a Parquet table, but it cannot be read: {error}") from error


def _so_far(folder: Path, plan: Path, manifest: Mapping[str, Any]) -> pd.DataFrame:
    """The plan joined, stage by stage, with what its segments hold: a trial without a result is pending."""
    results: dict[str, dict[str, Any]] = {}
    for segment in sorted((folder / "segments").glob("*.jsonl")):
        for result in _read_segment(segment):
            # A failed trial gives way to a later result.
            if result["key"] not in results or result["status"] != "failed":
                results[result["key"]] = result
    whole = _read_parquet(plan)
    parts: Mapping[str, Mapping[str, Any]] = manifest.get("stages") or {}
    if not parts:
        return _joined(whole, manifest, results)
    apart = [
        _joined(whole.filter(pc.equal(whole["stage"], name)), section, results)
        for name, section in parts.items()
        if section.get("conditions")
    ]
    joined: pd.DataFrame = pd.concat(apart, ignore_index=True)
    return joined


def _joined(
    plan: pa.Table, section: Mapping[str, Any], results: Mapping[str, Mapping[str, Any]]
) -> pd.DataFrame:
    """The plan of a stage with its results. section: what the manifest says of the stage."""
    orders = {
        name: condition.get("receipt_order", ()) for name, condition in section.get("conditions", {}).items()
    }
    keys = set(plan["key"].to_pylist())
    mine = [result for key, result in results.items() if key in keys]
    return _frame(join(plan, mine, orders, _readout_columns(section, mine)))


def _frame(table: pa.Table) -> pd.DataFrame:
    frame: pd.DataFrame = table.to_pandas(types_mapper=types_of_pandas)
    return frame


def _readout_columns(manifest: Mapping[str, Any], results: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """The columns of the readouts, with what each holds: as the manifest says, and of other names what the
    results have."""
    columns = {
        name: held
        for readout in (manifest.get("readout") or {}).values()
        for name, held in readout["columns"].items()
    }
    for result in results:
        for name, value in (result.get("scores") or {}).items():
            columns.setdefault(name, NUMBERS if isinstance(value, list) else NUMBER)
    return columns


def _read_segment(path: Path) -> list[dict[str, Any]]:
    # A writer that was killed leaves at most one torn line, the last, and starts a new file afterwards.
    lines = path.read_bytes().split(b"\n")
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            if number == len(lines):
                break
            raise TableError(f"{path}:{number}: expected one JSON object a line: {error}") from error
        if not isinstance(row, dict) or not {"key", "status"} <= row.keys():
            raise TableError(f"{path}:{number}: expected a result with key and status, got {line[:60]!r}")
        rows.append(row)
    return rows
