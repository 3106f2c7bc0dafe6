"""A sweep: one run per combination of values, one after the other, the model loaded once, one table at the
end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from analyses.figures import draw_sweep
from analyses.report.sweep_page import write_sweep_report
from analyses.summary.sweeps import SweepJob, print_sweep, write_sweep
from runner import status
from runner.config.errors import ConfigurationError
from runner.config.sweeps import PlannedJob, Sweep
from runner.failures import complain, crash
from runner.job import RunResult, run_job, worst


def run_sweep(sweep: Sweep, console: Console, config_dir: Path | None) -> RunResult:
    """Run all jobs, print each failure as it happens, write the combined table; the worst status is
    returned, with the folder of the table. An interrupt ends the sweep."""
    done: list[SweepJob] = []
    for number, job in enumerate(sweep.jobs, start=1):
        swept = " ".join(f"{key}={value}" for key, value in job.swept.items())
        console.rule(Text(f"job {number} of {len(sweep.jobs)}: {swept}"))
        result = _run(job, console, config_dir)
        done.append(SweepJob(job.swept, result.status, result.folder, result.summary, job.overrides))
        if result.status != status.DONE:
            console.print(f"job {number} ended with status {result.status}", style="red")
        if result.status == status.INTERRUPTED:
            break
    return RunResult(worst(job.status for job in done), _combine(sweep, done, console))


def _run(job: PlannedJob, console: Console, config_dir: Path | None) -> RunResult:
    config = [] if config_dir is None else ["--config-dir", str(config_dir)]
    command = ["python", "-m", "runner", *config, *job.overrides]
    try:
        if job.composed is None:
            assert job.error is not None
            raise job.error
        return run_job(job.composed, console, command, config_dir)
    except ConfigurationError as error:
        complain(error)
        return RunResult(status.CONFIGURATION)
    except KeyboardInterrupt:
        return RunResult(status.INTERRUPTED)
    except Exception as error:
        return RunResult(crash(error))


def _combine(sweep: Sweep, jobs: Sequence[SweepJob], console: Console) -> Path | None:
    """The combined table of what is finished; None where nothing is, or where nothing was to be run."""
    if sweep.folder is None or not any(job.folder is not None and job.summary for job in jobs):
        return None
    folder = _new_folder(sweep.folder / "sweeps")
    print_sweep(write_sweep(folder, jobs), console)
    drawn = draw_sweep(folder)
    for sentence in drawn.skipped.values():
        console.print(Text(sentence, style="yellow"))
    if drawn.captions:
        console.print(Text(f"figures: {', '.join(drawn.captions)} in {folder / 'figures'}"))
    console.print(Text(f"combined table: {folder}"))
    if _reported(sweep):
        console.print(Text(f"report: {write_sweep_report(folder, jobs, drawn)}"))
    return folder


def _reported(sweep: Sweep) -> bool:
    """Whether the sweep is to have a page: unless its first job says `report=false`."""
    composed = next((job.composed for job in sweep.jobs if job.composed is not None), None)
    return composed is None or composed.mapping.get("report") is not False


def _new_folder(sweeps: Path) -> Path:
    sweeps.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        folder = sweeps / f"s{number:04d}"
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            number += 1
