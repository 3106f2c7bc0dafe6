"""The table of trials: the plan joined with results by key, with exactly the columns that other programs
read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from analyses.tables.columns import INTEGERS, NUMBER, NUMBERS

HELD: Mapping[str, pa.DataType] = {
    NUMBER: pa.float64(),
    NUMBERS: pa.list_(pa.float64()),
    INTEGERS: pa.list_(pa.int64()),
}
RECEIPT_COLUMNS: Mapping[str, pa.DataType] = {
    "positions_prefill": pa.int64(),
    "positions_decode": pa.int64(),
    "relative_change": pa.float64(),
    "asked_prefill": pa.int64(),
    "asked_decode": pa.int64(),
    "positions_shadowed": pa.int64(),
    "decode_shadowed": pa.int64(),
    "keys_ahead": pa.int64(),
    "logit_change": pa.float64(),
}
PLAN_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("experiment", pa.string()),
        ("stage", pa.string()),
        ("condition", pa.string()),
        ("item", pa.string()),
        ("donor", pa.string()),
        ("target", pa.string()),
        ("group", pa.string()),
        ("split", pa.string()),
        ("repeat", pa.int64()),
        ("seed", pa.int64()),
        ("reason", pa.string()),
        ("target_ids", pa.list_(pa.int32())),
        ("donor_ids", pa.map_(pa.string(), pa.list_(pa.int32()))),
    ]
)
OUTCOME_TYPES: Mapping[str, pa.DataType] = {
    "output_ids": pa.list_(pa.int32()),
    "text": pa.string(),
    "n_new": pa.int64(),
    "finish": pa.string(),
}
TAIL_TYPES: Mapping[str, pa.DataType] = {
    "origin": pa.string(),
    "batch_rows": pa.int64(),
    "batch_length": pa.int64(),
    "min_margin": pa.float64(),
}


def join(
    plan: pa.Table,
    results: Iterable[Mapping[str, Any]],
    receipt_order: Mapping[str, Sequence[str]],
    score_columns: Mapping[str, str],
) -> pa.Table:
    """One row per planned trial, in the plan's order.

    results: finished trials by `key`, in the form of a run's segments (receipts in the order that
    `receipt_order` gives per condition). score_columns: those of the readouts, with what each holds
    (`number`, `numbers`, `integers`). A trial without a result is `pending`, or `invalid` where the plan
    says why it cannot run.
    """
    found = {result["key"]: result for result in results}
    rows = [found.get(key) for key in plan["key"].to_pylist()]
    reasons = [
        None if r is None and planned is None else (planned if r is None else r["reason"])
        for r, planned in zip(rows, plan["reason"].to_pylist(), strict=True)
    ]
    statuses = [
        r["status"] if r is not None else ("invalid" if reason is not None else "pending")
        for r, reason in zip(rows, reasons, strict=True)
    ]
    names = [name for name in plan.column_names if name != "reason"]
    place = names.index("target_ids")
    columns: dict[str, pa.Array | pa.ChunkedArray] = {name: plan[name] for name in names[:place]}
    columns["status"] = pa.array(statuses, pa.string())
    columns["reason"] = pa.array(reasons, pa.string())
    columns |= {name: plan[name] for name in names[place:] if not name.startswith("grid.")}
    columns["n_prompt"] = pc.list_value_length(plan["target_ids"]).cast(pa.int64())
    for name, kind in OUTCOME_TYPES.items():
        columns[name] = pa.array([None if r is None else r[name] for r in rows], kind)
    columns |= {name: plan[name] for name in names if name.startswith("grid.")}
    for name, held in score_columns.items():
        values = [None if r is None or r["status"] != "ok" else r["scores"].get(name) for r in rows]
        columns[name] = pa.array(values, HELD[held])
    columns |= _receipts(plan["condition"].to_pylist(), rows, receipt_order)
    for name, kind in TAIL_TYPES.items():
        columns[name] = pa.array([None if r is None else r[name] for r in rows], kind)
    return pa.table(columns)


def _receipts(
    conditions: Sequence[str], rows: Sequence[Mapping[str, Any] | None], order: Mapping[str, Sequence[str]]
) -> dict[str, pa.Array]:
    at = {name: {write: i for i, write in enumerate(writes)} for name, writes in order.items()}
    columns: dict[str, pa.Array] = {}
    for write in dict.fromkeys(write for writes in order.values() for write in writes):
        mine = [
            None
            if r is None or write not in at.get(condition, {}) or not r["receipts"]
            else r["receipts"][at[condition][write]]
            for condition, r in zip(conditions, rows, strict=True)
        ]
        for name, kind in RECEIPT_COLUMNS.items():
            values = [None if m is None else m[name] for m in mine]
            columns[f"{write}.{name}"] = pa.array(values, kind)
    return columns
