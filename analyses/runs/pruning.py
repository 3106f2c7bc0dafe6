"""Which old versions could go: a plan, from folders and manifests; nothing is removed here."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from analyses.runs.folders import sweep_folders
from analyses.runs.listing import DONE, LIVE, RUN, Row, list_runs


@dataclass(frozen=True)
class Plan:
    """remove: versions that can go, oldest first; kept: beyond the newest, run -> why it stays; borrowers:
    run to be removed -> later runs with copies of its rows."""

    remove: tuple[Row, ...]
    kept: dict[str, str] = field(default_factory=dict)
    borrowers: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """What removing them frees."""
        return sum(row.bytes or 0 for row in self.remove)


def plan(
    output_root: Path,
    name: str | None = None,
    *,
    keep: int = 3,
    older_than: timedelta | None = None,
    now: datetime | None = None,
) -> Plan:
    """What pruning would remove: of each experiment, or of `name`, all but the newest `keep` versions.

    older_than: of those only what ended longer ago (of a version whose age is not known: nothing). Besides
    the newest, these stay: the newest finished version, what somebody writes or may be writing, the jobs of
    sweeps, and links.
    """
    rows = [row for row in list_runs(output_root, now=now) if row.kind == RUN]
    members = _members(output_root)
    remove: list[Row] = []
    kept: dict[str, str] = {}
    for experiment in dict.fromkeys(row.experiment for row in rows if name in (None, row.experiment)):
        versions = [row for row in rows if row.experiment == experiment]
        finished = [row.run for row in versions if row.status == DONE]
        for row in versions[: max(len(versions) - keep, 0)]:
            reason = _stays(row, finished[-1:], members, older_than)
            if reason is None:
                remove.append(row)
            else:
                kept[row.run] = reason
    return Plan(tuple(remove), kept, _borrowers(remove, rows))


def _stays(
    row: Row, newest_finished: Sequence[str], members: dict[str, str], older_than: timedelta | None
) -> str | None:
    if row.status in LIVE:
        return f"is {row.status}"
    if Path(row.folder).is_symlink():
        return "is a link"
    if row.run in newest_finished:
        return "is the newest finished version"
    if row.run in members:
        return f"is a job of {members[row.run]}"
    if older_than is not None and (row.age_seconds is None or row.age_seconds < older_than.total_seconds()):
        return "is not old enough" if row.age_seconds is not None else "is of unknown age"
    return None


def _members(output_root: Path) -> dict[str, str]:
    """Runs that are jobs of a sweep -> the sweep."""
    found: dict[str, str] = {}
    for sweep in sweep_folders(output_root):
        try:
            jobs = json.loads((sweep / "summary.json").read_bytes())["jobs"]
            folders = [Path(job["folder"]) for job in jobs if job["folder"] is not None]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        for folder in folders:
            found[f"{folder.parent.name}/{folder.name}"] = f"{sweep.parent.parent.name}/sweeps/{sweep.name}"
    return found


def _borrowers(remove: Sequence[Row], rows: Sequence[Row]) -> dict[str, tuple[str, ...]]:
    going = {row.run for row in remove}
    found: dict[str, list[str]] = {}
    for row in rows:
        if row.run in going or not any(each.experiment == row.experiment for each in remove):
            continue
        for origin in _origins(Path(row.folder) / "trials.parquet"):
            if origin in going:
                found.setdefault(origin, []).append(row.run)
    return {origin: tuple(runs) for origin, runs in found.items()}


def _origins(table: Path) -> list[str]:
    try:
        origins = pc.unique(pq.read_table(table, columns=["origin"])["origin"]).to_pylist()
    except (OSError, KeyError, pa.ArrowException):
        return []  # it has no table, or no rows of others
    return [origin for origin in origins if isinstance(origin, str)]
