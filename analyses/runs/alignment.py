"""Which trials of two runs are of the same item, whatever its number in each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analyses.tables.measured import generates
from analyses.tables.run import Run, value_columns
from analyses.wording import listed

IDENTITY = ["target", "donor"]
TOKENS, TEXTS, VALUES = "output tokens", "texts", "values"


@dataclass(frozen=True)
class AlignedStage:
    """A stage in two runs, its trials by condition with `item` the identity of the pair of prompts."""

    name: str
    prefix: str
    first: Mapping[str, pd.DataFrame]
    second: Mapping[str, pd.DataFrame]
    manifests: tuple[Mapping[str, Any], Mapping[str, Any]]
    names: tuple[str, str]
    folders: tuple[Path, Path]
    readout: str | None
    what: str

    @property
    def shared(self) -> list[str]:
        return [name for name in self.first if name in self.second]

    def told(self, condition: str) -> str:
        return f"{self.prefix}{condition}"


def tokenizer_of(run: Run) -> Any:
    """The fingerprint of the tokenizer that a run was made with."""
    return (run.manifest.get("model") or {}).get("tokenizer_fingerprint")


def aligned(
    name: str, first: Run, second: Run, names: tuple[str, str], asked: str | None, prefix: str
) -> tuple[AlignedStage, NDArray[np.int_], list[str]]:
    """A stage of two runs with the same name for the same pair of prompts; how many items both have, only the
    first, only the second, and how many are of the same ids but other tokens; and what is to be said."""
    sides = [_identified(run.trials) for run in (first, second)]
    items = [set(side["item"]) for side in sides]
    clash: set[str] = set()
    if tokenizer_of(first) == tokenizer_of(second):
        clash = _other_tokens(sides, (first.manifest, second.manifest))
    shared = (items[0] & items[1]) - clash
    column, notes = _readout(name, (first, second), names, asked)
    kept = [side[~side["item"].isin(clash)] if clash else side for side in sides]
    parts = [{str(c): rows for c, rows in side.groupby("condition", sort=False)} for side in kept]
    alike = tokenizer_of(first) == tokenizer_of(second)
    texts = generates(first.manifest) and generates(second.manifest)
    stage = AlignedStage(
        name=name,
        prefix=prefix,
        first=parts[0],
        second=parts[1],
        manifests=(first.manifest, second.manifest),
        names=names,
        folders=(first.folder.resolve(), second.folder.resolve()),
        readout=column,
        what=(TOKENS if alike else TEXTS) if texts else VALUES,
    )
    counted = [len(shared), len(items[0] - items[1]), len(items[1] - items[0]), len(clash)]
    return stage, np.array(counted), notes


def _identified(trials: pd.DataFrame) -> pd.DataFrame:
    """Trials of one stage with the identity of the pair of prompts in the place of the item's number: target,
    donor, and the how-manieth item of that pair it is."""
    held = trials.copy(deep=False)
    for column in IDENTITY:
        held[column] = held[column] if column in held.columns else None
    items = held[["item", *IDENTITY]].drop_duplicates("item")
    order = items["item"].astype(str)
    items = items.assign(width=order.str.len(), number=order).sort_values(["width", "number"])
    ids = items[IDENTITY].fillna("").astype(str)
    occurrence = ids.groupby(IDENTITY).cumcount().astype(str)
    identity = ids["target"] + "\x1f" + ids["donor"] + "\x1f" + occurrence
    named = dict(zip(items["item"], identity, strict=True))
    return held.assign(item=held["item"].map(named), stage="")


def _other_tokens(
    sides: Sequence[pd.DataFrame], manifests: tuple[Mapping[str, Any], Mapping[str, Any]]
) -> set[str]:
    """Items that have the same ids in both runs but other tokens: of the target, as a condition has it that
    reads the target alone in both, and of the donor."""
    plain = [
        {
            name
            for name, body in (manifest.get("conditions") or {}).items()
            if body.get("prompt", "target") == "target"
        }
        for manifest in manifests
    ]
    both = plain[0] & plain[1]
    found = []
    for side in sides:
        if not {"target_ids", "donor_ids"} <= set(side.columns):
            return set()
        rows = side[side["condition"].isin(both)].drop_duplicates("item")
        tokens = [
            (_tuple(target), _tuple(dict(donors).get("donor") if donors is not None else None))
            for target, donors in zip(rows["target_ids"], rows["donor_ids"], strict=True)
        ]
        found.append(dict(zip(rows["item"], tokens, strict=True)))
    return {item for item, tokens in found[0].items() if found[1].get(item, tokens) != tokens}


def _tuple(cell: Any) -> tuple[int, ...]:
    return () if cell is None else tuple(int(each) for each in cell)


def _readout(
    name: str, runs: tuple[Run, Run], names: tuple[str, str], asked: str | None
) -> tuple[str | None, list[str]]:
    """The readout that a stage is compared in: the one asked for, else a primary one that both have."""
    columns = [value_columns(run.trials) for run in runs]
    primary = [(run.manifest.get("contrasts") or {}).get("primary", "score") for run in runs]
    for word in (asked,) if asked is not None else primary:
        if word in columns[0] and word in columns[1]:
            return word, []
    wanted = asked if asked is not None else primary[0]
    lacking = [each for each, held in zip(names, columns, strict=True) if wanted not in held]
    both = [column for column in columns[0] if column in columns[1]]
    offered = f"; both have {listed(both)}" if both else ""
    return None, [f"{name}: {listed(lacking)} has no readout {wanted}, so that it is not tested{offered}."]
