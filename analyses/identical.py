"""Whether two conditions gave the same outputs: a control that equals its treatment cannot fail."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analyses.gate import Gate
from analyses.tables import conditions_of
from analyses.wording import count, listed, plural, share

SHARE = 0.99
FEWEST = 3
_KEY = ["stage", "item", "repeat"]


def identical_gates(trials: pd.DataFrame, manifest: Mapping[str, Any]) -> list[Gate]:
    """One gate for every group of conditions whose outputs agree in at least 99% of the valid trials that
    they share, under the first of them that nothing explains.

    Expected where each differs from the group's first by nothing but writes that are declared no-ops or
    inert, or is `same_as` one that is so explained. Outputs are the new tokens; where a run generates none,
    the primary readout stands in. Two conditions that agree through a third are in one group.
    """
    codes, what = _codes(trials, manifest)
    names = [name for name in conditions_of(trials, manifest) if name in codes.columns]
    table = codes[names].to_numpy(dtype=np.int64) if names else np.empty((0, 0), dtype=np.int64)
    agreement = {
        (names[i], names[j]): _agreement(table[:, i], table[:, j])
        for j in range(len(names))
        for i in range(j)
    }
    return [_gate(group, agreement, what, manifest) for group in _groups(names, agreement)]


def _groups(names: Sequence[str], agreement: Mapping[tuple[str, str], tuple[int, int]]) -> list[list[str]]:
    """Conditions that agree, directly or through others, in groups of two or more; all in the given order."""
    head = {name: name for name in names}
    for (first, second), (shared, equal) in agreement.items():
        if shared >= FEWEST and equal >= SHARE * shared and head[first] != head[second]:
            old, new = head[second], head[first]
            head = {name: new if at == old else at for name, at in head.items()}
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(head[name], []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def output_of(value: Any) -> tuple[int, ...] | None:
    """The tokens of one trial as a tuple, whatever the table keeps them in; None where there are none."""
    if value is None or isinstance(value, float):
        return None
    found = tuple(int(token) for token in value)
    return found if found else None


def _codes(trials: pd.DataFrame, manifest: Mapping[str, Any]) -> tuple[pd.DataFrame, str]:
    """A table of items by conditions in which equal outputs of one run have equal numbers, -1 where there
    is none."""
    rows = trials[trials["status"] == "ok"].drop_duplicates([*_KEY, "condition"])
    what = "output tokens"
    values = pd.Series([None] * len(rows), index=rows.index, dtype=object)
    if "output_ids" in rows.columns:
        values = pd.Series([output_of(v) for v in rows["output_ids"]], index=rows.index, dtype=object)
    primary = manifest.get("contrasts", {}).get("primary", "score")
    if values.isna().all() and primary in rows.columns:
        what = f"values of {primary}"
        values = rows[primary].astype(object).where(rows[primary].notna(), None)
    numbers = pd.factorize(values)[0]
    wide = rows.assign(_code=numbers).set_index([*_KEY, "condition"])["_code"].unstack("condition")
    return wide.fillna(-1).astype(np.int64), what


def _agreement(a: NDArray[np.int64], b: NDArray[np.int64]) -> tuple[int, int]:
    both = (a >= 0) & (b >= 0)
    return int(both.sum()), int((a[both] == b[both]).sum())


def _gate(
    group: Sequence[str],
    agreement: Mapping[tuple[str, str], tuple[int, int]],
    what: str,
    manifest: Mapping[str, Any],
) -> Gate:
    """The gate of one group, with the figures of the two of its members that agree least."""
    figures = [agreement[pair] for pair in combinations(group, 2) if agreement[pair][0] >= FEWEST]
    shared, equal = min(figures, key=lambda found: (found[1] / found[0], found[0]))
    most = max(found[0] for found in figures)
    if equal == shared < most:
        often = f"every shared trial ({count(shared)} to {count(most)} of any two)"
    else:
        least = "at least " if len(set(figures)) > 1 else ""
        often = f"{least}{count(equal)} of {plural(shared, 'shared trial')} ({share(equal, shared)})"
    fact = f"{listed(group)} gave the same {what} in {often}"
    explained = _explained(group, manifest.get("conditions", {}))
    left = [name for name in group[1:] if name not in explained]
    if not left:
        reasons = " and ".join(dict.fromkeys(explained[name] for name in group[1:]))
        return Gate(group[1], "identical", "expected", f"{fact}, as expected: {reasons}.")
    if len(group) == 2:
        so = "a comparison of the two cannot show anything, whatever is true"
    else:
        so = "comparisons among them cannot show anything, whatever is true"
    but = f" (expected of {listed(list(explained))})" if explained else ""
    return Gate(left[0], "identical", "fail", f"{fact}: {so}{but}.")


def _explained(group: Sequence[str], declared: Mapping[str, Any]) -> dict[str, str]:
    """The members that are declared to give what the group's first gives, directly or through one another,
    with the reason."""
    found: dict[str, str] = {}
    known = [group[0]]
    for twin in known:  # grows as it goes
        for name in group[1:]:
            reason = None if name in found else _declared_alike(name, twin, declared)
            if reason is not None:
                found[name] = reason
                known.append(name)
    return {name: found[name] for name in group if name in found}


def _declared_alike(a: str, b: str, declared: Mapping[str, Any]) -> str | None:
    here, there = declared.get(a, {}), declared.get(b, {})
    if here.get("same_as") == b or there.get("same_as") == a:
        return "same_as declares it"
    if _acting(here) == _acting(there) and here.get("prompt") == there.get("prompt"):
        return "they differ only by writes that are expected to do nothing"
    return None


def _acting(condition: Mapping[str, Any]) -> list[str]:
    """The writes that are meant to act, without their names: what two conditions truly differ by."""
    ignored = ("expect", "has_old")
    return sorted(
        json.dumps({k: v for k, v in write.items() if k not in ignored}, sort_keys=True, default=str)
        for write in (condition.get("writes") or {}).values()
        if write.get("expect") not in ("noop", "inert")
    )
