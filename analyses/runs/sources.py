"""The tables of trials of many runs as one: finished runs as files, running ones as they stand."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from analyses.runs.folders import run_folders, run_name
from analyses.tables.columns import RECEIPTS, STRUCTURE
from analyses.tables.join import OUTCOME_TYPES, PLAN_SCHEMA, RECEIPT_COLUMNS, TAIL_TYPES
from analyses.tables.run import TableError, load_run

_DONE = "done"
_UNFINISHED = ("running", "interrupted")
_KNOWN: Mapping[str, pa.DataType] = {
    **{entry.name: entry.type for entry in PLAN_SCHEMA},
    "status": pa.string(),
    "n_prompt": pa.int64(),
    **OUTCOME_TYPES,
    **TAIL_TYPES,
}


@dataclass(frozen=True)
class Source:
    """The trials of one run. schema: the columns; path: its Parquet file, or None where `table` holds what
    a run that has not ended has so far."""

    run: str
    schema: pa.Schema
    path: Path | None = None
    table: pa.Table | None = None


@dataclass(frozen=True)
class Sources:
    """The runs of an output root that can be read, oldest version first. skipped: run -> why it cannot."""

    found: tuple[Source, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)

    def columns(self) -> dict[str, pa.DataType]:
        """All columns, in the order of the table, each of the one type that holds what every run has there:
        of numbers the wider, of kinds that do not go together text. Those of every trial are there also
        where no run is."""
        types: dict[str, list[pa.DataType]] = {name: [] for name in STRUCTURE}
        for schema in dict.fromkeys(source.schema for source in self.found):
            for entry in schema:
                types.setdefault(entry.name, []).append(entry.type)
        order = {name: place for place, name in enumerate(STRUCTURE[:-4])}
        tail = {name: place for place, name in enumerate(STRUCTURE[-4:])}
        names = sorted(
            types,
            key=lambda name: (
                (0, order[name]) if name in order else (2, tail[name]) if name in tail else (1, 0)
            ),
        )
        return {name: _common(name, types[name]) for name in names}

    def writes(self) -> list[str]:
        """Names of all writes: what stands before `.positions_prefill` and the other receipts."""
        parts = (name.rpartition(".") for name in self.columns())
        return list(dict.fromkeys(write for write, _, receipt in parts if write and receipt in RECEIPTS))


def read_sources(output_root: Path) -> Sources:
    """The trials of every run under an output root. Of a finished run only the columns are read here; one
    that goes on is read whole, its plan joined with its results so far. One that cannot be read is skipped
    with its reason; one without any table yet is left out."""
    found: list[Source] = []
    skipped: dict[str, str] = {}
    for folder in run_folders(output_root):
        try:
            source = _source(folder)
        except TableError as error:
            skipped[run_name(folder)] = str(error)
            continue
        if source is not None:
            found.append(source)
    return Sources(tuple(found), skipped)


def _source(folder: Path) -> Source | None:
    table, plan = folder / "trials.parquet", folder / "plan.parquet"
    finished = table.is_file() and not (plan.is_file() and _status(folder) in _UNFINISHED)
    if not finished and plan.is_file():
        try:
            trials = so_far(folder)
            return Source(run_name(folder), trials.schema, table=trials)
        except TableError:
            if not table.is_file():  # else it has ended in the meantime
                raise
    if not table.is_file():
        if _status(folder) == _DONE:
            raise TableError(f"{folder}: is done, but trials.parquet is missing")
        return None
    try:
        schema = pq.read_schema(table).remove_metadata()
    except (OSError, pa.ArrowException) as error:
        raise TableError(f"{table}: expected a Parquet table, but it cannot be read: {error}") from error
    return Source(run_name(folder), schema, path=table.resolve())


def _status(folder: Path) -> object:
    try:
        manifest = json.loads((folder / "manifest.json").read_bytes())
    except (OSError, ValueError):
        return None
    return manifest.get("status") if isinstance(manifest, dict) else None


def so_far(folder: Path) -> pa.Table:
    """What a run that has not ended has so far, a row for each planned trial. Raises TableError."""
    trials = load_run(folder).trials
    columns = {}
    for name in trials.columns:
        kind = _KNOWN.get(name) or RECEIPT_COLUMNS.get(name.rpartition(".")[2])
        columns[name] = pa.array(trials[name], type=kind, from_pandas=True)
    return pa.table(columns)


def _common(name: str, types: Sequence[pa.DataType]) -> pa.DataType:
    kinds = list(dict.fromkeys(kind for kind in types if not pa.types.is_null(kind)))
    if not kinds:
        return _KNOWN.get(name, pa.string())
    if len(kinds) == 1:
        return kinds[0]
    if all(map(_is_text, kinds)):
        return pa.string()
    if all(pa.types.is_list(kind) or pa.types.is_large_list(kind) for kind in kinds):
        values = _common("", [kind.value_type for kind in kinds])
        return pa.list_(values) if _is_number(values) else pa.string()
    if all(map(_is_number, kinds)):
        return pa.int64() if all(map(pa.types.is_integer, kinds)) else pa.float64()
    return pa.string()


def _is_number(kind: pa.DataType) -> bool:
    return any((pa.types.is_integer(kind), pa.types.is_floating(kind), pa.types.is_boolean(kind)))


def _is_text(kind: pa.DataType) -> bool:
    return any((pa.types.is_string(kind), pa.types.is_large_string(kind)))


def duck_type(kind: pa.DataType) -> str:
    """The DuckDB word for the type of a column."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return f"{duck_type(kind.value_type)}[]"
    if pa.types.is_map(kind):
        return f"MAP({duck_type(kind.key_type)}, {duck_type(kind.item_type)})"
    for test, word in _WORDS:
        if test(kind):
            return word
    return "VARCHAR"


_WORDS = (
    (pa.types.is_boolean, "BOOLEAN"),
    (pa.types.is_int32, "INTEGER"),
    (pa.types.is_integer, "BIGINT"),
    (pa.types.is_float32, "FLOAT"),
    (pa.types.is_floating, "DOUBLE"),
)


def by_schema(sources: Sequence[Source]) -> Iterator[tuple[pa.Schema, list[Source]]]:
    """Finished runs with the same columns together; each run that goes on alone."""
    together: dict[pa.Schema, list[Source]] = {}
    for source in sources:
        if source.table is None:
            together.setdefault(source.schema, []).append(source)
        else:
            yield source.schema, [source]
    yield from together.items()


def rows_of(output_root: Path, part: str, keep: Sequence[str]) -> list[dict[str, Any]]:
    """The entries of a list of `summary.json` (`contrasts`, `gates`) of every run that has one, with `run`
    and `version`. keep: which of their values."""
    rows: list[dict[str, Any]] = []
    for folder in run_folders(output_root):
        try:
            summary = json.loads((folder / "summary.json").read_bytes())
            entries = summary.get(part) or []
            told = {"run": run_name(folder), "version": folder.name, "experiment": folder.parent.name}
            rows += [told | {name: entry.get(name) for name in keep} for entry in entries]
        except (OSError, ValueError, AttributeError):
            continue  # not written yet; what is broken is said by the view `runs`
    return rows
