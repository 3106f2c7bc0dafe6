"""Whether conditions can be compared at all: trials lost, values undefined, items reused, paths and batch
shapes that differ."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from analyses.gates.gate import EVERY, Gate
from analyses.gates.paths import path_gates
from analyses.gates.receipts import full_precision
from analyses.tables.by_condition import ByCondition, Positions
from analyses.tables.cells import grid_name
from analyses.tables.lookup import Lookup
from analyses.tables.measured import kind_of_column, probe_columns
from analyses.tables.pairs import declared_pairs, pair
from analyses.wording import count, listed, plural, share

NO_VALID_TRIALS = "no_valid_trials"
_SHAPE = ["batch_rows", "batch_length"]


def design_gates(trials: pd.DataFrame | Lookup, manifest: Mapping[str, Any]) -> list[Gate]:
    """The gates on trials and design, in the order in which a reader needs them."""
    lookup = Lookup.of(trials)
    return [
        *_no_valid_trials(lookup, manifest),
        *_failed(lookup, manifest),
        *_valid_rate(lookup, manifest),
        *_fewer_items(lookup, manifest),
        *_reused_items(lookup, manifest),
        *_unequal_n(lookup, manifest),
        *_undefined(lookup, manifest),
        *_one_sided(manifest),
        *path_gates(manifest),
        *_batch_shapes(lookup, manifest),
    ]


def _baseline(manifest: Mapping[str, Any]) -> str:
    return str(manifest.get("contrasts", {}).get("baseline", "baseline"))


def _primary(manifest: Mapping[str, Any]) -> str:
    return str(manifest.get("contrasts", {}).get("primary", "score"))


def _no_valid_trials(lookup: Lookup, manifest: Mapping[str, Any]) -> list[Gate]:
    """Conditions of which every trial ended and none is valid, after one gate for the whole run where that
    holds of all of them. Trials that may still be valid keep a condition out. Cells that cannot be had, of a
    grid of which others can (the direction of a layer is zero), are a warning of the grid."""
    names = lookup.conditions(manifest)
    apart = lookup.by_condition
    lost = _lost_cells(apart, names)
    gates = []
    for condition in names:
        if condition in lost:
            continue
        statuses = apart.statuses(condition)
        if statuses.get("ok") or statuses.get("pending"):
            continue
        rows = _ends(lookup, apart.rows(condition))
        if rows.empty:
            fact = f"{condition} has no trial at all"
        else:
            ended = [
                f"{count(n)} {status}" for status in ("invalid", "failed") if (n := statuses.get(status, 0))
            ]
            fact = (
                f"none of the {plural(len(rows), 'trial')} of {condition} is valid ({listed(ended)}"
                f"{_reason(rows)})"
            )
        gates.append(Gate(condition, NO_VALID_TRIALS, "fail", f"{fact}: nothing can be said about it."))
    if len(gates) == len(names):
        sentence = "No condition has a valid trial: this run shows nothing."
        gates.insert(0, Gate(EVERY, NO_VALID_TRIALS, "fail", sentence))
    for grid in dict.fromkeys(map(grid_name, lost)):
        cells = [name for name in lost if grid_name(name) == grid]
        whole = plural(sum(grid_name(name) == grid for name in names), "cell")
        reason = _reason(_ends(lookup, apart.rows(cells[0])))
        fact = f"{count(len(cells))} of {whole} of {grid} have no valid trial{reason}"
        gates.append(Gate(cells[0], NO_VALID_TRIALS, "warn", f"{fact}: nothing can be said about them."))
    return gates


def _lost_cells(apart: ByCondition, names: Sequence[str]) -> list[str]:
    """Cells of which every trial is invalid, of grids that have other cells."""
    alive = {grid_name(name) for name in names if len(apart.ok(name))}
    return [
        name
        for name in names
        if name != grid_name(name) in alive and apart.statuses(name).keys() == {"invalid"}
    ]


def _ends(lookup: Lookup, rows: Positions) -> pd.DataFrame:
    """How some trials ended: status and reason."""
    columns = [name for name in ("status", "reason") if name in lookup.trials.columns]
    return lookup.trials[columns].iloc[rows]


def _failed(lookup: Lookup, manifest: Mapping[str, Any]) -> list[Gate]:
    gates = []
    apart = lookup.by_condition
    for condition in lookup.conditions(manifest):
        if apart.statuses(condition).get("failed"):
            rows = _ends(lookup, apart.rows(condition))
            failed = rows[rows["status"] == "failed"]
            share_failed = f"{count(len(failed))} of {plural(len(rows), 'trial')}"
            sentence = f"{share_failed} of {condition} failed{_reason(failed)}."
            gates.append(Gate(condition, "failed", "fail", sentence))
    return gates


def _reason(rows: pd.DataFrame) -> str:
    given = rows["reason"].dropna() if "reason" in rows.columns else pd.Series(dtype=object)
    given = given[given.astype(str) != ""]
    if given.empty:
        return ""
    first = str(given.value_counts().index[0]).strip().splitlines()[0]
    return f", most often: {first.removesuffix('.')}"


def _valid_rate(lookup: Lookup, manifest: Mapping[str, Any]) -> list[Gate]:
    """Conditions whose share of valid trials is not the baseline's; those without any have their own gate."""
    rates: dict[str, tuple[int, int]] = {}
    apart = lookup.by_condition
    for condition in lookup.conditions(manifest):
        statuses = apart.statuses(condition)
        rates[condition] = (statuses.get("ok", 0), sum(statuses.values()) - statuses.get("pending", 0))
    reference = rates.get(_baseline(manifest), (0, 0))
    gates = []
    for condition, (valid, ended) in rates.items():
        if valid == 0:
            continue
        fact = f"{count(valid)} of {plural(ended, 'trial')} of {condition} are valid ({share(valid, ended)})"
        if reference[1] and valid * reference[1] != reference[0] * ended:
            rows = _ends(lookup, apart.rows(condition))
            rows = rows[rows["status"] == "invalid"]
            gap = abs(valid / ended - reference[0] / reference[1])
            sentence = (
                f"{fact}, against {count(reference[0])} of {count(reference[1])} of {_baseline(manifest)}"
                f"{_reason(rows)}: the conditions do not lose the same items."
            )
            gates.append(Gate(condition, "valid_rate", "fail" if gap > 0.05 else "warn", sentence))
    return gates


def _fewer_items(lookup: Lookup, manifest: Mapping[str, Any]) -> list[Gate]:
    experiment = manifest.get("experiment", {})
    asked = experiment.get("n")
    if asked is None:
        return []
    if manifest.get("kept"):
        # Items that a choice dropped are told by the choice.
        asked = min(asked, manifest["kept"]["items"])
    have: dict[str, tuple[int, int]] = {}
    apart, items = lookup.by_condition, pd.factorize(lookup.trials["item"])[0]
    names = lookup.conditions(manifest)
    lost = _lost_cells(apart, names)
    for condition in names:
        if condition in lost:
            continue
        sides = (apart.rows(condition), apart.ok(condition))
        planned, valid = (int((np.bincount(items[at]) > 0).sum()) for at in sides)
        have[condition] = (planned, valid)
    if len(set(have.values())) == 1:
        have = {EVERY: next(iter(have.values()))}
    gates = []
    for condition, (planned, valid) in have.items():
        if valid >= asked:
            continue
        where = "every condition" if condition == EVERY else condition
        why = f"{count(planned)} were planned" if planned < asked else f"all {count(asked)} were planned"
        fact = f"{plural(asked, 'item')} were asked for and {count(valid)} gave a valid trial"
        sentence = f"{fact} in {where} ({why})."
        gates.append(Gate(condition, "fewer_items", "warn", sentence))
    return gates


def _reused_items(lookup: Lookup, manifest: Mapping[str, Any]) -> list[Gate]:
    if "donor" not in lookup.trials.columns or "target" not in lookup.trials.columns:
        return []
    n, donors, targets, pairs = lookup.distinct(lookup.ended_items)
    if n == 0 or (donors in (0, n) and targets in (0, n)):
        return []
    sentence = (
        f"{plural(n, 'item')} use {plural(donors, 'donor')} and {plural(targets, 'target')}, "
        f"{count(pairs)} distinct pairs: they share prompts{_effective(lookup, manifest)}. "
        "Intervals are clustered by the donors read and by target."
    )
    return [Gate(EVERY, "reused_items", "warn", sentence)]


def _effective(lookup: Lookup, manifest: Mapping[str, Any]) -> str:
    """The range of effective n over the declared comparisons."""
    sizes = []
    for first, second in _compared(lookup, manifest):
        paired = pair(lookup, first, second, _primary(manifest), manifest.get("conditions", {}))
        size = paired.test().effective_n
        if size is not None:
            sizes.append(size)
    if not sizes:
        return ""
    low, high = count(min(sizes)), count(max(sizes))
    span = low if low == high else f"{low} to {high}"
    return f" and count as {span} independent ones in the comparisons of {_primary(manifest)}"


def _compared(lookup: Lookup, manifest: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """The declared comparisons of which both sides have valid trials and a primary readout."""
    if _primary(manifest) not in lookup.trials.columns:
        return []
    present = {name for name, rows in lookup.by_condition.valid.items() if len(rows)}
    declared = [(a, b) for a, b, _ in declared_pairs(manifest)]
    return [(a, b) for a, b in dict.fromkeys(declared) if a in present and b in present]


def _unequal_n(lookup: Lookup, manifest: Mapping[str, Any]) -> list[Gate]:
    gates = []
    for first, second in _compared(lookup, manifest):
        paired = pair(lookup, first, second, _primary(manifest))
        if paired.dropped:
            sentence = f"{first} against {second} in {_primary(manifest)}: {paired.dropped}"
            gates.append(Gate(first, "unequal_n", "warn", sentence))
    return gates


def _undefined(lookup: Lookup, manifest: Mapping[str, Any]) -> list[Gate]:
    """Probes without a value in valid trials: failing where a condition has none at all."""
    gates = []
    apart = lookup.by_condition
    for probe, columns in probe_columns(lookup.trials, manifest).items():
        undefined = lookup.trials[columns[0]].isna().to_numpy() if columns else np.empty(0, dtype=bool)
        for condition in lookup.conditions(manifest) if columns else ():
            rows = apart.ok(condition)
            missing = int(undefined[rows].sum())
            if missing:
                fact = f"{probe} is undefined in {count(missing)} of {plural(len(rows), 'valid trial')} of"
                end = "nothing can be said about it" if missing == len(rows) else "they are left out"
                verdict = "fail" if missing == len(rows) else "warn"
                gates.append(Gate(condition, "undefined", verdict, f"{fact} {condition}: {end}."))
    return gates


def _one_sided(manifest: Mapping[str, Any]) -> list[Gate]:
    """Contrasts of a distance from the clean run against a condition that is the clean run."""
    primary, declared = _primary(manifest), manifest.get("conditions", {})
    if kind_of_column(primary, manifest) != "kl":
        return []
    pairs = [(a, b) for a, b, _ in declared_pairs(manifest)]
    clean = {
        name
        for name, condition in declared.items()
        if not condition.get("writes") and not condition.get("weights")
    }
    bare = [(a, b) for a, b in pairs if (a in clean) != (b in clean)]
    if not bare:
        return []
    named = listed([f"{a} against {b}" for a, b in bare])
    sentence = (
        f"{primary} is a distance from the same prompt without the writes: it is 0 where nothing is written, "
        f"and never below. {named} can come out in one direction only: compare with a control that writes."
    )
    return [Gate(bare[0][0], "one_sided", "warn", sentence)]


def _batch_shapes(lookup: Lookup, manifest: Mapping[str, Any]) -> list[Gate]:
    """In low precision: reused rows that were computed in a batch of another shape than the row beside
    them."""
    if full_precision(manifest) or not {"origin", *_SHAPE} <= set(lookup.trials.columns):
        return []
    baseline = _baseline(manifest)
    origin = lookup.trials["origin"].notna().to_numpy()
    shape = lookup.trials[_SHAPE].to_numpy(dtype=np.float64, na_value=np.nan)
    unlike: dict[str, tuple[int, int]] = {}
    for condition in lookup.conditions(manifest):
        if condition == baseline:
            continue
        here, there = lookup.place(condition), lookup.place(baseline)
        both = (here >= 0) & (there >= 0)
        here, there = here[both], there[both]
        apart = (origin[here] | origin[there]) & (shape[here] != shape[there]).any(axis=1)
        if apart.any():
            unlike[condition] = (int(apart.sum()), len(here))
    return [
        Gate(
            condition,
            "batch_shapes",
            "warn",
            f"{count(rows)} of {plural(shared, 'pair')} of {condition} and {baseline} hold a reused row "
            f"from a batch of another shape; in {manifest.get('dtype')} that alone changes tokens.",
        )
        for condition, (rows, shared) in unlike.items()
    ]
