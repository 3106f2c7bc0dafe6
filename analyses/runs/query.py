"""SQL over the trials of every run, by DuckDB: read-only views, and nothing else within reach."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import duckdb
import orjson
import pyarrow as pa

from analyses.runs.folders import run_folders, run_name
from analyses.runs.listing import RUN, Row, list_runs
from analyses.runs.sources import Sources, by_schema, duck_type, read_sources, rows_of
from analyses.tables.columns import RECEIPTS
from analyses.tables.run import TableError
from analyses.wording import listed

VIEWS: Mapping[str, str] = {
    "trials": "one row for each trial, over all runs; one that was taken over from another run counts once",
    "trials_all": "the same with every row of every run: for figures of one run, as its report has them",
    "receipts": "one row for each write of each of these trials",
    "receipts_all": "the same of trials_all",
    "runs": "one row for each run: how it stands, counts, model, config",
    "contrasts": "the contrasts of each run's summary",
    "gates": "the gates of each run's summary",
}
_OF_TRIALS = ("trials", "trials_all", "receipts", "receipts_all")
_TOLD = ("item", "repeat", "donor", "target", "group", "split", "status")  # of a trial, in `receipts`
_TEXT = ("stage", "condition", "against", "kind", "readout", "note", "sentence")
_FIGURES = ("difference", "ci_low", "ci_high", "p", "p_holm", "effective_n", "d_z_ddof1")
_CONTRASTS = pa.schema(
    [(name, pa.string()) for name in ("run", "version", "experiment", *_TEXT)]
    + [("n", pa.int64())]
    + [(name, pa.float64()) for name in _FIGURES]
)
_GATES = pa.schema(
    [
        (name, pa.string())
        for name in ("run", "version", "experiment", "stage", "condition", "gate", "verdict", "sentence")
    ]
)
_KINDS = {"int": pa.int64(), "float": pa.float64(), "str": pa.string()}
_MOST_ROWS = 10_000  # of an answer held at a time


class QueryError(TableError):
    """A query that cannot be answered; the message says why in a sentence, with the nearest name."""


@dataclass(frozen=True)
class Answer:
    """What a query gives. columns: names; batches: its rows, a part at a time; skipped: run -> why its
    trials are not among what was asked."""

    columns: tuple[str, ...]
    batches: Iterator[pa.RecordBatch]
    skipped: Mapping[str, str]


@dataclass(frozen=True)
class View:
    """A view as it is listed. columns: with their types, those of receipts apart; writes: what has receipts
    among its columns; of: the view that has the same columns."""

    name: str
    says: str
    columns: tuple[tuple[str, str], ...]
    writes: tuple[str, ...] = ()
    of: str | None = None


def query(sql: str, output_root: Path) -> Answer:
    """Answer one SELECT (or PIVOT, FROM, WITH, VALUES, DESCRIBE, SUMMARIZE) over the views.

    No other statement is carried out, and no file can be named: SQL of a stranger reads the trials of this
    output root and writes nothing. Raises QueryError.
    """
    _only_reads(sql)
    connection, skipped = _connected(Path(output_root), _named(sql))
    try:
        reader = connection.sql(sql).to_arrow_reader(_MOST_ROWS)
    except duckdb.Error as error:
        raise QueryError(_sentence(error, connection)) from error
    names = _apart(reader.schema.names)
    return Answer(tuple(names), _batches(reader, names, connection), skipped)


def connect(output_root: Path | str, views: Collection[str] = tuple(VIEWS)) -> duckdb.DuckDBPyConnection:
    """A connection of its own, in memory, with the views over every run under an output root, also runs
    that go on (as they stand now).

    views: which of them; trials of running runs are read only where one of them needs them. The connection
    sees the runs' Parquet files and no others, and its settings are locked. It carries out any statement,
    though, so that SQL of a stranger belongs into `query`.
    """
    return _connected(Path(output_root), views)[0]


def describe(output_root: Path) -> list[View]:
    """The views with their columns."""
    connection = connect(output_root)
    found = []
    for name, says in VIEWS.items():
        rows = connection.execute(f"DESCRIBE {name}").fetchall()
        parts = [(column.rpartition("."), column, kind) for column, kind, *_ in rows]
        columns = tuple((c, kind) for (write, _, last), c, kind in parts if not write or last not in RECEIPTS)
        writes = dict.fromkeys(write for (write, _, last), _, _ in parts if write and last in RECEIPTS)
        same = name.removesuffix("_all")
        found.append(View(name, says, columns, tuple(writes), None if same == name else same))
    return found


def _only_reads(sql: str) -> None:
    try:
        statements = duckdb.extract_statements(sql)
    except duckdb.Error as error:
        raise QueryError(_sentence(error, None)) from error
    if not statements:
        raise QueryError("query: expected a SELECT, got nothing")
    if len(statements) != 1:
        raise QueryError(f"query: expected one statement, got {len(statements)}")
    kind = statements[0].type
    # PIVOT is carried out as several statements, all of which read.
    pivots = kind == duckdb.StatementType.MULTI and re.match(r"\s*pivot\b", sql, re.IGNORECASE)
    if kind != duckdb.StatementType.SELECT and not pivots:
        raise QueryError(f"query: expected a SELECT, got {kind.name}: queries read and change nothing")


def _named(sql: str) -> list[str]:
    """The views that a query names, in any place."""
    words = set(re.findall(r"\w+", sql.lower()))
    return [name for name in VIEWS if name in words or "show" in words]  # SHOW TABLES lists them


def _connected(root: Path, views: Collection[str]) -> tuple[duckdb.DuckDBPyConnection, Mapping[str, str]]:
    if not root.is_dir():
        raise QueryError(f"{root} is not there; another folder is given as output_root=DIR")
    sources = read_sources(root) if any(name in _OF_TRIALS for name in views) else Sources(())
    connection = duckdb.connect(":memory:")
    for setting in ("python_enable_replacements=false", "temp_directory=''"):
        connection.execute(f"SET {setting}")
    paths = [str(source.path) for source in sources.found if source.path is not None]
    connection.execute(f"SET allowed_paths=[{', '.join(map(_text, paths))}]")
    for setting in ("enable_external_access=false", "lock_configuration=true"):
        connection.execute(f"SET {setting}")
    if any(name in _OF_TRIALS for name in views):
        _view_trials(connection, sources)
    if "runs" in views:
        _register(connection, "runs", _runs(root))
    if "contrasts" in views:
        _register(connection, "contrasts", _entries(root, "contrasts", _CONTRASTS))
    if "gates" in views:
        _register(connection, "gates", _entries(root, "gates", _GATES))
    return connection, sources.skipped


def _view_trials(connection: duckdb.DuckDBPyConnection, sources: Sources) -> None:
    columns = sources.columns()
    parts = []
    for number, (schema, found) in enumerate(by_schema(sources.found)):
        if found[0].table is None:
            files = ", ".join(_text(str(source.path)) for source in found)
            origin = f"read_parquet([{files}], filename='patchbay_file')"
            run = r"regexp_extract(patchbay_file, '([^/]+/v\d+)/trials\.parquet$', 1)"
        else:
            origin = f"patchbay_so_far_{number}"
            connection.register(origin, found[0].table)
            run = _text(found[0].run)
        parts.append(f"SELECT {run} AS run, {_cast(columns, schema)} FROM {origin}")
    if not parts:
        parts = [f"SELECT '' AS run, {_cast(columns, pa.schema([]))} WHERE false"]
    connection.execute(
        "CREATE VIEW trials_all AS SELECT run, split_part(run, '/', 2) AS version, * EXCLUDE (run) FROM ("
        + " UNION ALL ".join(parts)
        + ")"
    )
    _view_once(connection, sources, "origin" in columns)
    for name in ("trials", "trials_all"):
        connection.execute(f"CREATE VIEW {name.replace('trials', 'receipts')} AS {_receipts(sources, name)}")


def _cast(columns: Mapping[str, pa.DataType], schema: pa.Schema) -> str:
    """The columns of one group of runs as those of all: null where it has none, of the common type."""
    words = []
    for name, kind in columns.items():
        shown = _quoted(f"{name}_" if name in ("run", "version") else name)  # a readout may have any name
        if name not in schema.names:
            words.append(f"NULL::{duck_type(kind)} AS {shown}")
        elif schema.field(name).type == kind:
            words.append(f"{_quoted(name)} AS {shown}")
        else:
            words.append(f"{_quoted(name)}::{duck_type(kind)} AS {shown}")
    return ", ".join(words)


def _view_once(connection: duckdb.DuckDBPyConnection, sources: Sources, has_origin: bool) -> None:
    """`trials`: a row that was taken over is left out where the run that computed it is there. Where that
    is gone, the oldest run that has the row keeps it."""
    if not has_origin:
        connection.execute("CREATE VIEW trials AS SELECT * FROM trials_all")
        return
    places = range(len(sources.found))  # the order of folders: by name, then oldest first
    order = {"run": [source.run for source in sources.found], "place": list(places)}
    connection.register(
        "patchbay_order", pa.table(order, pa.schema({"run": pa.string(), "place": pa.int64()}))
    )
    connection.execute(
        """
        CREATE VIEW trials AS
        SELECT * FROM trials_all
        WHERE origin IS NULL OR (run, key) IN (
            SELECT arg_min(run, place), key
            FROM trials_all JOIN patchbay_order USING (run)
            WHERE origin NOT IN (SELECT run FROM patchbay_order)
            GROUP BY key, origin
        )
        """
    )


def _receipts(sources: Sources, trials: str) -> str:
    columns = sources.columns()
    told = [_quoted(name) for name in ("experiment", "stage", "condition", *_TOLD) if name in columns]
    shared = ", ".join(["run", "version", *told])
    parts = []
    for write in sources.writes():
        names = {receipt: f"{write}.{receipt}" for receipt in RECEIPTS}
        has = {receipt: _quoted(name) for receipt, name in names.items() if name in columns}
        values = [f"{has[r]} AS {r}" if r in has else f"NULL AS {r}" for r in RECEIPTS]
        sums = [
            f"{_sum(has, f'{part}_prefill', f'{part}_decode')} AS {name}"
            for name, part in (("asked", "asked"), ("written", "positions"))
        ]
        parts.append(
            f"SELECT {shared}, {_text(write)} AS write, {', '.join((*sums, *values))} FROM {trials} "
            f"WHERE {' OR '.join(f'{name} IS NOT NULL' for name in has.values())}"
        )
    if not parts:
        empty = ", ".join(f"NULL::DOUBLE AS {name}" for name in ("asked", "written", *RECEIPTS))
        return f"SELECT {shared}, '' AS write, {empty} FROM {trials} WHERE false"
    return " UNION ALL ".join(parts)


def _sum(has: Mapping[str, str], *parts: str) -> str:
    known = [f"coalesce({has[part]}, 0)" for part in parts if part in has]
    return " + ".join(known) if known else "NULL"


def _register(connection: duckdb.DuckDBPyConnection, name: str, table: pa.Table) -> None:
    connection.register(f"patchbay_{name}", table)
    connection.execute(f"CREATE VIEW {name} AS SELECT * FROM patchbay_{name}")


def _runs(root: Path) -> pa.Table:
    rows = [asdict(row) for row in list_runs(root) if row.kind == RUN]
    configs = {run_name(folder): _config(folder) for folder in run_folders(root)}
    columns: dict[str, pa.Array] = {}
    for entry in fields(Row):
        if entry.name != "kind":
            kind = _KINDS[str(entry.type).partition(" ")[0]]
            columns[entry.name] = pa.array([row[entry.name] for row in rows], kind)
    columns["config"] = pa.array([configs.get(row["run"]) for row in rows], pa.string())
    return pa.table(columns)


def _config(folder: Path) -> str | None:
    try:
        return orjson.dumps(orjson.loads((folder / "manifest.json").read_bytes())["config"]).decode()
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _entries(root: Path, part: str, schema: pa.Schema) -> pa.Table:
    keep = [name for name in schema.names if name not in ("run", "version", "experiment")]
    return pa.Table.from_pylist(rows_of(root, part, keep), schema=schema)


def _apart(names: Sequence[str]) -> list[str]:
    """Names of columns with a number behind those that occur a second time, as in a join."""
    found: dict[str, None] = {}
    for name in names:
        number, shown = 0, name
        while shown in found:
            number += 1
            shown = f"{name}_{number}"
        found[shown] = None
    return list(found)


def _batches(
    reader: pa.RecordBatchReader, names: Sequence[str], connection: duckdb.DuckDBPyConnection
) -> Iterator[pa.RecordBatch]:
    """The rows with whole numbers as such: DuckDB's sums are 128 bits wide, which few programs read.
    connection: kept open as long as rows come."""
    try:
        for batch in reader:
            yield pa.RecordBatch.from_arrays([_narrow(array) for array in batch.columns], names=list(names))
    except (duckdb.Error, pa.ArrowException) as error:
        raise QueryError(_sentence(error, None)) from error
    finally:
        connection.close()


def _narrow(array: pa.Array) -> pa.Array:
    if not pa.types.is_decimal(array.type):
        return array
    return array.cast(pa.int64() if array.type.scale == 0 else pa.float64())


def _sentence(error: Exception, connection: duckdb.DuckDBPyConnection | None) -> str:
    """An error of DuckDB in one sentence, with the place and the nearest name."""
    text = str(error)
    kind, _, said = text.partition(": ")
    message, *rest = said.split("\n") if said else [kind]
    at = next((line.partition(": ")[2].strip() for line in rest if line.startswith("LINE ")), "")
    column = re.search(r'column "([^"]+)" not found', message)
    table = re.search(r"Table with name (\S+) does not exist", message)
    if column is not None and connection is not None:
        known = _columns(connection)
        return f"query: no column '{column[1]}'{_near(column[1], known)}{_where(at)}"
    if table is not None:
        return f"query: no view '{table[1]}' (views: {listed(list(VIEWS))}){_near(table[1], VIEWS)}"
    if "file system operations are disabled" in message:
        return "query: no file can be read or written by a query, but for the trials of the runs themselves"
    near = next((line for line in rest if line.startswith(("Did you mean", "Candidate bindings"))), "")
    return f"query: {message.rstrip('.!')}{f'; {near}' if near else ''}{_where(at)}"


def _where(at: str) -> str:
    return f" (in: {at})" if at else ""


def _columns(connection: duckdb.DuckDBPyConnection) -> list[str]:
    rows = connection.execute(
        "SELECT DISTINCT column_name FROM duckdb_columns() "
        "WHERE table_name NOT LIKE 'patchbay%' AND NOT internal"
    )
    return [row[0] for row in rows.fetchall()]


def _near(word: str, known: Collection[str]) -> str:
    import difflib

    folded = {name.casefold(): name for name in known}
    found = difflib.get_close_matches(word.casefold(), list(folded), n=1, cutoff=0.6)
    return f"; did you mean '{folded[found[0]]}'?" if found else ""


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"
