"""Which trials of two conditions are compared: those of the same item and repeat that both have a value, and
which donors were read for them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analyses.statistics.clusters import ClusteredMean, Floats, clustered_mean
from analyses.tables.run import ok_rows
from analyses.wording import count, plural

OWN = "donor"  # the role of the donor that an item is drawn with
OTHER = "other_donor"
KEY = ["stage", "item", "repeat"]
_NO_DONOR = (None, "", "self")


@dataclass(frozen=True)
class Paired:
    """Values of `first` and `second` on the trials that they share, row by row, with the target of each and
    the donors that were read for it, by dimension: `donor`, `other_donor`, `donor:ROLE`.

    `n_first` and `n_second` count the valid trials of each side that have a value; `dropped` is a sentence on
    those that found no partner, empty where every trial did.
    """

    first: Floats
    second: Floats
    donors: Mapping[str, pd.Series]
    target: pd.Series
    n_first: int
    n_second: int
    dropped: str

    @property
    def difference(self) -> Floats:
        """first - second."""
        return self.first - self.second

    def test(self, confidence: float = 0.95) -> ClusteredMean:
        """The cluster-robust test of the differences. Prompts without donors have no clusters of them."""
        donors = {name: labels for name, labels in self.donors.items() if labels.notna().any()}
        return clustered_mean(
            self.difference, donor=donors or None, target=self.target, confidence=confidence
        )


def pair(
    trials: pd.DataFrame,
    first: str,
    second: str,
    column: str,
    conditions: Mapping[str, Any] | None = None,
) -> Paired:
    """Pair two conditions on stage, item and repeat.

    conditions: those of the manifest, which say what donors each reads; where neither reads one, the item's
    own stands. Without them every donor that the table names counts as read, the item's own too, since
    `donor_ids` holds that in any case. Raises KeyError for a column that the table lacks, and ValueError
    where a condition has two valid trials of one item and repeat.
    """
    if column not in trials.columns:
        raise KeyError(
            f"{column}: expected a column of the table; it has {', '.join(map(str, trials.columns))}"
        )
    sides = {name: _side(trials, name, column) for name in (first, second)}
    other = sides[second][["value"]].rename(columns={"value": "value_second"})
    both = sides[first].join(other, how="inner").sort_index()
    numbers = {name: len(side) for name, side in sides.items()}
    lost = {name: number - len(both) for name, number in numbers.items() if number > len(both)}
    sentence = ""
    if lost:
        parts = " and ".join(
            f"{count(k)} of {plural(numbers[name], 'trial')} of {name}" for name, k in lost.items()
        )
        sentence = f"{parts} had no valid partner and were left out; {plural(len(both), 'pair')} remain."
    return Paired(
        first=both["value"].to_numpy(dtype=float),
        second=both["value_second"].to_numpy(dtype=float),
        donors={
            role if role in (OWN, OTHER) else f"{OWN}:{role}": donor_labels(sides[name], role).loc[both.index]
            for role, name in _read(sides, conditions).items()
        },
        target=both["target"],
        n_first=numbers[first],
        n_second=numbers[second],
        dropped=sentence,
    )


def _side(trials: pd.DataFrame, condition: str, column: str) -> pd.DataFrame:
    rows = ok_rows(trials, condition)
    rows = rows[rows[column].notna()]
    if rows.duplicated(KEY).any():
        twice = rows[rows.duplicated(KEY)].iloc[0]
        raise ValueError(f"{condition}: two valid trials of item {twice['item']}, repeat {twice['repeat']}")
    side = rows.set_index(KEY)
    held = {name: side[name] if name in side.columns else None for name in ("donor", "target", "donor_ids")}
    return pd.DataFrame({"value": side[column], **held}, index=side.index)


def roles_read(condition: Mapping[str, Any]) -> tuple[str, ...]:
    """The roles of the donors that a condition of a manifest reads, in its prompt or its writes: `donor`
    (the item's own) first, then `other_donor` and those of `value: donor:ROLE`. None for a baseline."""
    parts = str(condition.get("prompt", "target")).split("+")
    found = [part.removeprefix(f"{OWN}:") for part in parts if part.partition(":")[0] == OWN]
    for write in (condition.get("writes") or {}).values():
        value = write.get("value")
        role = value.get("role") if isinstance(value, Mapping) else None
        found += [] if role in _NO_DONOR else [str(role)]
    return tuple(sorted(dict.fromkeys(found), key=lambda role: role != OWN))


def donor_labels(rows: pd.DataFrame, role: str) -> pd.Series:
    """The prompt in a role, row by row: by its id where it is some row's own donor, else by its tokens. The
    item's own donor stands where the table does not tell who is in the role."""
    if role == OWN or "donor_ids" not in rows.columns:
        return rows["donor"]
    ids = [_ids(each) for each in rows["donor_ids"]]
    own = {each[OWN]: name for each, name in zip(ids, rows["donor"], strict=True) if OWN in each}
    labels = [
        own.get(each[role], each[role]) if role in each else name
        for each, name in zip(ids, rows["donor"], strict=True)
    ]
    return pd.Series(labels, index=rows.index, dtype=object)


def _read(sides: Mapping[str, pd.DataFrame], conditions: Mapping[str, Any] | None) -> dict[str, str]:
    """Every role that a side reads, with the name of the first side that reads it."""
    found: dict[str, str] = {}
    for name, side in sides.items():
        recorded = dict.fromkeys((OWN, *(role for each in side["donor_ids"] for role in _ids(each))))
        roles = tuple(recorded) if conditions is None else roles_read(conditions.get(name, {}))
        for role in roles:
            found.setdefault(role if role in recorded else OWN, name)
    return found or {OWN: next(iter(sides))}


def _ids(cell: object) -> dict[str, tuple[int, ...]]:
    """One `donor_ids` of a table: tokens by role, empty where nothing is recorded."""
    pairs = cell.items() if isinstance(cell, Mapping) else cell if isinstance(cell, Iterable) else ()
    return {str(role): tuple(tokens) for role, tokens in pairs}


def declared_pairs(manifest: Mapping[str, Any]) -> list[tuple[str, str, float | None]]:
    """Every comparison that the experiment declares, as (condition, against, equivalence margin or None).

    The family `each_against_baseline` comes first, in the order of the conditions, then `extra`, then `same`.
    """
    contrasts = manifest.get("contrasts", {})
    baseline = contrasts.get("baseline", "baseline")
    pairs: list[tuple[str, str, float | None]] = []
    if contrasts.get("family", "none") == "each_against_baseline":
        pairs += [(name, baseline, None) for name in manifest.get("conditions", {}) if name != baseline]
    pairs += [(a, b, None) for a, b in contrasts.get("extra") or () if (a, b, None) not in pairs]
    for a, b, options in contrasts.get("same") or ():
        pairs.append((a, b, float(options["margin"])))
    return pairs
