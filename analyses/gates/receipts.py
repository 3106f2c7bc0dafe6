"""What each write did over a condition's valid trials: asked, written, shadowed, changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analyses.statistics.clusters import Floats
from analyses.tables.by_condition import Positions
from analyses.tables.lookup import Lookup

PHASES = ("prefill", "decode")
INERT_FULL, INERT_LOW = 1e-6, 1e-3  # relative changes that count as none, by the dtype of the run
_FULL = ("float32", "float64")


@dataclass(frozen=True)
class Receipt:
    """One write of one condition over its `trials` valid trials. `asked`, `written` and `shadowed` (written,
    but overwritten later) are positions by phase, summed; `held_over` counts decode positions that got the
    last row of a donor generation that had already ended, in `trials_held` trials. `relative_change` is the
    mean over trials of |new - old| / |old| at the written positions (None: nothing written, or no old
    tensor); `logit_change` stands in for it where there is no old tensor. `phases` are those in which the
    write was asked to act."""

    condition: str
    write: str
    spec: Mapping[str, Any]
    trials: int
    phases: tuple[str, ...]
    asked: Mapping[str, int]
    written: Mapping[str, int]
    shadowed: Mapping[str, int]
    keys_ahead: int
    trials_ahead: int
    relative_change: float | None
    logit_change: float | None

    @property
    def name(self) -> str:
        """ "v_proj in transfer_l27", as sentences call it."""
        return f"{self.write} in {self.condition}"

    @property
    def total(self) -> int:
        """Positions written in all phases."""
        return sum(self.written.values())

    @property
    def guard(self) -> int | None:
        """The published guard `min_positions`; one position or more is none."""
        minimum = self.spec.get("min_positions")
        return None if minimum is None or minimum <= 1 else int(minimum)

    def live(self, phase: str) -> int:
        """Positions written in a phase that no later write overwrote."""
        return max(0, self.written[phase] - self.shadowed[phase])

    @property
    def change(self) -> float | None:
        """The change that this write is judged by."""
        return self.relative_change if self.spec.get("has_old", True) else self.logit_change


def receipts(trials: pd.DataFrame | Lookup, manifest: Mapping[str, Any]) -> list[Receipt]:
    """The receipts of every write of every condition, in the manifest's order. Columns that are missing or
    null count as 0 positions; an infinite change stays infinite."""
    found = []
    lookup = Lookup.of(trials)
    for condition in lookup.conditions(manifest):
        declared = manifest.get("conditions", {}).get(condition, {})
        rows = lookup.by_condition.ok(condition)
        for write, spec in (declared.get("writes") or {}).items():
            tokens = declared.get("sampling", {}).get("max_new_tokens")
            tokens = 1 if tokens is None else int(tokens)
            found.append(_receipt(condition, write, spec, lookup, rows, tokens))
    return found


def full_precision(manifest: Mapping[str, Any]) -> bool:
    """Whether the run computed in float32 or better."""
    return manifest.get("dtype") in _FULL


def inert_limit(manifest: Mapping[str, Any]) -> float:
    """The relative change above which a write of this run has changed something."""
    return INERT_FULL if full_precision(manifest) else INERT_LOW


def _receipt(
    condition: str, write: str, spec: Mapping[str, Any], lookup: Lookup, rows: Positions, tokens: int
) -> Receipt:
    def values(field: str) -> Floats:
        held = lookup.numbers_at(f"{write}.{field}", rows)
        return np.empty(0, dtype=np.float64) if held is None else held

    def total(field: str) -> int:
        column = values(field)
        return int(np.nansum(column)) if len(column) else 0

    asked = {phase: total(f"asked_{phase}") for phase in PHASES}
    during = spec.get("during", "prefill")
    phases = []
    if during in ("prefill", "both"):
        phases.append("prefill")
    # A write for both phases whose rows never took a decode step was not asked there; one for decode alone
    # that never found a step to act on has still done nothing.
    if (during == "both" and asked["decode"] > 0) or (during == "decode" and tokens > 0):
        phases.append("decode")
    ahead = values("keys_ahead")
    return Receipt(
        condition=condition,
        write=write,
        spec=spec,
        trials=len(rows),
        phases=tuple(phases),
        asked=asked,
        written={phase: total(f"positions_{phase}") for phase in PHASES},
        shadowed={"prefill": total("positions_shadowed"), "decode": total("decode_shadowed")},
        keys_ahead=total("keys_ahead"),
        trials_ahead=int((ahead > 0).sum()),
        relative_change=_mean(values("relative_change")),
        logit_change=_mean(values("logit_change")),
    )


def _mean(values: Floats) -> float | None:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else None
