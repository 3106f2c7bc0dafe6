"""The trials that a report carries, for its browser: columns of plain data, whole items, within bounds."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from analyses.tables.columns import RECEIPTS
from analyses.tables.prompts import ids_by_role
from analyses.tables.run import Run, read_rows, value_columns
from analyses.tables.stages import staged
from analyses.wording import count, plural

MOST_TRIALS = 10_000
MOST_BYTES = 10_000_000  # of outputs; what a page of less than 15 MB can carry beside all else
MOST_PROMPTS = 2_000_000  # characters of prompts
PROMPTS = "prompts.parquet"
_DIGITS = 5  # significant, of readouts and receipts
_ITEM = ["stage", "item"]
_CODED = ("stage", "condition", "item", "group", "donor", "target", "status", "reason", "finish", "text")
_WHOLE = ("repeat", "n_prompt", "n_new")


@dataclass(frozen=True)
class Shown:
    """What the browser of a report shows. data: for its script; trials, items: how many of each; sentences:
    what is left out, and why."""

    data: Mapping[str, Any]
    trials: int
    items: int
    sentences: tuple[str, ...]


def shown_trials(run: Run, most: int = MOST_TRIALS, most_bytes: int = MOST_BYTES) -> Shown:
    """The first items of every stage with all of their trials: at most `most` trials and about `most_bytes`
    of outputs, but one item at least.

    In `data`, texts that recur are coded: `words`, and for each trial the place `at` which its own stands, -1
    for none. Numbers are rounded to five significant digits. `receipts` of a write name the rows that have
    them.
    """
    rows, whole = _first_items(run, most, most_bytes)
    items = len(rows.drop_duplicates(_ITEM))
    texts = _prompt_texts(run.folder / PROMPTS, rows)
    sentences = _left_out(len(run.trials), len(rows), items, whole)
    if texts is None:
        sentences.append("The folder has no texts of prompts (prompts.parquet): only their ids are shown.")
    elif (longest := MOST_PROMPTS // max(len(texts), 1)) < max(map(len, texts.values()), default=0):
        texts = {
            ids: text if len(text) <= longest else f"{text[:longest]} ..." for ids, text in texts.items()
        }
        sentences.append(
            f"Prompts are cut after {count(longest)} characters; prompts.parquet has them whole."
        )
    ids = ("target_ids", "donor_ids", "output_ids")
    lists = [str(name) for name in rows.columns if name not in ids and _holds_lists(rows[name])]
    if lists:
        sentences.append(
            f"Readouts that are lists are in trials.parquet, not here: {', '.join(sorted(lists))}."
        )
    data = {
        "n": len(rows),
        "staged": staged(run.manifest),
        "stages": _stages(run.manifest, rows),
        "columns": {name: _coded(rows[name]) for name in _CODED if name in rows.columns},
        "numbers": {name: _numbers(rows[name]) for name in _WHOLE if name in rows.columns},
        "readouts": {name: _numbers(rows[name]) for name in value_columns(rows)},
        "receipts": _receipts(rows),
        "prompts": None if texts is None else _prompts(rows, texts),
        "highlights": _highlights(run.manifest),
    }
    return Shown(data, len(rows), items, tuple(sentences))


def _first_items(run: Run, most: int, most_bytes: int) -> tuple[pd.DataFrame, int]:
    """The rows of the first items, in the table's order within each; and how many items there are. Of a table
    without texts these rows alone are read whole."""
    trials = run.trials
    stages, _ = pd.factorize(trials["stage"])
    items, kinds = pd.factorize(trials["item"])
    codes, known = pd.factorize(stages.astype(np.int64) * max(len(kinds), 1) + items)
    stage_of = known // max(len(kinds), 1)
    # The stages take turns, so that none of them is left out.
    turn = pd.Series(stage_of).groupby(stage_of).cumcount().to_numpy()
    order = np.argsort(turn, kind="stable")
    fits = np.cumsum(np.bincount(codes, minlength=len(known))[order]) <= most
    fits[:1] = True
    place = np.full(len(known), -1)
    place[order[fits]] = np.arange(int(fits.sum()))
    chosen = np.flatnonzero(place[codes] >= 0)
    rows, places = trials.iloc[chosen], place[codes[chosen]]
    if "text" not in trials.columns and (run.folder / "trials.parquet").is_file():
        rows = read_rows(run.folder, chosen)
    if "text" in rows.columns and len(rows):
        lengths = [len(text.encode()) if isinstance(text, str) else 0 for text in rows["text"]]
        enough = np.cumsum(np.bincount(places, weights=lengths)) <= most_bytes
        enough[:1] = True
        rows, places, chosen = rows[enough[places]], places[enough[places]], chosen[enough[places]]
    ordered = np.lexsort((np.arange(len(rows)), places, stages[chosen]))
    return rows.iloc[ordered[: max(most, 1)]].reset_index(drop=True), len(known)


def _left_out(trials: int, rows: int, items: int, whole: int) -> list[str]:
    if rows == trials:
        return []
    return [
        f"Of {plural(trials, 'trial')} the first {count(rows)} are here: {count(items)} of "
        f"{plural(whole, 'item')}, each in all conditions. All of them are in trials.parquet, and in every "
        "figure above."
    ]


def _stages(manifest: Mapping[str, Any], rows: pd.DataFrame) -> dict[str, Any]:
    """What the browser must know of each stage: its conditions in order, with labels, and what they are
    compared with, on what."""
    sections = manifest.get("stages") or {}
    found = {}
    for name in rows["stage"].unique():
        section = sections.get(name) or manifest
        contrasts = section.get("contrasts") or {}
        declared = section.get("conditions") or {}
        present = list(rows.loc[rows["stage"] == name, "condition"].unique())
        order = [each for each in declared if each in set(present)]
        order += [each for each in present if each not in declared]
        found[str(name)] = {
            "baseline": contrasts.get("baseline", "baseline"),
            "primary": contrasts.get("primary", "score"),
            "conditions": {each: (declared.get(each) or {}).get("label") or each for each in order},
        }
    return found


def _highlights(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Word lists that readouts look for in texts: name -> words, as `trials.js` marks them."""
    readouts: dict[str, Mapping[str, Any]] = {}
    for section in (manifest, *(manifest.get("stages") or {}).values()):
        readouts |= section.get("readout") or {}
    found = []
    markers = (manifest.get("markers") or {}).get("list") or []
    behaviour = [name for name, each in readouts.items() if each.get("kind") == "behaviour"]
    if markers and (behaviour or not readouts):
        found.append({"name": "markers", "words": [str(each) for each in markers]})
    for name, each in readouts.items():
        words = str(each.get("tokens") or "")
        # A word with a colon names a fact of each prompt, not a text.
        if each.get("kind") == "contains" and words and ":" not in words:
            found.append({"name": name, "words": [word.strip() for word in words.split(",")]})
    return found


def _receipts(rows: pd.DataFrame) -> dict[str, Any]:
    """Of each write its rows and what is known of them."""
    writes = dict.fromkeys(
        str(name).rpartition(".")[0]
        for name in rows.columns
        if str(name).rpartition(".")[2] in RECEIPTS and str(name).rpartition(".")[0]
    )
    found = {}
    for write in writes:
        fields = {last: rows[f"{write}.{last}"] for last in RECEIPTS if f"{write}.{last}" in rows.columns}
        present = np.flatnonzero(pd.DataFrame(fields).notna().any(axis=1))
        if len(present):
            told = {last: _numbers(values.iloc[present]) for last, values in fields.items()}
            found[write] = {
                "rows": present.tolist(),
                "fields": {last: values for last, values in told.items() if any(_tells(v) for v in values)},
            }
    return found


def _tells(value: float | None) -> bool:
    return value is not None and value != 0


def _prompt_texts(path: Path, rows: pd.DataFrame) -> dict[tuple[int, ...], str] | None:
    """Texts by ids, of the prompts that these rows read; None where the run has not stored them."""
    if not {"target_ids", "donor_ids"} <= set(rows.columns) or not path.is_file():
        return None
    try:
        table = pq.read_table(path, columns=["ids", "text"])
    except (OSError, pa.ArrowException):
        return None
    wanted = {ids for fed in rows["target_ids"] if (ids := _tokens(fed)) is not None}
    wanted |= {ids for read in rows["donor_ids"] for ids in ids_by_role(read).values()}
    pairs = zip(table["ids"].to_pylist(), table["text"].to_pylist(), strict=True)
    return {tuple(ids): text for ids, text in pairs if tuple(ids) in wanted}


def _prompts(rows: pd.DataFrame, texts: Mapping[tuple[int, ...], str]) -> dict[str, Any]:
    """The prompts as texts, each once, and for each trial the one that was fed and those it reads from."""
    places: dict[tuple[int, ...], int] = {}

    def place(ids: tuple[int, ...] | None) -> int:
        return -1 if ids is None else places.setdefault(ids, len(places))

    fed = [place(_tokens(ids)) for ids in rows["target_ids"]]
    read = _coding(
        tuple((role, place(ids)) for role, ids in ids_by_role(each).items()) for each in rows["donor_ids"]
    )
    return {
        "texts": [texts.get(ids) for ids in places],
        "tokens": [len(ids) for ids in places],
        "fed": fed,
        "read": read,
    }


def _tokens(cell: Any) -> tuple[int, ...] | None:
    """A cell of `target_ids`; None where it is missing."""
    return tuple(cell) if isinstance(cell, list | tuple | np.ndarray) else None


def _coded(values: pd.Series) -> dict[str, Any]:
    return _coding(None if pd.isna(value) else str(value) for value in values)


def _coding(values: Iterable[Hashable | None]) -> dict[str, Any]:
    """Each different value once, and where each of them stands; -1 where there is none."""
    places: dict[Hashable, int] = {}
    at = [-1 if value is None else places.setdefault(value, len(places)) for value in values]
    return {"words": list(places), "at": at}


def _numbers(values: pd.Series) -> list[float | int | None]:
    """Rounded, whole ones as such; None for what is no finite number."""
    found = pd.to_numeric(values, errors="coerce").to_numpy(dtype=float, na_value=np.nan)
    return [_rounded(value) for value in found.tolist()]


def _rounded(value: float) -> float | int | None:
    if not math.isfinite(value):
        return None
    if value.is_integer() and abs(value) < 2**53:
        return int(value)
    return float(f"{value:.{_DIGITS}g}")


def _holds_lists(values: pd.Series) -> bool:
    first = values.first_valid_index()
    return first is not None and isinstance(values[first], list | np.ndarray)
