"""Everything that must be known before the first trial: prompts paired and tokenised, the model loaded, the
plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pyarrow as pa

from analyses.join import PLAN_SCHEMA
from backends.contract import Backend
from backends.hub import fetch
from backends.tokenizer import Tokenizer
from runner.config.compose import config_folders
from runner.config.resolve import Design
from runner.config.spec import READOUT_COLUMNS
from runner.execute import PERPLEXITY
from runner.keys import Setting
from runner.model_source import load_backend, model_source
from runner.plan import Plan, make_plan
from runner.prompts.banks import Bank
from runner.prompts.pairing import Item, Pairing, pair, read_banks, summarise


@dataclass(frozen=True)
class Prepared:
    """A design with its prompts, model and plan."""

    design: Design
    banks: Mapping[str, Bank]
    items: tuple[Item, ...]
    pairing: Pairing
    tokenizer: Tokenizer
    backend: Backend
    setting: Setting
    plan: Plan


def prepare(
    design: Design, config_dir: Path | None, only_item: int | None = None, *, download: bool = True
) -> Prepared:
    """Load and plan. only_item: keep this item alone. download: whether weights that are not here are
    downloaded.

    Raises ConfigurationError (banks), BackendError (model; weights that are neither here nor to be had).
    """
    source = fetch(model_source(design), download=download)
    tokenizer = Tokenizer.load(source, design.model.chat_template)
    count = lru_cache(maxsize=None)(lambda text: len(tokenizer.encode(text)))
    banks = read_banks(design.prompts, config_folders(config_dir))
    items = pair(design.prompts, banks, design.n, count)
    pairing = summarise(items, design.n, count)
    if only_item is not None:
        items = items[only_item : only_item + 1]
    backend = load_backend(source, design)
    backend.check([write for condition in design.conditions for write in condition.writes])
    info = backend.info
    probes = {"perplexity": PERPLEXITY.version} if "perplexity" in design.readouts else {}
    setting = Setting(
        backend=design.backend.name,
        model=info.fingerprint,
        tokenizer=tokenizer.fingerprint,
        dtype=info.dtype,
        attention=info.attention,
        probes=tuple(sorted(probes.items())),
        seed=design.sampling_seed,
    )
    plan = make_plan(design, items, tokenizer, setting, info.context)
    return Prepared(design, banks, tuple(items), pairing, tokenizer, backend, setting, plan)


def score_columns(design: Design) -> list[str]:
    """Columns of the readouts, in their order."""
    return [column for readout in design.readouts for column in READOUT_COLUMNS[readout]]


def plan_table(plan: Plan, design: Design) -> pa.Table:
    """The plan as a table, one row per trial; grid axes become columns."""
    grids = {condition.name: condition.grid for condition in design.conditions}
    trials = plan.trials
    columns = {
        "key": [t.key for t in trials],
        "experiment": [design.name] * len(trials),
        "stage": [plan.stage] * len(trials),
        "condition": [t.condition for t in trials],
        "item": [t.item for t in trials],
        "donor": [t.donor for t in trials],
        "target": [t.target for t in trials],
        "group": [t.group for t in trials],
        "split": [t.split for t in trials],
        "repeat": [t.repeat for t in trials],
        "seed": [design.sampling_seed] * len(trials),
        "reason": [t.invalid for t in trials],
        "target_ids": [list(t.row.ids) for t in trials],
        "donor_ids": [[(role, list(ids)) for role, ids in t.donor_ids.items()] for t in trials],
    }
    table = pa.table(columns, schema=PLAN_SCHEMA)
    for axis in dict.fromkeys(axis for grid in grids.values() for axis in grid):
        values = [grids[t.condition].get(axis) for t in trials]
        mixed = len({type(v) for v in values if v is not None}) > 1
        table = table.append_column(
            f"grid.{axis}", pa.array([str(v) if mixed and v is not None else v for v in values])
        )
    return table
