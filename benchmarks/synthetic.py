"""A finished run of any size, made of random numbers with a known design: what the benchmarks analyse."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from analyses.tables.join import PLAN_SCHEMA, RECEIPT_COLUMNS

_KV = {
    "site": "kv_cache",
    "layers": list(range(32)),
    "op": "replace",
    "positions": "all",
    "during": "prefill",
}
_V = {"site": "v_proj", "op": "replace", "value": "donor", "positions": "last:16", "during": "decode"}
_SAMPLING = {"temperature": 0.8, "top_k": None, "top_p": None, "max_new_tokens": 60}
_WORDS = ("quiet", "harbour", "lantern", "mirror", "itself", "meadow", "process", "paper", "loop", "stone")
_VOCABULARY = 32_000


@dataclass(frozen=True)
class _Arm:
    """A condition: its effect on the score, the role of the donor that it reads, and its writes."""

    name: str
    effect: float
    role: str | None = None
    kv: bool = False
    v_layer: int | None = None


_ARMS = (
    _Arm("baseline", 0.0),
    _Arm("kv_only", 1.9, "donor", kv=True),
    _Arm("kv_plain", 0.1, "length_matched", kv=True),
    _Arm("kv_pseudo", 0.4, "pseudo_recursive", kv=True),
    _Arm("kv_repetitive", 0.2, "repetitive", kv=True),
    _Arm("v_only_l27", 0.0, "donor", v_layer=27),
    _Arm("v_only_l5", 0.0, "donor", v_layer=5),
    _Arm("kv_v_l27", 1.9, "donor", kv=True, v_layer=27),
    _Arm("kv_v_l5", 1.9, "donor", kv=True, v_layer=5),
    _Arm("kv_random", 0.0, kv=True),
)


def make_run(folder: Path, rows: int, *, donors: int = 2000, targets: int = 5000, seed: int = 0) -> Path:
    """Write `trials.parquet` and `manifest.json` of a run of 10 conditions into a new folder and return it.

    rows: of the whole table, a tenth of it items; rounded down to tens. The score of a trial is a level of
    its target, a response of its donor and noise, so that values of one donor or target are alike. Donors and
    targets are as many as asked, or as there are items where these are fewer. Raises ValueError for fewer
    than 30 rows.
    """
    n = rows // len(_ARMS)
    if n < 3:
        raise ValueError(f"rows: expected {3 * len(_ARMS)} or more, got {rows}")
    rng = np.random.default_rng(seed)
    people = _People.draw(rng, n, min(donors, n), min(targets, n))
    folder.mkdir(parents=True)
    with pq.ParquetWriter(folder / "trials.parquet", _schema(), compression="zstd") as writer:
        for arm in _ARMS:
            writer.write_table(_arm_table(arm, people, rng).cast(_schema()))
    (folder / "manifest.json").write_text(json.dumps(_manifest(n)), encoding="utf-8")
    return folder


@dataclass(frozen=True)
class _People:
    """Who is paired with whom: donor and target of each item, their prompts and their levels."""

    donor: np.ndarray[Any, np.dtype[np.int64]]
    target: np.ndarray[Any, np.dtype[np.int64]]
    donor_prompts: Mapping[str, pa.ListArray]
    target_prompts: pa.ListArray
    response: np.ndarray[Any, np.dtype[np.float64]]
    level: np.ndarray[Any, np.dtype[np.float64]]
    phrases: pa.Array

    @staticmethod
    def draw(rng: np.random.Generator, n: int, donors: int, targets: int) -> _People:
        roles = dict.fromkeys(("donor", *(arm.role for arm in _ARMS if arm.role)))
        return _People(
            donor=rng.integers(donors, size=n),
            target=rng.integers(targets, size=n),
            donor_prompts={role: _lists(rng, rng.integers(20, 60, donors)) for role in roles},
            target_prompts=_lists(rng, rng.integers(10, 60, targets)),
            response=rng.normal(0, 0.5, donors),
            level=rng.gamma(1.0, 0.8, targets),
            phrases=pa.array([" ".join(rng.choice(_WORDS, 12)) for _ in range(2000)]),
        )


def _lists(rng: np.random.Generator, lengths: np.ndarray[Any, np.dtype[np.int64]]) -> pa.ListArray:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    values = rng.integers(4, _VOCABULARY, int(offsets[-1])).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))


def _arm_table(arm: _Arm, people: _People, rng: np.random.Generator) -> pa.Table:
    n = len(people.donor)
    lengths = rng.integers(20, 60, n)
    gain = np.where(arm.effect > 0, np.maximum(0.0, arm.effect + people.response[people.donor]), 0.0)
    markers = rng.poisson(people.level[people.target] + gain).astype(np.float64)
    bonus = 5.0 * (rng.random(n) < 0.05)
    valid = rng.random(n) > 0.001
    texts = pc.binary_join_element_wise(
        people.phrases.take(pa.array(rng.integers(2000, size=n))),
        people.phrases.take(pa.array(rng.integers(2000, size=n))),
        " ",
    )
    names = {
        "donor": pa.array([f"L3_{i:05d}" for i in range(int(people.donor.max()) + 1)]).take(
            pa.array(people.donor)
        ),
        "target": pa.array([f"long_{i:05d}" for i in range(int(people.target.max()) + 1)]).take(
            pa.array(people.target)
        ),
    }
    constant = {
        "experiment": "synthetic",
        "stage": "measure",
        "condition": arm.name,
        "group": "long",
        "split": "all",
        "finish": "length",
    }
    columns: dict[str, Any] = {
        "key": pa.array([f"{arm.name}{i:032x}"[-32:] for i in range(n)]),
        "item": pa.array([f"{i:04d}" for i in range(n)]),
        "repeat": np.zeros(n, np.int64),
        "seed": np.full(n, 42),
        "status": pa.array(np.where(valid, "ok", "invalid")),
        "reason": pa.array([None if each else "the text is empty" for each in valid], pa.string()),
        "target_ids": people.target_prompts.take(pa.array(people.target)),
        "donor_ids": _donor_ids(arm, people),
        "n_prompt": pc.list_value_length(people.target_prompts).take(pa.array(people.target)),
        "output_ids": _lists(rng, lengths),
        "text": texts,
        "n_new": lengths,
        "score": pa.array(markers + bonus, mask=~valid),
        "markers": pa.array(markers, mask=~valid),
        "bonus": pa.array(bonus, mask=~valid),
        "strict": pa.array(markers // 2, mask=~valid),
        "perplexity": pa.array(rng.gamma(4.0, 5.0, n), mask=~valid),
        "origin": pa.nulls(n, pa.string()),
        "batch_rows": np.full(n, 64),
        "batch_length": np.full(n, 64),
        "min_margin": rng.random(n),
        **names,
        **{name: pa.array([value] * n) for name, value in constant.items()},
        **_receipts("kv", arm.kv, {"positions_prefill": 30, "asked_prefill": 30}, n, rng),
        **_receipts("v_proj", arm.v_layer is not None, {"positions_decode": 59, "asked_decode": 59}, n, rng),
    }
    return pa.table({name: columns[name] for name in _schema().names})


def _receipts(
    write: str, acts: bool, positions: Mapping[str, int], n: int, rng: np.random.Generator
) -> dict[str, Any]:
    """The receipt columns of a write: of a condition without it, null."""
    values: dict[str, Any] = {name: np.full(n, positions.get(name, 0)) for name in RECEIPT_COLUMNS}
    values |= {"relative_change": 0.5 + 0.2 * rng.random(n), "logit_change": pa.nulls(n, pa.float64())}
    return {
        f"{write}.{name}": values[name] if acts else pa.nulls(n, kind)
        for name, kind in RECEIPT_COLUMNS.items()
    }


def _donor_ids(arm: _Arm, people: _People) -> pa.MapArray:
    """The item's own donor, and the one in the role that the condition reads."""
    roles = list(dict.fromkeys(("donor", arm.role or "donor")))
    n, many = len(people.donor), len(roles)
    whole = pa.concat_arrays([people.donor_prompts[role].take(pa.array(people.donor)) for role in roles])
    order = np.arange(n * many).reshape(many, n).T.ravel()  # role by role -> row by row
    return pa.MapArray.from_arrays(
        pa.array(np.arange(0, n * many + 1, many), pa.int32()),
        pa.array(roles * n),
        whole.take(pa.array(order)),
    )


def _schema() -> pa.Schema:
    plan = {field.name: field.type for field in PLAN_SCHEMA}
    types: dict[str, pa.DataType] = {}
    for name, kind in plan.items():
        if name == "reason":
            continue
        if name == "target_ids":
            types |= {"status": pa.string(), "reason": pa.string()}
        types[name] = kind
    types |= {"n_prompt": pa.int64(), "output_ids": pa.list_(pa.int32()), "text": pa.string()}
    types |= {"n_new": pa.int64(), "finish": pa.string()}
    types |= dict.fromkeys(("score", "markers", "bonus", "strict", "perplexity"), pa.float64())
    for write in ("kv", "v_proj"):
        types |= {f"{write}.{name}": kind for name, kind in RECEIPT_COLUMNS.items()}
    types |= {"origin": pa.string(), "batch_rows": pa.int64(), "batch_length": pa.int64()}
    return pa.schema(list((types | {"min_margin": pa.float64()}).items()))


def _manifest(n: int) -> dict[str, Any]:
    names: Sequence[str] = [arm.name for arm in _ARMS]
    conditions = {}
    for arm in _ARMS:
        value = "random" if arm.role is None else {"role": arm.role}
        writes: dict[str, Any] = {}
        if arm.kv:
            writes["kv"] = {**_KV, "value": value, "expect": None, "min_positions": None, "has_old": True}
        if arm.v_layer is not None:
            extra = {"layers": [arm.v_layer], "hold": "cycle", "expect": None, "has_old": True}
            writes["v_proj"] = {**_V, **extra}
        conditions[arm.name] = {
            "label": arm.name.replace("_", " "),
            "words": [f"{' and '.join(writes) or 'Nothing'} written."],
            "writes": writes,
            "sampling": _SAMPLING,
            "same_as": None,
        }
    number = {"score": "number", "markers": "number", "bonus": "number", "strict": "number"}
    return {
        "schema": 1,
        "status": "done",
        "exit_status": 0,
        "command": ["python", "-m", "benchmarks.analyses"],
        "experiment": {"name": "synthetic", "question": "How long does it take?", "n": n, "repeats": 1},
        "config": {},
        "config_hash": "0" * 64,
        "dtype": "float32",
        "backend": "none",
        "model": {"name": "none", "layers": 32},
        "conditions": conditions,
        "contrasts": {
            "family": "each_against_baseline",
            "baseline": "baseline",
            "primary": "score",
            "extra": [["kv_only", "kv_plain"], ["kv_only", "kv_pseudo"], ["kv_only", "kv_repetitive"]],
            "same": [["kv_v_l27", "kv_v_l5", {"margin": 0.6}]],
            "trends": [],
            "statistics": "paired_clustered",
        },
        "readouts": ["behaviour", "perplexity"],
        "readout": {
            "behaviour": {"kind": "behaviour", "version": 1, "columns": number},
            "perplexity": {"kind": "perplexity", "version": 1, "columns": {"perplexity": "number"}},
        },
        "markers": {"list": ["itself", "loop", "mirror", "process"], "version": 1},
        "plan_gates": [],
        "published": None,
        "prompts": {"asked": n},
        "times": {"started": "2000-01-01T00:00:00+00:00", "finished": "2000-01-01T00:00:00+00:00"},
        "counts": {"planned": n * len(names), "done": n * len(names), "reused": 0, "failed": 0},
    }
