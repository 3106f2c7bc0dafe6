"""What all stages of one run share: its folder, its voice, and what is known so far."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from analyses.tables.join import PLAN_SCHEMA, join
from runner.config.compose import Composed
from runner.config.stages.known import NOTHING, Known
from runner.prepare import Prepared
from runner.results.store import RunFolder
from runner.speaker import Speaker


@dataclass
class StagedRun:
    """A run on its way through its stages.

    known: choices and artefacts so far. tables: of the stages that have measured, with results; plans: of
    those that have begun. sections: what the manifest says of each stage. times: seconds by what took them.
    """

    composed: Composed
    config_dir: Path | None
    folder: RunFolder
    speaker: Speaker
    quiet: bool
    staged: bool
    resumed: bool
    changed: Callable[[], None]
    known: Known = NOTHING
    tables: dict[str, pa.Table] = field(default_factory=dict)
    plans: dict[str, pa.Table] = field(default_factory=dict)
    sections: dict[str, dict[str, Any]] = field(default_factory=dict)
    columns: dict[str, dict[str, str]] = field(default_factory=dict)
    times: dict[str, float] = field(default_factory=dict)
    prepared: dict[str, Prepared] = field(default_factory=dict)

    def spent(self, what: str, seconds: float) -> None:
        """Add to the seconds that something has taken."""
        self.times[what] = self.times.get(what, 0.0) + seconds

    def whole_plan(self) -> pa.Table:
        """The plans of all stages so far as one table."""
        return concatenated(list(self.plans.values()))


def concatenated(tables: list[pa.Table]) -> pa.Table:
    """Tables below each other; a column that one lacks is null there, and a column of different types in two
    (an axis of numbers and words) holds texts."""
    if len(tables) == 1:
        return tables[0]
    if not tables:  # nothing has measured
        return join(PLAN_SCHEMA.empty_table(), (), {}, {})
    types: dict[str, set[pa.DataType]] = {}
    for table in tables:
        for column in table.schema:
            types.setdefault(column.name, set()).add(column.type)
    mixed = {
        name
        for name, found in types.items()
        if name.startswith("grid.") and pa.string() in found and len(found - {pa.null()}) > 1
    }
    return pa.concat_tables([_as_texts(table, mixed) for table in tables], promote_options="permissive")


def _as_texts(table: pa.Table, names: set[str]) -> pa.Table:
    for name in names & set(table.column_names):
        values = [None if value is None else str(value) for value in table[name].to_pylist()]
        table = table.set_column(table.column_names.index(name), name, pa.array(values, pa.string()))
    return table
