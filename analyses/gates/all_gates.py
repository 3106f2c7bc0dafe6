"""Which warnings a run's results deserve, each in one sentence, and which of them stop it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from analyses.gates import confounds, design, identical, stages, writes
from analyses.gates.gate import EVERY, VERDICTS, Gate
from analyses.gates.receipts import receipts
from analyses.tables.lookup import Lookup

__all__ = ["Gate", "all_gates", "blocking", "result_gates", "unusable"]

_INERT = ("inert", "shadowed")


def result_gates(trials: pd.DataFrame | Lookup, manifest: Mapping[str, Any]) -> list[Gate]:
    """Every gate that table and manifest call for: failures first, then warnings, then what was expected.

    `inert`, `shadowed`, `partial`, `keys_ahead`, `expect` judge the writes; `identical` the outcomes;
    `no_valid_trials`, `failed`, `valid_rate`, `fewer_items`, `reused_items`, `unequal_n`, `undefined`,
    `one_sided`, `sampler`, `path`, `round_trip`, `batch_shapes`, `confounded`, `in_sample` the design.
    `reach`, `tautology` and `feature_value` are the plan's. Of a run with stages each has its own;
    `empty_selection` is the whole run's (`gates.stages.empty_selections`).
    """
    lookup = Lookup.of(trials)
    found = [
        *writes.write_gates(receipts(lookup, manifest), lookup, manifest),
        *identical.identical_gates(lookup, manifest),
        *design.design_gates(lookup, manifest),
        *confounds.confounded_gates(manifest),
        *stages.in_sample_gates(manifest),
    ]
    return _sorted(found)


def all_gates(trials: pd.DataFrame | Lookup, manifest: Mapping[str, Any]) -> list[Gate]:
    """The plan's gates and the results'. Where both judge the same thing of one condition, the result
    stands."""
    results = result_gates(trials, manifest)
    judged = {(gate.condition, gate.gate) for gate in results}
    plan = [
        Gate(given["condition"], given["gate"], given["verdict"], given["sentence"])
        for given in manifest.get("plan_gates") or ()
    ]
    return _sorted([*(gate for gate in plan if (gate.condition, gate.gate) not in judged), *results])


def blocking(gates: Iterable[Gate], allow_inert: bool | None) -> bool:
    """Whether inert writes end the run with status 3: unexpected ones by default (None), also expected ones
    where `allow_inert` is False, none where it is True."""
    if allow_inert is True:
        return False
    verdicts = ("fail", "expected") if allow_inert is False else ("fail",)
    return any(gate.gate in _INERT and gate.verdict in verdicts for gate in gates)


def unusable(gates: Iterable[Gate]) -> bool:
    """Whether no condition has a valid trial: such a run is not done, whatever else it says."""
    return any(gate.gate == design.NO_VALID_TRIALS and gate.condition == EVERY for gate in gates)


def _sorted(gates: list[Gate]) -> list[Gate]:
    return sorted(gates, key=lambda gate: VERDICTS.index(gate.verdict))
