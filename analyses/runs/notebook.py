"""A run for notebooks: its tables as data frames, its artefacts as arrays, its choices as mappings."""

from __future__ import annotations

import difflib
import html
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import safetensors

from analyses.summary.summary import lacks, summarise
from analyses.tables.run import Run, TableError, load_run, older_schema
from analyses.wording import count, listed

KEYS = ("stage", "item", "repeat")  # of a trial within its condition
_TOLD = ("donor", "target", "group")  # of a pair, beside its values
_UNFINISHED = ("running", "interrupted")
_TWO = 2


@dataclass(frozen=True)
class ArtefactArray:
    """What an extract stage made. vectors: float32, its axes named by `dims` (of group, position, layer,
    width); groups, positions, layers: the labels along them; about: all else that its file says."""

    name: str
    vectors: np.ndarray[Any, np.dtype[np.float32]]
    dims: tuple[str, ...]
    groups: tuple[str, ...]
    positions: tuple[int | str, ...]
    layers: tuple[int, ...]
    about: Mapping[str, Any]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        return np.array(self.vectors, dtype=dtype) if copy else np.asarray(self.vectors, dtype=dtype)


@dataclass(frozen=True)
class LoadedRun(Run):
    """A run with everything that its folder has, read when it is first asked for."""

    @property
    def name(self) -> str:
        """As commands take it: `name/v0001`."""
        return f"{self.folder.resolve().parent.name}/{self.folder.resolve().name}"

    @property
    def note(self) -> str:
        """What limits what is shown (an earlier version's run or summary, trials that have not ended), or
        empty."""
        summary, why = self._told
        notes = (older_schema(self.manifest), why, summary.get("unfinished"))
        return " ".join(note for note in notes if note)

    @property
    def summary(self) -> Mapping[str, Any]:
        """What `summary.json` says. Of a run that goes on, or whose summary is missing or of an earlier
        version, what its trials come to now."""
        return self._told[0]

    @cached_property
    def _told(self) -> tuple[Mapping[str, Any], str]:
        """The summary, and why it is not the stored one where that should have served."""
        path = self.folder / "summary.json"
        if self.manifest.get("status") in _UNFINISHED:
            return summarise(self), ""
        if not path.is_file():
            return summarise(self), "summary.json is missing: what is shown is worked out from the trials."
        if not is_summary(path):
            return summarise(self), "summary.json is broken: what is shown is worked out from the trials."
        stored = _json(path)
        missing = lacks(stored)
        if not missing:
            return stored, ""
        why = (
            f"summary.json is of an earlier version (without {listed(missing)}): what is shown is worked out "
            "anew from the trials."
        )
        return summarise(self), why

    @cached_property
    def conditions(self) -> pd.DataFrame:
        """One row for each condition: label, n, invalid, failed, pending, words, and of each readout its
        description as `READOUT.mean`, `READOUT.sd` and so on."""
        rows = []
        for name, body in self.summary["conditions"].items():
            row: dict[str, Any] = {"condition": name}
            row |= {key: body.get(key) for key in ("label", "n", "invalid", "failed", "pending")}
            row["words"] = " ".join(body.get("words") or ())
            for readout, described in (body.get("readouts") or {}).items():
                row |= {f"{readout}.{key}": value for key, value in described.items()}
            rows.append(row)
        return pd.DataFrame(rows)

    @cached_property
    def contrasts(self) -> pd.DataFrame:
        """One row for each declared comparison."""
        return self._entries("contrasts")

    @cached_property
    def exploratory(self) -> pd.DataFrame:
        """One row for each other readout and declared comparison; p is not corrected, p_bh is."""
        return self._entries("exploratory")

    @cached_property
    def receipts(self) -> pd.DataFrame:
        """One row for each write of each condition, summed over its trials: what it was asked and wrote in
        each phase as `asked.prefill`, `written.decode` and so on."""
        return pd.json_normalize(list(self.summary.get("receipts") or ()), max_level=1)

    @cached_property
    def gates(self) -> pd.DataFrame:
        """One row for each gate that has something to say."""
        return self._entries("gates")

    @cached_property
    def findings(self) -> pd.DataFrame:
        """One row for each declared finding."""
        return self._entries("findings")

    def _entries(self, part: str) -> pd.DataFrame:
        return pd.DataFrame(list(self.summary.get(part) or ()))

    def paired(
        self, first: str, second: str, column: str = "score", stage: str | None = None
    ) -> pd.DataFrame:
        """Valid trials that two conditions share, by stage, item and repeat: donor, target and group, the
        value in each condition under its name, and `difference`, first - second.

        A trial counts where both have a value. stage: of a run with stages, of which; a condition may be
        written `STAGE.NAME` too. Raises TableError for a condition, column or stage that is not there.
        """
        trials = self.trials
        if column not in trials.columns:
            raise TableError(f"no column '{column}'{_near(column, trials.columns)}")
        if not pd.api.types.is_numeric_dtype(trials[column]):
            raise TableError(f"column '{column}' holds no numbers: {trials[column].dtype}")
        sides = [self._side(name, column, stage) for name in (first, second)]
        one_stage = len({name for side in sides for name in side["stage"].unique().tolist()}) < _TWO
        keys = list(KEYS) if one_stage else list(KEYS[1:])  # of two stages: the items that both have
        left, right = (side.set_index(keys) for side in sides)
        told = left[[name for name in _TOLD if name in left.columns]]
        shared = told.join(left[column].rename(first)).join(right[column].rename(second), how="inner")
        return shared.assign(difference=shared[first] - shared[second])

    def _side(self, condition: str, column: str, stage: str | None) -> pd.DataFrame:
        trials = self.trials
        stages = trials["stage"].unique().tolist()
        if stage is not None and stage not in stages:
            raise TableError(f"no stage '{stage}' (stages: {listed(stages)}){_near(stage, stages)}")
        names = trials["condition"]
        mine = names == condition
        if not mine.any() and condition.partition(".")[0] in stages:
            stage, _, condition = condition.partition(".")
            mine = names == condition
        if stage is not None:
            mine &= trials["stage"] == stage
        if not mine.any():
            known = names.unique().tolist()
            raise TableError(f"no condition '{condition}'{_near(condition, known)}; there are {_some(known)}")
        found = trials[mine & (trials["status"] == "ok") & trials[column].notna()]
        several = found["stage"].unique().tolist()
        if len(several) > 1:
            raise TableError(
                f"'{condition}' is one of the stages {listed(several)} alike: say which by stage="
            )
        return found

    def artefact(self, name: str) -> ArtefactArray:
        """An artefact of an extract stage. Raises TableError for one that is not there."""
        path = self._file("artefacts", name, ".safetensors")
        try:
            with safetensors.safe_open(path, framework="numpy") as file:
                told = {key: json.loads(value) for key, value in (file.metadata() or {}).items()}
                vectors = file.get_tensor("vectors")
            parts = {key: tuple(told.pop(key)) for key in ("dims", "groups", "positions", "layers")}
        except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
            raise TableError(f"{path}: expected an artefact, but it cannot be read: {error}") from error
        return ArtefactArray(name=name, vectors=vectors, about=told, **parts)

    def choice(self, name: str) -> Mapping[str, Any]:
        """What a select stage chose, with the whole table that it chose from. Raises TableError for one that
        is not there."""
        return _json(self._file("choices", name, ".json"))

    def _file(self, part: str, name: str, ending: str) -> Path:
        known = sorted(path.stem for path in (self.folder / part).glob(f"*{ending}"))
        if name not in known:
            has = f"{self.name} has {listed(known)}" if known else f"{self.name} has no {part}"
            raise TableError(f"no {part.removesuffix('s')} '{name}'; {has}{_near(name, known)}")
        return self.folder / part / f"{name}{ending}"

    def __repr__(self) -> str:
        counts = self.trials["status"].value_counts()
        told = ", ".join(f"{count(number)} {status}" for status, number in counts.items())
        return f"<run {self.name}: {self.manifest.get('status')}; trials: {told}>"

    def _repr_html_(self) -> str:
        """The run in a notebook: how it stands, and its findings or contrasts in sentences."""
        experiment = self.manifest.get("experiment") or {}
        parts = [f"<b>{html.escape(self.name)}</b>"]
        if experiment.get("question"):
            parts.append(f"<i>{html.escape(experiment['question'])}</i>")
        parts.append(html.escape(repr(self)[1:-1].partition(": ")[2]))
        if self.note:
            parts.append(f"<b>{html.escape(self.note)}</b>")
        entries = [*(self.summary.get("findings") or ()), *(self.summary.get("contrasts") or ())]
        sentences = [html.escape(str(entry["sentence"])) for entry in entries if entry.get("sentence")]
        items = "".join(f"<li>{sentence}</li>" for sentence in sentences)
        return f"<div>{'<br>'.join(parts)}{f'<ul>{items}</ul>' if items else ''}</div>"


def load(folder: Path | str) -> LoadedRun:
    """A run for notebooks, finished or still going. Raises TableError in a sentence where there is none or it
    cannot be read."""
    run = load_run(folder)
    return LoadedRun(run.trials, run.manifest, run.folder)


def is_summary(path: Path) -> bool:
    """Whether a file is there and has the form of a summary."""
    try:
        lacks(_json(path))
    except (TableError, AttributeError, TypeError):
        return False
    return True


def _json(path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TableError(f"{path}: expected JSON: {error}") from error
    if not isinstance(found, dict):
        raise TableError(f"{path}: expected a JSON object, got {type(found).__name__}")
    return found


def _near(word: str, known: Iterable[str]) -> str:
    folded = {str(name).casefold(): str(name) for name in known}
    found = difflib.get_close_matches(word.casefold(), list(folded), n=1, cutoff=0.6)
    return f"; did you mean '{folded[found[0]]}'?" if found else ""


def _some(names: Collection[str], most: int = 12) -> str:
    shown = [str(name) for name in names][:most]
    return listed(shown) if len(names) <= most else f"{', '.join(shown)} and {len(names) - most} more"
