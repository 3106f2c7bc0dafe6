"""What all stages of one run share: its folder, its voice, and what is known so far."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from analyses.tables.join import PLAN_SCHEMA, join
from runner.config.compose import Composed
from runner.config.stages.known import NOTHING, Known
from runner.prepare import Prepared
from runner.results.rows import Rows, below
from runner.results.store import RunFolder
from runner.speaker import Speaker
from runner.spending import Spending


@dataclass
class StagedRun:
    """A run on its way through its stages.

    known: choices and artefacts so far. tables: of the stages that have measured, with results; plans: of
    those that have begun. sections: what the manifest says of each stage. spending: where the time goes.
    most_rows: the most that memory has sufficed for at once, None for all that were tried.
    """

    composed: Composed
    config_dir: Path | None
    folder: RunFolder
    speaker: Speaker
    quiet: bool
    staged: bool
    resumed: bool
    changed: Callable[[], None]
    spending: Spending
    known: Known = NOTHING
    tables: dict[str, Rows] = field(default_factory=dict)
    plans: dict[str, Rows] = field(default_factory=dict)
    sections: dict[str, dict[str, Any]] = field(default_factory=dict)
    columns: dict[str, dict[str, str]] = field(default_factory=dict)
    prepared: dict[str, Prepared] = field(default_factory=dict)
    most_rows: int | None = None

    def whole_plan(self) -> Rows:
        """The plans of all stages so far as one table."""
        return concatenated(list(self.plans.values()))


def concatenated(tables: Sequence[Rows]) -> Rows:
    """Tables below each other; the columns of a stage without trials where there is none."""
    if not tables:  # nothing has measured
        return Rows.of(join(PLAN_SCHEMA.empty_table(), (), {}, {}))
    return below(tables)
