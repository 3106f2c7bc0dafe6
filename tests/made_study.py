"""Tables with planted effects for the tests of declared analyses: crossed donors and targets, with levels of
each that every condition shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analyses.studies.aligned import Source
from analyses.tables.lookup import Lookup
from analyses.tables.run import Run

READS_DONOR = {"kv": {"site": "kv_cache", "value": {"kind": "donor", "role": "donor"}}}
Values = Mapping[str, np.ndarray]


class Design:
    """n items of `donors` x `targets`, each at random; level: the spread of what donors and targets add."""

    def __init__(self, seed: int = 0, n: int = 200, donors: int = 40, targets: int = 60) -> None:
        self.random = np.random.default_rng(seed)
        self.n = n
        self.donor = self.random.integers(donors, size=n)
        self.target = self.random.integers(targets, size=n)

    def levels(self, of_donor: float = 1.0, of_target: float = 1.0) -> np.ndarray:
        """What the donor and the target of each item add."""
        a = self.random.normal(scale=of_donor, size=self.donor.max() + 1)[self.donor]
        return a + self.random.normal(scale=of_target, size=self.target.max() + 1)[self.target]

    def noise(self, scale: float = 1.0) -> np.ndarray:
        return self.random.normal(scale=scale, size=self.n)

    def rows(self, condition: str, repeat: int = 0, **columns: Any) -> pd.DataFrame:
        return pd.DataFrame(
            {
                "stage": "measure",
                "condition": condition,
                "item": [f"{i:04d}" for i in range(self.n)],
                "repeat": repeat,
                "donor": [f"d{i}" for i in self.donor],
                "target": [f"t{i}" for i in self.target],
                "status": "ok",
                "reason": None,
            }
            | columns
        )

    def table(self, values: Values, column: str = "score") -> pd.DataFrame:
        return pd.concat(
            [self.rows(name, **{column: held}) for name, held in values.items()], ignore_index=True
        )


def made(
    trials: pd.DataFrame,
    analyses: Mapping[str, Any] | None = None,
    grids: Mapping[str, Mapping[str, Any]] | None = None,
    no_donor: Sequence[str] = ("baseline",),
    **manifest: Any,
) -> Run:
    """A run of these trials. grids: cell -> its axes; no_donor: the conditions that read no donor."""
    conditions = {
        name: {
            "label": name,
            "writes": {} if name in no_donor else READS_DONOR,
            "grid": dict((grids or {}).get(name, {})),
        }
        for name in trials["condition"].unique()
    }
    contrasts = {
        "family": "each_against_baseline", "baseline": "baseline", "primary": "score", "extra": [],
        "same": [],
    }  # fmt: skip
    whole = {
        "schema": 1, "status": "done", "experiment": {"name": "made"}, "conditions": conditions,
        "model": {"name": "organism", "layers": 9}, "contrasts": contrasts, "analyses": dict(analyses or {}),
    }  # fmt: skip
    return Run(trials, whole | manifest, Path("."))


def source(run: Run) -> Source:
    return Source(Lookup.of(run.trials), run.manifest)
