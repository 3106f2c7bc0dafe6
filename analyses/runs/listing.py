"""What runs and sweeps there are under an output root, how each stands and what it found.

Only manifests and summaries are read, never a table of trials, so that a thousand runs take a second.
"""

from __future__ import annotations

import fnmatch
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from analyses.runs.folders import is_held, run_folders, run_name, size, sweep_folders
from analyses.tables.run import SCHEMA, older_schema
from analyses.wording import count, figure, plural, together

RUN, SWEEP = "run", "sweep"
# How a run stands. Beside what manifests say: killed (it says that it runs, and nobody writes it), elsewhere
# (it says that it runs on another host, which cannot be seen from here), starting and empty (no manifest
# yet, or never), broken (it cannot be read).
RUNNING, DONE, FAILED, INTERRUPTED = "running", "done", "failed", "interrupted"
KILLED, ELSEWHERE, STARTING, EMPTY, BROKEN = "killed", "elsewhere", "starting", "empty", "broken"
LIVE = (RUNNING, STARTING, ELSEWHERE)
_DAMAGE = (KeyError, TypeError, ValueError, AttributeError)


@dataclass(frozen=True)
class Row:
    """A run or a sweep, as a list shows it.

    run: as commands take it; status: one of the words above, of a sweep `done` or `failed`; planned, ok,
    invalid, failed, reused: trials, of a sweep its jobs; headline: the first finding, or else the first
    contrast; gates_failed and gates_warned: how many; started: UTC; age_seconds: since it ended, or since it
    began where it has not; seconds: that it took; bytes: on disk; note: what is the matter with it, a
    sentence, or empty. None is what is not known.
    """

    kind: str
    run: str
    experiment: str
    version: str
    folder: str
    status: str
    exit_status: int | None = None
    model: str | None = None
    dtype: str | None = None
    backend: str | None = None
    question: str | None = None
    n: int | None = None
    planned: int | None = None
    ok: int | None = None
    invalid: int | None = None
    failed: int | None = None
    reused: int | None = None
    headline: str | None = None
    gates_failed: int | None = None
    gates_warned: int | None = None
    started: str | None = None
    age_seconds: float | None = None
    seconds: float | None = None
    bytes: int | None = None
    commit: str | None = None
    config_hash: str | None = None
    semantics: int | None = None
    schema: int | None = None
    note: str = ""


SORTS: Mapping[str, Callable[[Row], Any]] = {
    "name": lambda row: (),  # the order in which they are found
    "age": lambda row: _last(row.age_seconds),
    "size": lambda row: _last(None if row.bytes is None else -row.bytes),
    "seconds": lambda row: _last(None if row.seconds is None else -row.seconds),
    "status": lambda row: row.status,
    "model": lambda row: row.model or "",
}


def list_runs(
    output_root: Path, pattern: str | None = None, *, sort: str = "name", now: datetime | None = None
) -> list[Row]:
    """All runs and sweeps under an output root, or those whose name (`NAME` or `NAME/v0001`) the pattern
    matches: with `*`, `?` or `[` a glob, without them a part of the name.

    sort: `name` (then version), `age` (newest first), `size`, `seconds` (largest first), `status`, `model`. A
    run that cannot be read is a row with its reason, never an error.
    """
    moment = datetime.now(UTC) if now is None else now
    root = Path(output_root)
    rows = [_run(folder, moment) for folder in run_folders(root) if _fits(pattern, run_name(folder))]
    for folder in sweep_folders(root):
        name = f"{folder.parent.parent.name}/sweeps/{folder.name}"
        if _fits(pattern, name):
            rows.append(_sweep(folder, name, moment))
    rows.sort(key=lambda row: row.experiment)  # stable: versions stay in order, sweeps come after them
    return sorted(rows, key=SORTS[sort])


def _fits(pattern: str | None, name: str) -> bool:
    if pattern is None:
        return True
    if any(sign in pattern for sign in "*?["):
        return any(fnmatch.fnmatchcase(each, pattern) for each in (name, name.partition("/")[0]))
    return pattern in name


def _last(value: float | None) -> tuple[bool, float]:
    """For sorting: what is not known comes last."""
    return (value is None, 0.0 if value is None else value)


def _run(folder: Path, now: datetime) -> Row:
    told: dict[str, Any] = {
        "kind": RUN,
        "run": run_name(folder),
        "experiment": folder.parent.name,
        "version": folder.name,
        "folder": str(folder),
        "bytes": size(folder),
    }
    try:
        manifest = _read(folder / "manifest.json")
    except (OSError, *_DAMAGE) as error:
        return Row(**told, status=BROKEN, note=f"{folder / 'manifest.json'}: {error}")
    if manifest is None:
        if is_held(folder):
            return Row(**told, status=STARTING, note="has no manifest yet")
        return Row(**told, status=EMPTY, note="was stopped before it had a manifest")
    try:
        return _of_manifest(told, folder, manifest, now)
    except _DAMAGE as error:
        return Row(**told, status=BROKEN, note=f"{folder / 'manifest.json'}: {error!r}")


def _of_manifest(told: Mapping[str, Any], folder: Path, manifest: Mapping[str, Any], now: datetime) -> Row:
    status, notes = standing(folder, manifest)
    model = manifest.get("model") or {}
    experiment = manifest.get("experiment") or {}
    times = manifest.get("times") or {}
    started, ended = times.get("started"), times.get("finished")
    since = ended if ended is not None and status not in LIVE else started
    age = None if since is None else max((now - _moment(since)).total_seconds(), 0.0)
    git = manifest.get("git") or {}
    schema = manifest.get("schema")
    older = older_schema(manifest)
    if older is not None:
        notes = [*notes, older]
    elif schema != SCHEMA:
        notes = [*notes, f"is of schema {schema!r}, newer than this patchbay, which reads {SCHEMA}"]
    counts: dict[str, Any] = {**_counts(folder, manifest, status)}
    try:
        summary = _read(folder / "summary.json") or {}
        found = _found(summary)
    except (OSError, *_DAMAGE) as error:
        notes, found = [*notes, f"{folder / 'summary.json'}: {error}"], {}
    return Row(
        **told,
        status=status,
        exit_status=manifest.get("exit_status"),
        model=model.get("name"),
        dtype=manifest.get("dtype"),
        backend=manifest.get("backend"),
        question=experiment.get("question") or None,
        n=_items(manifest),
        **counts,
        **found,
        started=started,
        age_seconds=age,
        seconds=_seconds(times, started, ended, age, status),
        commit=git.get("commit"),
        config_hash=manifest.get("config_hash"),
        semantics=manifest.get("semantics"),
        schema=schema if isinstance(schema, int) else None,
        note="; ".join(notes),
    )


def standing(folder: Path, manifest: Mapping[str, Any]) -> tuple[str, list[str]]:
    """How a run stands, one of the words above, and what there is to say about it.

    A run that says it is running is believed where somebody holds its lock. Where nobody does, its process
    was killed; of another host's that cannot be told, since locks are not always seen across a network.
    """
    status = manifest.get("status")
    if not isinstance(status, str):
        return BROKEN, [f"{folder / 'manifest.json'}: status: expected a word, got {status!r}"]
    if status != RUNNING:
        if status == DONE and not (folder / "trials.parquet").is_file():
            return BROKEN, ["is done, but trials.parquet is missing"]
        return status, []
    pid, host = manifest.get("pid"), manifest.get("host")
    here = host is None or host == socket.gethostname()
    gone = here and isinstance(pid, int) and not _alive(pid)
    if not gone and is_held(folder):
        return RUNNING, []
    if here:
        return KILLED, [f"process {pid} ended without a word; go on with resume=true"]
    return ELSEWHERE, [f"runs on {host}, or was killed there: its lock cannot be seen from here"]


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _items(manifest: Mapping[str, Any]) -> int | None:
    """Pairs that were found; of a run with stages, the most of any."""
    sections = [manifest, *(manifest.get("stages") or {}).values()]
    found = [(section.get("prompts") or {}).get("items") for section in sections]
    known = [items for items in found if isinstance(items, int)]
    return max(known) if known else (manifest.get("experiment") or {}).get("n")


def _counts(folder: Path, manifest: Mapping[str, Any], status: str) -> dict[str, int | None]:
    counts = manifest.get("counts") or {}
    if counts and status not in LIVE:
        same = ("planned", "invalid", "failed", "reused")
        return {"ok": counts.get("done"), **{name: counts.get(name) for name in same}}
    try:
        planned = pq.read_metadata(folder / "plan.parquet").num_rows
    except (OSError, pa.ArrowException):
        return {}  # between two stages, or not begun
    return {"planned": planned, **_so_far(folder)}


def _so_far(folder: Path) -> dict[str, int]:
    """Results in the segments by status. A quotation mark within a text is escaped there, so that the words
    searched for stand only where a result says its status."""
    found = dict.fromkeys(("ok", "invalid", "failed"), 0)
    for segment in (folder / "segments").glob("*.jsonl"):
        try:
            with segment.open("rb") as lines:
                for line in lines:
                    for name in found:
                        found[name] += b'"status":"%b"' % name.encode() in line
        except OSError:
            continue  # the run has just ended
    return found


def _seconds(
    times: Mapping[str, Any], started: str | None, ended: str | None, age: float | None, status: str
) -> float | None:
    spent = times.get("seconds") or {}
    if spent:
        return float(sum(spent.values()))
    if status in LIVE:
        return age
    return None if started is None or ended is None else (_moment(ended) - _moment(started)).total_seconds()


def _found(summary: Mapping[str, Any]) -> dict[str, Any]:
    """What a summary says in a line: its headline, and how many gates say that something is wrong."""
    verdicts = [gate["verdict"] for gate in summary.get("gates") or ()]
    if not summary:
        return {}
    return {
        "headline": headline(summary),
        "gates_failed": verdicts.count("fail"),
        "gates_warned": verdicts.count("warn"),
    }


def headline(summary: Mapping[str, Any]) -> str | None:
    """The first finding that is a mean or a difference, or else any, or else the first contrast that could
    be tested, with its interval."""
    findings = [
        finding for finding in summary.get("findings") or () if isinstance(finding.get("value"), int | float)
    ]
    measured = [finding for finding in findings if finding.get("kind") in ("mean", "difference")]
    for finding in (*measured, *findings):
        value = finding["value"]
        if finding not in measured:
            return f"{finding['name']} {value:g}"
        percent = finding.get("unit") == "share"
        return f"{finding['name']} {_with_span(value, finding.get('low'), finding.get('high'), percent)}"
    for contrast in summary.get("contrasts") or ():
        difference = contrast.get("difference")
        if difference is not None:
            span = _with_span(difference, contrast.get("ci_low"), contrast.get("ci_high"), sign=True)
            return f"{contrast['condition']} {span}"
    return None


def _with_span(
    value: float, low: float | None, high: float | None, percent: bool = False, sign: bool = False
) -> str:
    values = (value, low, high)
    told = [f"{100 * v:.0f}%" for v in values if v is not None] if percent else together(*values)
    first = f"+{told[0]}" if sign and value > 0 else told[0]
    return first if low is None or high is None else f"{first} ({told[1]} to {told[2]})"


def _sweep(folder: Path, name: str, now: datetime) -> Row:
    told: dict[str, Any] = {
        "kind": SWEEP,
        "run": name,
        "experiment": folder.parent.parent.name,
        "version": folder.name,
        "folder": str(folder),
        "bytes": size(folder),
    }
    path = folder / "summary.json"
    try:
        summary = _read(path)
        if summary is None:
            return Row(**told, status=EMPTY, note="has no summary.json: it was stopped before its end")
        jobs = summary["jobs"]
        statuses = [job["status"] for job in jobs]
        keys = list(dict.fromkeys(key for job in jobs for key in job["swept"]))
        ok = statuses.count(0)
        return Row(
            **told,
            status=DONE if ok == len(statuses) else FAILED,
            planned=len(statuses),
            ok=ok,
            failed=len(statuses) - ok,
            headline=f"{plural(len(statuses), 'job')} over {', '.join(keys)}",
            age_seconds=max(now.timestamp() - path.stat().st_mtime, 0.0),
        )
    except (OSError, *_DAMAGE) as error:
        return Row(**told, status=BROKEN, note=f"{path}: {error!r}")


def _read(path: Path) -> dict[str, Any] | None:
    """The JSON object of a file; None where there is no such file. Raises ValueError and OSError."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        found = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise ValueError(f"expected JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"expected a JSON object, got {type(found).__name__}")
    return found


def _moment(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def span(seconds: float | None) -> str:
    """A span of time in one unit: 12 s, 4 min, 3 h, 5 d; empty where it is not known."""
    if seconds is None:
        return ""
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length or (unit == "min" and seconds >= length):
            return f"{count(seconds // length)} {unit}"
    return f"{figure(seconds, 0)} s"


def disk(size: int | None) -> str:
    """Bytes in one unit: 12 kB, 3.4 MB; empty where they are not known."""
    if size is None:
        return ""
    for unit, length in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= length:
            return f"{size / length:.0f} {unit}" if size >= 10 * length else f"{size / length:.1f} {unit}"
    return f"{size} B"
