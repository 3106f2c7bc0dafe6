"""Where a run spends its time, and what share of the machine's rate each phase reaches."""

from __future__ import annotations

from collections.abc import Sequence

from backends.writes import SELF
from benchmarks.arithmetic import of_rows
from benchmarks.machine import Machine, products_rate
from benchmarks.made_models import Shape
from benchmarks.ours import Ran
from benchmarks.results_file import number, table
from runner.plan import Trial

_ROWS = 256  # of the products whose rate the phases are held against


def breakdown(shape: Shape, trials: Sequence[Trial], ran: Ran, machine: Machine) -> tuple[str, str]:
    """A table of phases, and a sentence on what limits the run.

    Each phase is held against two rates of all cores together: that of products of the model's own shapes,
    each core its own, as workers do them, and that of a large square product.
    """
    records = ran.trials[["condition", "item", "n_new"]].to_dict("records")
    new = {(row["condition"], row["item"]): int(row["n_new"]) for row in records}
    rows = [(trial.row.ids, new[trial.condition, trial.item]) for trial in trials]
    work = of_rows(shape, rows, [ids for trial in trials for ids in _donors(trial)])
    own = products_rate(shape.all_products(), _ROWS, machine.cores)
    asked = {
        "capture": work.capture,
        "prefill": work.prefill,
        "decode": work.decode,
        "score": work.score,
    }
    lines = []
    for phase, seconds in sorted(ran.times.items(), key=lambda each: -each[1]):
        share = f"{seconds / ran.seconds:.0%}"
        if phase not in asked or seconds <= 0:
            lines.append((phase, number(seconds), share, "", "", "", ""))
            continue
        rate = asked[phase] / seconds / 1e9
        held = (f"{rate / own:.0%}", f"{rate / machine.square:.0%}")
        lines.append((phase, number(seconds), share, number(asked[phase] / 1e9), number(rate), *held))
    head = (
        "phase",
        "seconds",
        "of the run",
        "GFLOP needed",
        "GFLOP/s",
        "of own shapes' rate",
        "of the square's",
    )
    told = (
        f"The run of {number(ran.seconds)} s, by the clock. Products of this model's own shapes, {_ROWS} "
        f"rows on each of {machine.cores} cores, run at {number(own)} GFLOP/s; the large square one at "
        f"{number(machine.square)}. Operations are those of matrices and attention, each thing computed "
        "once."
    )
    return f"{told}\n\n{table(head, lines)}", _limit(work.decode, ran, own)


def _donors(trial: Trial) -> list[tuple[int, ...]]:
    """The prompts that a trial's writes draw from."""
    own = any(write.value.role == SELF for write in trial.row.writes)
    return [*trial.row.sources.values(), *([trial.row.ids] if own else [])]


def _limit(decode: float, ran: Ran, own: float) -> str:
    most = max(ran.times, key=lambda phase: ran.times[phase])
    floor = decode / 1e9 / own
    return (
        f"most of the time is {most} ({number(ran.times[most])} of {number(ran.seconds)} s). The products "
        f"of its new tokens alone would take {number(floor)} s at the rate measured for their shapes. The "
        "rest is what no product is: attention reads each row's own cache for a single query, noise and "
        "the search for the best token go over the whole vocabulary, and norms, rotations, activations and "
        "sums go through memory one after the other."
    )
