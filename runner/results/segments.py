"""The results of a run that has not ended, as they were appended: found by key, read when they are asked
for."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from runner.key_table import Keys, KeyTable, Places, keys_of, packed


class StoreError(Exception):
    """A run folder that cannot be created, locked or read; the message says which and what to do."""


@dataclass(frozen=True)
class Segments:
    """Where the result of each key is. found: the keys, each with the place of its line among `file`, `start`
    and `length` (bytes); ok: whether a line's result is valid; failed: whether it is of a failed trial."""

    paths: tuple[Path, ...]
    found: KeyTable
    file: NDArray[np.int32]
    start: NDArray[np.int64]
    length: NDArray[np.int32]
    ok: NDArray[np.bool_]
    failed: NDArray[np.bool_]

    @staticmethod
    def of(folder: Path) -> Segments:
        """Those of a version. A torn last line of a segment is dropped (its writer was killed); a failed
        trial gives way to a later result.

        Raises StoreError for a broken line that is not the last, and for two results of one key.
        """
        paths = tuple(sorted((folder / "segments").glob("*.jsonl")))
        keys, held = bytearray(), array("q")
        for number, path in enumerate(paths):
            for start, length, result in _results(path):
                keys += packed(result["key"])
                status = result["status"]
                held.extend((number, start, length, status == "ok", status == "failed"))
        lines = np.frombuffer(held, dtype=np.int64).reshape(-1, 5)
        kept = _kept(keys_of(keys), lines, paths)
        return Segments(
            paths,
            KeyTable.of(keys_of(keys)[kept]),
            lines[kept, 0].astype(np.int32),
            lines[kept, 1].copy(),
            lines[kept, 2].astype(np.int32),
            lines[kept, 3].astype(bool),
            lines[kept, 4].astype(bool),
        )

    def places(self, keys: Keys) -> Places:
        """The line of each key; -1 where there is no result of it."""
        found = self.found.find(keys)
        if not len(self.found):
            return found
        return np.where(found < 0, -1, self.found.rows[found])

    def read(self, places: Places) -> Iterator[dict[str, Any]]:
        """The results of lines, in the order in which they were stored."""
        places = places[np.lexsort((self.start[places], self.file[places]))]
        files = self.file[places]
        for number in np.unique(files).tolist():
            with self.paths[number].open("rb") as segment:
                for place in places[files == number].tolist():
                    segment.seek(int(self.start[place]))
                    yield orjson.loads(segment.read(int(self.length[place])))


def _results(path: Path) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """The results of a segment, with where each line begins and how many bytes it has."""
    start = 0
    with path.open("rb") as segment:
        for number, line in enumerate(segment, start=1):
            if not line.endswith(b"\n"):
                return  # torn
            if line != b"\n":
                try:
                    result = orjson.loads(line)
                    _ = result["key"], result["status"]
                except (orjson.JSONDecodeError, KeyError, TypeError) as error:
                    told = f"{path}:{number}: expected a result as one JSON object: {error}"
                    raise StoreError(told) from error
                yield start, len(line), result
            start += len(line)


def _kept(keys: Keys, lines: NDArray[np.int64], paths: tuple[Path, ...]) -> Places:
    """Of each key the line that counts: the first that did not fail, else the first. Raises StoreError for
    two that did not fail. lines: [lines, 5], of each its file, start and length, whether ok, whether
    failed."""
    table = KeyTable.of(keys)
    valid = np.flatnonzero(lines[:, 4] == 0)
    held = KeyTable.of(keys[valid])
    if len(held) < len(valid):
        again = int(np.setdiff1d(valid, valid[held.rows])[0])
        path, start = paths[int(lines[again, 0])], int(lines[again, 1])
        with path.open("rb") as segment:
            before = segment.read(start).count(b"\n")
            key = orjson.loads(segment.readline())["key"]
        raise StoreError(
            f"{path}:{before + 1}: a second result for trial {key}; one of the segments is a copy"
        )
    kept = table.rows.copy()
    kept[table.find(held.keys)] = valid[held.rows]
    return kept
