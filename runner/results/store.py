"""Run folders: versions that are never overwritten, segments that survive a kill, one table at the end."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from analyses.runs.folders import versions
from runner.results.rows import Rows, give_back, in_groups
from runner.results.segments import Segments
from runner.results.segments import StoreError as StoreError

FINISHED = "done"
ROW_GROUP = 8192  # rows of a table that are in memory at once while it is written


class CannotWrite(StoreError):
    """Results cannot be written any more (disk full, quota, file limit); what was written before is kept."""

    def __init__(self, folder: Path, error: OSError) -> None:
        super().__init__(
            f"{folder}: results cannot be written any more ({error.strerror}); what is stored is kept: make "
            "room and go on with resume=true"
        )


def atomic_write(path: Path, data: bytes) -> None:
    """Write aside, sync, rename, sync the folder: a reader sees the old file or the new one, never half of
    it."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with aside.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a version; None where it was killed before it wrote one. Raises StoreError if
    unreadable."""
    path = folder / "manifest.json"
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_bytes())
    except ValueError as error:
        raise StoreError(f"{path}: expected JSON: {error}") from error
    if not isinstance(found, dict):
        raise StoreError(f"{path}: expected a JSON object")
    return found


def _held(lock: IO[bytes]) -> bool:
    """Take the lock. Who only asks whether it is held has it for a moment, so a writer tries again."""
    for _ in range(10):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError:
            time.sleep(0.02)
    return False


@dataclass
class RunFolder:
    """One version, locked by this process while it is open."""

    path: Path
    _lock: IO[bytes]
    _segment: IO[bytes] | None = field(default=None)

    @staticmethod
    def create(experiment: Path) -> RunFolder:
        """The next version, created exclusively. Raises StoreError where the folder cannot be written."""
        try:
            experiment.mkdir(parents=True, exist_ok=True)
            existing = versions(experiment)
            number = int(existing[-1].name[1:]) + 1 if existing else 1
            while True:
                path = experiment / f"v{number:04d}"
                try:
                    path.mkdir()
                    break
                except FileExistsError:
                    number += 1  # taken in between by another process, or by something that is no run
            (path / "segments").mkdir()
        except OSError as error:
            raise StoreError(
                f"{experiment}: results cannot be written here ({error.strerror}); choose another folder "
                "with output_root=FOLDER"
            ) from error
        return RunFolder.open(path)

    @staticmethod
    def open(path: Path) -> RunFolder:
        """Lock an existing version. Raises StoreError where another process writes it."""
        try:
            lock = (path / "lock").open("ab")
        except OSError as error:
            raise StoreError(f"{path}: cannot be opened for writing ({error.strerror})") from error
        if not _held(lock):
            lock.close()
            raise StoreError(f"{path}: another process is writing this run; wait for it or stop it")
        return RunFolder(path, lock)

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._segment is not None:
            self._segment.close()
        self._lock.close()

    @property
    def name(self) -> str:
        """`experiment/v0001`."""
        return f"{self.path.parent.name}/{self.path.name}"

    def write_json(self, name: str, body: Mapping[str, Any]) -> None:
        self.write_text(name, json.dumps(body, indent=2, ensure_ascii=False, default=str))

    def write_text(self, name: str, body: str) -> None:
        """Write a file of the run whole. Raises CannotWrite."""
        try:
            atomic_write(self.path / name, body.encode())
        except OSError as error:
            raise CannotWrite(self.path, error) from error

    def write_plan(self, plan: Rows) -> None:
        """Write plan.parquet."""
        self._write_table("plan.parquet", plan)

    def write_prompts(self, prompts: pa.Table) -> None:
        """Write prompts.parquet, which stays."""
        self._write_table("prompts.parquet", Rows.of(prompts))

    def append(self, results: Iterable[Mapping[str, Any]]) -> None:
        """Add finished trials to this attempt's segment and sync them to disk."""
        try:
            if self._segment is None:
                self._segment = self._new_segment()
            self._segment.write(b"".join(orjson.dumps(result) + b"\n" for result in results))
            self._segment.flush()
            os.fsync(self._segment.fileno())
        except OSError as error:
            raise CannotWrite(self.path, error) from error

    def _new_segment(self) -> IO[bytes]:
        folder = self.path / "segments"
        folder.mkdir(exist_ok=True)
        number = len(list(folder.glob("*.jsonl")))
        while True:
            try:
                return (folder / f"{number:04d}-{os.getpid()}.jsonl").open("xb")
            except FileExistsError:
                number += 1

    def write_trials(self, trials: Rows | pa.Table) -> None:
        """Write trials.parquet. The segments stay until `clear`, so that a kill in between loses nothing."""
        self._write_table("trials.parquet", trials if isinstance(trials, Rows) else Rows.of(trials))

    def clear(self) -> None:
        """Remove the segments and the plan, which trials.parquet holds."""
        if self._segment is not None:
            self._segment.close()
            self._segment = None
        shutil.rmtree(self.path / "segments", ignore_errors=True)
        (self.path / "plan.parquet").unlink(missing_ok=True)

    def _write_table(self, name: str, table: Rows) -> None:
        aside = self.path / f".{name}.tmp"
        try:
            with pq.ParquetWriter(aside, table.schema, compression="zstd") as writer:
                for group in in_groups(table, ROW_GROUP):
                    writer.write_table(group)
            with aside.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(aside, self.path / name)
            _sync_folder(self.path)
        except OSError as error:
            raise CannotWrite(self.path, error) from error
        finally:
            give_back()  # of a large table tens of megabytes would be kept for nothing


def read_segments(folder: Path) -> dict[str, dict[str, Any]]:
    """Results of a version's segments by key, all of them at once. Raises StoreError as `Segments.of`
    does."""
    found = Segments.of(folder)
    return {result["key"]: result for result in found.read(np.arange(len(found.file)))}
