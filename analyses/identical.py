"""Whether two conditions gave the same outputs: a control that equals its treatment cannot fail."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analyses.gate import Gate
from analyses.tables import conditions_of
from analyses.wording import count, plural, share

SHARE = 0.99
FEWEST = 3
_KEY = ["stage", "item", "repeat"]


def identical_gates(trials: pd.DataFrame, manifest: Mapping[str, Any]) -> list[Gate]:
    """One gate for every two conditions whose outputs agree in at least 99% of the valid trials that they
    share.

    Expected where the two differ by nothing but writes that are declared no-ops or inert, or where one is
    `same_as` the other. Outputs are the new tokens; where a run generates none, the primary readout stands
    in.
    """
    codes, what = _codes(trials, manifest)
    names = [name for name in conditions_of(trials, manifest) if name in codes.columns]
    table = codes[names].to_numpy(dtype=np.int64) if names else np.empty((0, 0), dtype=np.int64)
    gates = []
    for j, second in enumerate(names):
        for i, first in enumerate(names[:j]):
            shared, equal = _agreement(table[:, i], table[:, j])
            if shared >= FEWEST and equal >= SHARE * shared:
                gates.append(_gate(second, first, shared, equal, what, manifest))
    return gates


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
    condition: str, other: str, shared: int, equal: int, what: str, manifest: Mapping[str, Any]
) -> Gate:
    declared = manifest.get("conditions", {})
    here, there = declared.get(condition, {}), declared.get(other, {})
    fact = (
        f"{condition} and {other} gave the same {what} in {count(equal)} of {plural(shared, 'shared trial')}"
        f" ({share(equal, shared)})"
    )
    if here.get("same_as") == other or there.get("same_as") == condition:
        return Gate(condition, "identical", "expected", f"{fact}, as declared by same_as.")
    if _acting(here) == _acting(there) and here.get("prompt") == there.get("prompt"):
        why = "they differ only by writes that are expected to do nothing"
        return Gate(condition, "identical", "expected", f"{fact}, as expected: {why}.")
    return Gate(
        condition,
        "identical",
        "fail",
        f"{fact}: a comparison of the two cannot show anything, whatever is true.",
    )


def _acting(condition: Mapping[str, Any]) -> list[str]:
    """The writes that are meant to act, without their names: what two conditions truly differ by."""
    ignored = ("expect", "has_old")
    return sorted(
        json.dumps({k: v for k, v in write.items() if k not in ignored}, sort_keys=True, default=str)
        for write in (condition.get("writes") or {}).values()
        if write.get("expect") not in ("noop", "inert")
    )
