"""Everything that must be known before the first trial: prompts paired and tokenised, the model loaded, the
plan."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa

from analyses.tables.join import PLAN_SCHEMA
from backends.clock import Clock
from backends.contract import Backend, BackendError, ModelInfo
from backends.hub import fetch
from backends.probes.kinds import faults
from backends.tokenizer import Tokenizer
from runner.config.errors import ConfigurationError, Problem
from runner.config.folders import config_folders
from runner.config.readouts.readout import Readout, ReadoutError, with_scope
from runner.config.resolve import Condition, Design
from runner.config.stages.known import ItemId, Plain
from runner.config.writes.vectors import Undefined, foreign, foreign_in, undefined_in
from runner.key_table import hexes
from runner.keys import Setting, canonical_probe
from runner.layout import Layout, Reading, split_of
from runner.model_source import load_backend, model_source
from runner.plan import Plan, Trials, make_plan, role_of
from runner.prompts.asked import Asker
from runner.prompts.banks import Bank
from runner.prompts.pairing import Item, Pairing, choose, pair, read_banks, summarise
from runner.prompts.sets import with_sets
from runner.results.rows import Parts, Rows

PART = 4096  # rows of a plan that are a table at a time


@dataclass(frozen=True)
class Prepared:
    """A design with its prompts, model and plan. kept: of how many items a choice has kept these; None: there
    is no such choice."""

    design: Design
    banks: Mapping[str, Bank]
    items: tuple[Item, ...]
    pairing: Pairing
    tokenizer: Tokenizer
    backend: Backend
    setting: Setting
    plan: Plan
    kept: int | None = None


def prepare(
    design: Design,
    config_dir: Path | None,
    only_item: int | None = None,
    *,
    download: bool = True,
    keep: frozenset[ItemId] | None = None,
    clock: Clock | None = None,
) -> Prepared:
    """Load and plan. only_item: keep this item alone. download: whether weights that are not here are
    downloaded. keep: ids of donor and target of the items that a choice keeps, None for all. clock: takes up
    the seconds of `load`.

    Raises ConfigurationError (banks, words of readouts), BackendError (model; weights that are neither here
    nor to be had).
    """
    clock = Clock() if clock is None else clock
    with clock.during("load"):
        source = fetch(model_source(design), download=download)
        tokenizer = Tokenizer.load(source, design.model.chat_template)
    count = lru_cache(maxsize=None)(lambda text: len(tokenizer.encode(text)))
    banks = read_banks(design.prompts, config_folders(config_dir))
    items = pair(design.prompts, banks, design.n, count)
    paired = len(items)
    if keep is not None:
        items = [item for item in items if (item.donor.id, item.target.id) in keep]
    pairing = summarise(items, design.n if keep is None else len(items), count)
    if only_item is not None:
        items = items[only_item : only_item + 1]
    design = with_sets(design, choose(design.prompts, banks), tokenizer)
    with clock.during("load"):
        backend = load_backend(source, design)
    refuse_vectors(design.conditions, backend.info)
    check_writes(backend, design.conditions)
    info = backend.info
    design = replace(design, measured=scoped(design.measured, tokenizer))
    wrong = faults(design.probes, info)
    if wrong:
        raise ConfigurationError([Problem("readouts", "readout", sentence) for sentence in wrong])
    setting = Setting(
        backend=design.backend.name,
        model=info.fingerprint,
        tokenizer=tokenizer.fingerprint,
        dtype=info.dtype,
        attention=info.attention,
        probes=tuple(sorted(map(canonical_probe, design.probes))),
        seed=design.sampling_seed,
        texts=design.decodes,
    )
    plan = make_plan(design, items, tokenizer, setting, info)
    kept = None if keep is None else paired
    return Prepared(design, banks, tuple(items), pairing, tokenizer, backend, setting, plan, kept)


def refuse_words(design: Design, tokenizer: Tokenizer, config_dir: Path | None) -> None:
    """Raises ConfigurationError for words of readouts that the tokenizer cannot take as they stand in the
    configuration. For a stage that is planned only once earlier ones have run."""
    count = lru_cache(maxsize=None)(lambda text: len(tokenizer.encode(text)))
    asker = Asker(tokenizer, design.measured)
    for item in pair(design.prompts, read_banks(design.prompts, config_folders(config_dir)), 1, count):
        prompts = {"donor": item.donor, **item.roles}
        for condition in design.conditions:
            asker.of(item, prompts.get(role_of(condition.prompt[-1]), item.target).text)
    if asker.problems:
        raise ConfigurationError(asker.problems)


def refuse_vectors(conditions: Sequence[Condition], info: ModelInfo) -> None:
    """Raises ConfigurationError for a write whose vector is no direction, but for the cells of a grid, of
    which the others can go on, and for one that was extracted from another model."""
    problems = []
    for condition in conditions:
        reasons = [
            foreign_in(condition.writes, info.fingerprint, info.name),
            foreign(condition.weights, info.fingerprint, info.name),
        ]
        if not condition.grid:
            reasons.append(undefined_in(condition.writes))
            if isinstance(condition.weights, Undefined):
                reasons.append(condition.weights.reason)
        key = f"conditions.{condition.name}"
        problems += [Problem("stages", key, reason) for reason in reasons if reason is not None]
    if problems:
        raise ConfigurationError(problems)


def check_writes(backend: Backend, conditions: Sequence[Condition]) -> None:
    """Raises one BackendError with all writes that the loaded model cannot take, each with its condition."""
    refused: dict[str, list[str]] = {}
    for condition in conditions:
        for write in condition.writes:
            if undefined_in([write]) is not None:
                continue  # its trials are invalid, with the reason
            try:
                backend.check([write])
            except BackendError as error:
                sentence = str(error).removeprefix(f"'{write.name}': ")
                refused.setdefault(sentence, []).append(f"{condition.name}.{write.name}")
    if refused:
        lines = [f"conditions.{_shortened(names)}: {sentence}" for sentence, names in refused.items()]
        told = f"{len(lines)} mistakes in writes that this model cannot take\n  "
        raise BackendError(lines[0] if len(lines) == 1 else told + "\n  ".join(lines))


def _shortened(names: Sequence[str]) -> str:
    """The first of several names, and how many more there are."""
    return names[0] if len(names) == 1 else f"{names[0]} (and {len(names) - 1} more: {', '.join(names[1:])})"


def scoped(readouts: Sequence[Readout], tokenizer: Tokenizer) -> tuple[Readout, ...]:
    """Readouts with the prompts of patchscopes as ids. Raises ConfigurationError for a prompt that cannot be
    read so."""
    found: list[Readout] = []
    problems = []
    for readout in readouts:
        if readout.scope is None:
            found.append(readout)
            continue
        key = f"readout.{readout.name}.scope"
        unknown = tokenizer.unknown_words(readout.scope)
        if unknown:
            message = f"words that the tokenizer does not know: {', '.join(unknown[:3])}"
            problems.append(Problem("readouts", f"{key}.prompt", message))
            continue
        try:
            found.append(with_scope(readout, tokenizer.encode(readout.scope)))
        except ReadoutError as error:
            problems.append(Problem("readouts", f"{key}.position", str(error)))
    if problems:
        raise ConfigurationError(problems)
    return tuple(found)


def _of_one_type(values: Sequence[Plain | None]) -> list[Plain | None]:
    """Values of an axis as a column holds them: whole numbers and fractions as numbers, numbers and words as
    words."""
    types = {type(value) for value in values if value is not None}
    if len(types) < 2:
        return list(values)
    if types == {int, float}:
        return [None if value is None else float(value) for value in values]
    return [None if value is None else str(value) for value in values]


def plan_rows(plan: Plan, design: Design) -> Rows:
    """The plan of a stage as a table, one row per trial, a part at a time; grid axes become columns."""
    trials = plan.trials
    assert isinstance(trials, Trials)
    held, layout = trials.ledger, trials.layout
    texts = {
        "condition": (pa.array(held.conditions, pa.string()), held.condition),
        "item": (pa.array(held.items, pa.string()), held.item),
        "donor": (pa.array([item.donor.id for item in layout.items], pa.string()), held.item),
        "target": (pa.array([item.target.id for item in layout.items], pa.string()), held.item),
        "group": (pa.array([item.group for item in layout.items], pa.string()), held.item),
        "split": (pa.array([split_of(item) for item in layout.items], pa.string()), held.item),
        "reason": (pa.array([*held.reasons, None], pa.string()), held.reason),  # the last is that of -1
        "target_ids": (pa.array(held.prompts, pa.list_(pa.int32())), held.prompt),
    }
    axes = {}
    for axis in dict.fromkeys(axis for condition in design.conditions for axis in condition.grid):
        values = _of_one_type([condition.grid.get(axis) for condition in design.conditions])
        axes[f"grid.{axis}"] = pa.array(values) if len(held.keys) else pa.nulls(0)

    def part(rows: slice) -> pa.Table:
        keys = held.keys[rows]
        alone = {"experiment": design.name, "stage": plan.stage, "seed": design.sampling_seed}
        columns = {name: pa.repeat(value, len(keys)) for name, value in alone.items()}
        columns |= {
            "key": pa.array(hexes(keys), pa.string()),
            "repeat": pa.array(held.repeat[rows], pa.int64()),
        }
        for name, (values, places) in texts.items():
            columns[name] = values.take(pa.array(places[rows].astype(np.int64) % len(values)))
        columns["donor_ids"] = _donor_ids(layout, held.item[rows].tolist(), held.condition[rows].tolist())
        table = pa.table({name: columns[name] for name in PLAN_SCHEMA.names}, schema=PLAN_SCHEMA)
        of_condition = pa.array(held.condition[rows])
        for name, values in axes.items():
            table = table.append_column(name, values.take(of_condition))
        return table

    def parts() -> Iterator[pa.Table]:
        for first in range(0, len(held.keys), PART):
            yield part(slice(first, first + PART))

    return Rows(part(slice(0, 0)).schema, Parts(parts))


def _donor_ids(layout: Layout, items: Sequence[int], conditions: Sequence[int]) -> pa.Array:
    """The donors of trials by role, each set of them turned into a map once."""
    known: dict[int, int] = {}
    held: list[Reading] = []  # kept, so that no two have the same id
    places = []
    for item, condition in zip(items, conditions, strict=True):
        reading = layout.reading(item, condition)
        place = known.setdefault(id(reading), len(held))
        if place == len(held):
            held.append(reading)
        places.append(place)
    maps = [[(role, list(ids)) for role, ids in each.donor_ids.items()] for each in held]
    distinct = pa.array(maps, PLAN_SCHEMA.field("donor_ids").type)
    return distinct.take(pa.array(places, pa.int64()))
