"""The runner: YAML in, trustworthy tables out. `run` and `load` are its Python interface."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from analyses.runs.notebook import LoadedRun
    from runner.job import RunResult

__all__ = ["load", "run"]


def run(overrides: Sequence[str], config_dir: str | Path | None = None) -> RunResult:
    """Run one experiment, as `python -m runner OVERRIDES...` does, and return how it ended; of one that
    sweeps the worst status, with the folder of the combined table.

    overrides: for instance ["+experiment=n300_kv_only", "limit=5"]. Raises ConfigurationError and
    BackendError.
    """
    from pathlib import Path

    from rich.console import Console

    from runner.config.sweeps import plan_jobs
    from runner.job import run_job
    from runner.sweep import run_sweep

    folder = None if config_dir is None else Path(config_dir)
    command = ["python", "-m", "runner", *overrides]
    sweep = plan_jobs(overrides, False, folder)
    if sweep.declared:
        return run_sweep(sweep, Console(), folder)
    composed = sweep.jobs[0].composed
    assert composed is not None
    return run_job(composed, Console(), command, folder)


def load(run: str | Path, output_root: str | Path = "outputs") -> LoadedRun:
    """A finished or running run for notebooks. run: a path, `name` (its newest version) or `name/v0003`.

    It has `trials`, `manifest`, `summary`, `conditions`, `contrasts`, `exploratory`, `receipts`, `gates` and
    `findings` (data frames, but for the manifest and the summary), `paired(a, b, column)`, `artefact(name)`
    and `choice(name)`. Needs neither the model nor torch. Raises TableError in a sentence when there is no
    such run or it cannot be read.
    """
    from pathlib import Path

    from analyses.runs.notebook import load as load_folder
    from runner.results.find_run import find_run

    return load_folder(find_run(str(run), Path(output_root)))
