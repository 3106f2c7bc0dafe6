"""How long a run takes to analyse: `python -m benchmarks.analyses [rows=1000000] [report_rows=10000]`."""

from __future__ import annotations

import os
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from scipy import stats

from analyses.comparisons.contrasts import contrasts
from analyses.gates.all_gates import all_gates
from analyses.summary.summary import summarise
from analyses.tables.lookup import Lookup
from analyses.tables.pairs import declared_pairs
from analyses.tables.run import Run, load_run, value_columns
from benchmarks.synthetic import make_run

SIZES = {"rows": 1_000_000, "report_rows": 10_000}


@dataclass(frozen=True)
class Step:
    """One thing that was timed: seconds by the clock and of the processor, and the most memory (in GB) that
    the process had held by then."""

    name: str
    seconds: float
    processor: float
    memory: float


def main(words: Sequence[str]) -> int:
    """Make both runs in a temporary folder, time every step, and print a Markdown table."""
    sizes = dict(SIZES)
    for word in words:
        name, sign, value = word.partition("=")
        if name not in sizes or not sign or not value.isdecimal():
            print(f"{word}: expected {' or '.join(f'{key}=NUMBER' for key in sizes)}", file=sys.stderr)
            return 2
        sizes[name] = int(value)
    with tempfile.TemporaryDirectory() as folder:
        steps, ratios = _large(make_run(Path(folder) / "large", sizes["rows"]))
        steps += _report(make_run(Path(folder) / "small", sizes["report_rows"]))
    print(_machine())
    print(f"\n{sizes['rows']:,} trials, and {sizes['report_rows']:,} for the report\n")
    print("| step | seconds | processor seconds | peak GB |\n|---|---:|---:|---:|")
    for step in steps:
        print(f"| {step.name} | {step.seconds:.2f} | {step.processor:.2f} | {step.memory:.2f} |")
    print()
    for sentence in ratios:
        print(f"- {sentence}")
    assert "torch" not in sys.modules
    return 0


def _large(folder: Path) -> tuple[list[Step], list[str]]:
    steps: list[Step] = []
    with _timed("load", steps):
        run = load_run(folder)
    with _timed("summarise: contrasts, cross-checks, gates, receipts, all readouts", steps):
        summarise(run)
    seconds, processor = (sum(parts) for parts in _columns(steps))
    whole = Step("load and summarise", seconds, processor, steps[-1].memory)
    steps.append(whole)
    with _timed("of which: gates alone", steps):
        all_gates(run.trials, run.manifest)
    with _timed("of which: contrasts alone", steps):
        contrasts(Lookup.of(run.trials), run.manifest)
    return steps, _ratios(run, steps)


def _columns(steps: Sequence[Step]) -> tuple[list[float], list[float]]:
    return [step.seconds for step in steps], [step.processor for step in steps]


def _ratios(run: Run, steps: Sequence[Step]) -> list[str]:
    """What the same costs where it is written as in a notebook, without clusters, checks or gates."""
    ours = {step.name: step.seconds for step in steps}
    naive = _seconds(lambda: _paired_t(run))
    grouped = _seconds(
        lambda: run.trials.groupby("condition")[list(value_columns(run.trials))].agg(["mean", "std"])
    )
    contrast, whole = ours["of which: contrasts alone"], ours["load and summarise"]
    return [
        f"the contrasts with all cross-checks take {contrast / naive:.1f} times as long as a paired t test "
        f"of each in plain pandas ({naive:.2f} s)",
        f"everything takes {whole / grouped:.0f} times as long as one groupby for mean and sd "
        f"({grouped:.2f} s)",
    ]


def _paired_t(run: Run) -> None:
    """Every declared comparison by merge and one-sample t test."""
    trials = run.trials[run.trials["status"] == "ok"][["condition", "item", "repeat", "score"]]
    for first, second, *_ in declared_pairs(run.manifest):
        sides = [trials[trials["condition"] == name] for name in (first, second)]
        both: pd.DataFrame = sides[0].merge(sides[1], on=["item", "repeat"])
        stats.ttest_1samp(both["score_x"] - both["score_y"], 0.0)


def _report(folder: Path) -> list[Step]:
    from analyses.figures import draw
    from analyses.report.report import write_report

    steps: list[Step] = []
    with _timed("small run: load and summarise", steps):
        run = load_run(folder)
        summary = summarise(run)
    with _timed("small run: figures (PNG, PDF and for the report)", steps):
        drawn = draw(run, summary)
    with _timed("small run: report.html", steps):
        page = write_report(run, summary, drawn)
    size = page.stat().st_size / 1e6
    last = steps.pop()
    return [*steps, Step(f"{last.name} ({size:.1f} MB)", last.seconds, last.processor, last.memory)]


@contextmanager
def _timed(name: str, steps: list[Step]) -> Iterator[None]:
    clock, processor = time.perf_counter(), time.process_time()
    yield
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    steps.append(Step(name, time.perf_counter() - clock, time.process_time() - processor, memory / 1e9))


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _machine() -> str:
    load = f", load average {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}{load}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
