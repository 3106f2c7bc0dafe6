"""Which version a run writes to, and which results it can take from earlier ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from analyses.runs.folders import versions
from analyses.tables.join import RECEIPT_COLUMNS
from runner.config.readouts.readout import Readout
from runner.config.resolve import NOT_HASHED, NOT_HASHED_BACKEND
from runner.key_table import Keys, KeyTable, Places, keys_named
from runner.ledger import Ledger
from runner.results.segments import Segments
from runner.results.store import FINISHED, StoreError, read_manifest
from runner.scores.scoring import Scorer, Words

PART = 1024  # results that are taken at a time


@dataclass(frozen=True)
class Choice:
    """unfinished: the version to go on with; finished: one that already answers; neither: a new version."""

    unfinished: Path | None = None
    finished: Path | None = None


@dataclass(frozen=True)
class Rescoring:
    """What is taken again of stored results, so that it is as this code and this configuration have it: the
    scores of the text, and what is derived."""

    scorer: Scorer

    @staticmethod
    def of(readouts: Sequence[Readout]) -> Rescoring:
        """For the readouts of a stage."""
        return Rescoring(Scorer.of(readouts))

    def scored(self, result: dict[str, Any], words: Words) -> dict[str, Any]:
        """A result scored again. What was measured on tensors stays: it is part of the key. One that is not
        ok has no scores. words: what its text is searched for, by readout."""
        if result["status"] != "ok":
            return result
        return {**result, "scores": self.scorer.scores(result["text"], words, result["scores"])}


class CannotResume(Exception):
    """There is an unfinished run, but of another configuration; the message says what differs."""


def choose(experiment: Path, digest: str, config: Mapping[str, Any], note: Callable[[str], None]) -> Choice:
    """What `resume=true` means here: the newest unfinished version of the same configuration, if any.

    A version whose manifest cannot be read is noted and passed over. Raises CannotResume where the only
    unfinished version has another configuration.
    """
    known = list(_manifests(experiment, note))
    same = [(path, manifest) for path, manifest in known if manifest["config_hash"] == digest]
    for path, manifest in same:
        if manifest["status"] != FINISHED:
            return Choice(unfinished=path)
    others = [(path, manifest) for path, manifest in known if manifest["status"] != FINISHED]
    if same and (not others or _number(same[0][0]) > _number(others[0][0])):
        return Choice(finished=same[0][0])
    if others:
        path, manifest = others[0]
        raise CannotResume(
            f"{path} is unfinished, but its configuration is another one: "
            f"{differences(manifest['config'], config)}. Run without resume=true to start a new version; "
            "finished trials that both share are taken over."
        )
    return Choice()


def _manifests(experiment: Path, note: Callable[[str], None]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Versions with a manifest, newest first."""
    for path in reversed(versions(experiment)):
        try:
            manifest = read_manifest(path)
        except StoreError as error:
            note(str(error))
            continue
        if manifest is None:
            continue  # killed before it had one
        lacking = [key for key in ("config_hash", "status", "config") if key not in manifest]
        if lacking:
            note(f"{path / 'manifest.json'}: expected the keys {', '.join(lacking)}")
            continue
        yield path, manifest


def _number(path: Path) -> int:
    return int(path.name[1:])


def differences(old: Mapping[str, Any], new: Mapping[str, Any], most: int = 5) -> str:
    """The keys in which two configurations differ, with both values, as words."""
    left, right = dict(_leaves(old)), dict(_leaves(new))
    changed = [key for key in sorted({*left, *right}) if left.get(key) != right.get(key)]
    keys = [key for key in changed if not any(f"{key}.".startswith(f"{name}.") for name in UNHASHED)]
    shown = [f"{key} was {left.get(key, 'absent')!r}, is {right.get(key, 'absent')!r}" for key in keys[:most]]
    return "; ".join(shown) + (f"; and {len(keys) - most} more" if len(keys) > most else "")


# Differences in these keys are none.
UNHASHED = (*NOT_HASHED, *(f"backend.{key}" for key in NOT_HASHED_BACKEND))


def _leaves(body: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(body, Mapping) and body:
        for key, value in body.items():
            yield from _leaves(value, f"{path}.{key}" if path else str(key))
    else:
        yield path, body


def changed_inputs(
    manifest: Mapping[str, Any],
    model: Mapping[str, Any],
    banks: Mapping[str, Mapping[str, tuple[str, str]]],
) -> list[str]:
    """What a resumed run would compute from other inputs: prompt banks of any stage, weights, tokenizer.
    Empty where nothing is. model: as the manifest would describe it now; banks: stage -> name -> (path,
    sha256), as each stage would read them now (one name may be another file in another language)."""
    out: dict[str, None] = {}
    for stage, now in banks.items():
        section = (manifest.get("stages") or {}).get(stage, {}) if manifest.get("stages") else manifest
        for name, bank in (section.get("prompts") or {}).get("banks", {}).items():
            if name in now and now[name][1] != bank["sha256"]:
                out[f"prompt bank '{name}' ({now[name][0]})"] = None
    for key, what in (("fingerprint", "the model's weights"), ("tokenizer_fingerprint", "the tokenizer")):
        if manifest["model"][key] != model[key]:
            out[what] = None
    return list(out)


def receipt_orders(manifest: Mapping[str, Any]) -> dict[tuple[str, str], list[str]]:
    """(stage, condition) -> names of its writes in the order of their receipts, of every stage."""
    stages = manifest.get("stages") or {manifest.get("experiment", {}).get("stage", ""): manifest}
    return {
        (stage, name): body["receipt_order"]
        for stage, section in stages.items()
        for name, body in (section.get("conditions") or {}).items()
    }


@dataclass
class Wanted:
    """The trials of a stage whose results are still looked for, each key once. rows: in the ledger, of the
    first trial of each."""

    ledger: Ledger
    rows: Places
    open: NDArray[np.bool_]
    _table: KeyTable

    @staticmethod
    def of(ledger: Ledger) -> Wanted:
        """All that can be run."""
        rows = ledger.wanted()
        return Wanted(ledger, rows, np.ones(len(rows), dtype=bool), KeyTable.of(ledger.keys[rows]))

    @property
    def left(self) -> Places:
        """Rows of the trials that have no result yet."""
        return self.rows[self.open]

    def among(self, keys: Keys) -> NDArray[np.bool_]:
        """Which of these keys are still looked for."""
        places = self._places(keys)
        there = places >= 0
        there[there] = self.open[places[there]]
        return there

    def found(self, keys: Keys) -> None:
        """These are known now."""
        places = self._places(keys)
        self.open[places[places >= 0]] = False

    def words(self, key: str) -> Words:
        """What the text of a trial that is looked for is searched for."""
        (place,) = self._places(keys_named([key]))
        return self.ledger.words_of(int(self.rows[place]))

    def _places(self, keys: Keys) -> Places:
        if not len(self.rows):
            return np.full(len(keys), -1, dtype=np.int64)
        places = self._table.find(keys)
        return np.where(places < 0, -1, self._table.rows[places])


def earlier_results(
    experiment: Path,
    wanted: Wanted,
    but: Path,
    columns: Mapping[str, str],
    again: Rescoring,
    note: Callable[[str], None],
) -> Iterator[list[dict[str, Any]]]:
    """Finished results of wanted trials from any other version, newest first, with their `origin`, some at a
    time; they are wanted no more.

    columns: those of the readouts. Failed ones are not taken. A damaged version is noted and passed over.
    again: how scores and derived values are taken again.
    """
    for path in reversed(versions(experiment)):
        if path == but or not wanted.open.any():
            continue
        origin = f"{path.parent.name}/{path.name}"
        try:
            for results in _results_of(path, wanted, columns):
                found = [
                    {
                        **again.scored(result, wanted.words(result["key"])),
                        "origin": origin if result["origin"] is None else result["origin"],
                    }
                    for result in results
                ]
                wanted.found(keys_named(result["key"] for result in found))
                yield found
        except (StoreError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            note(f"nothing more is taken over from {path}, which cannot be read: {error!r}")


def own_results(
    path: Path, wanted: Wanted, columns: Mapping[str, str], again: Rescoring
) -> Iterator[list[dict[str, Any]]]:
    """What an unfinished version has in its table, where it was killed after writing that, and not in its
    segments, some at a time. Those of both are wanted no more."""
    segments = Segments.of(path)
    wanted.found(segments.found.keys[~segments.failed[segments.found.rows]])
    if (path / "trials.parquet").is_file():
        for results in _results_of(path, wanted, columns):
            found = [again.scored(result, wanted.words(result["key"])) for result in results]
            wanted.found(keys_named(result["key"] for result in found))
            yield found


def _results_of(path: Path, wanted: Wanted, columns: Mapping[str, str]) -> Iterator[list[dict[str, Any]]]:
    """The valid results of wanted trials that a version has."""
    table = path / "trials.parquet"
    if not table.is_file():
        segments = Segments.of(path)
        places = segments.found.rows[wanted.among(segments.found.keys)]
        places = places[segments.ok[places]]
        for first in range(0, len(places), PART):
            yield list(segments.read(places[first : first + PART]))
        return
    manifest = read_manifest(path)
    if manifest is None or not _has(table, wanted):
        return
    orders = receipt_orders(manifest)
    for batch in pq.ParquetFile(table).iter_batches(batch_size=PART):
        keys = keys_named(batch["key"].to_pylist())
        ok = np.array([status == "ok" for status in batch["status"].to_pylist()], dtype=bool)
        rows = np.flatnonzero(wanted.among(keys) & ok)
        rows = np.sort(rows[KeyTable.of(keys[rows]).rows])
        if len(rows):
            yield [
                from_row(row, orders[row["stage"], row["condition"]], columns)
                for row in batch.take(pa.array(rows)).to_pylist()
            ]


def _has(table: Path, wanted: Wanted) -> bool:
    batches = pq.ParquetFile(table).iter_batches(columns=["key"])
    return any(wanted.among(keys_named(batch["key"].to_pylist())).any() for batch in batches)


def from_row(row: Mapping[str, Any], order: list[str], columns: Mapping[str, str]) -> dict[str, Any]:
    """A result in stored form from a row of the table, with the values of the columns named."""
    kept = ("key", "status", "reason", "output_ids", "text", "n_new", "finish", "origin", "batch_rows")
    return {
        **{name: row[name] for name in (*kept, "batch_length", "min_margin")},
        "scores": {name: row[name] for name in columns if row.get(name) is not None},
        "receipts": [{name: row[f"{write}.{name}"] for name in RECEIPT_COLUMNS} for write in order],
    }
