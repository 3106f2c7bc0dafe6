"""A whole experiment against the script that does the same: `python -m benchmarks.decode [--quick|--tiny]
[--results FILE]`."""

from __future__ import annotations

import math
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.by_hand import Done, Script, Task, tasks_of
from benchmarks.by_hand_batched import BatchedScript
from benchmarks.machine import Machine, cores
from benchmarks.made_models import TINY, Shape, make_random, overrides, plain_model, shape_of
from benchmarks.ours import Experiment, Ran, arms, write_experiment
from benchmarks.phases import breakdown
from benchmarks.results_file import Goal, Section, number, table
from benchmarks.rounds import Rounds, Way, best_threads, interleaved, timed
from benchmarks.sizes import Size, run
from runner.model_source import model_source
from runner.plan import Trial
from runner.prepare import Prepared

KV_ARMS = {
    "baseline": "",
    "kv_only": "kv_only",
    "kv_plain": "kv_plain",
    "kv_pseudo": "kv_pseudo",
    "kv_repetitive": "kv_repetitive",
    "kv_self": "kv_self",
}
V_ARMS = {
    "kv_v_l27": "kv_plus_v",
    "kv_v_l5": "kv_plus_v 5",
    "v_only_l27": "v_proj_only",
    "v_only_l5": "v_proj_only 5",
    "kv_random_v": "kv_plus_random_v",
    "own_kv_random_v": "own_kv_random_v",
}
WANTED, STRETCH = 60.0, 100.0
HAND, BATCHED, OURS = "one pair at a time", "batches of 16", "patchbay"
NEAR_TIE = 1e-3  # logits so close may come out in the other order of summation the other way round
_SEED = 7


@dataclass(frozen=True)
class Compared:
    """One experiment run in all three ways. ours: the run of median length; trials: all of them; timed:
    how many each way did in a round; tokens: new tokens of those; threads: of the scripts; agreement: what
    was held against each other."""

    name: str
    rounds: Rounds
    ours: Ran
    trials: list[Trial]
    timed: Mapping[str, int]
    tokens: Mapping[str, int]
    threads: Mapping[str, str]
    agreement: str
    shape: Shape


def measure(size: Size) -> Section:
    """Both experiments, in rounds."""
    machine = Machine.measured(size.pick(1536, 1536, 128))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        words = overrides(make_random(folder / "made", TINY)) if size.name == "tiny" else []
        kv = compare("kv_arms", KV_ARMS, size, folder, size.pick(3, 1, 1), words)
        v = compare("v_arms", V_ARMS, size, folder, size.pick(2, 1, 1), words)
        command = ["+experiment=n300_kv_only", f"experiment.n={size.pick(300, 60, 12)}"]
        whole = (
            f"python -m runner {command[0]}",
            timed(Way(lambda: _command([*command, *words], folder))).seconds,
        )
    return section(kv, v, machine, whole)


def _command(words: Sequence[str], folder: Path) -> None:
    """Run an experiment as a process of its own. Raises CalledProcessError where it does not end well."""
    command = [sys.executable, "-m", "runner", *words, "quiet=true", f"output_root={folder / 'outputs'}"]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[1], stdout=subprocess.DEVNULL)


def section(kv: Compared, v: Compared, machine: Machine, whole: tuple[str, float]) -> Section:
    """What was found, with its goals, and what limits it. kv, v: the six arms of each; whole: a command
    and how long it took as a process of its own."""
    by_hand = kv.rounds.median(HAND)
    process = (
        f"`{whole[0]}` as a process of its own, with libraries and model to load, statistics, figures and "
        f"report, took {number(whole[1])} s: the script's {number(by_hand)} s are "
        f"{number(by_hand / whole[1])} times as long."
    )
    goals = (
        Goal("six arms of n300_kv_only, plan to trials.parquet", kv.rounds.ratio(HAND, OURS), WANTED),
        Goal("the same, stretch", kv.rounds.ratio(HAND, OURS), STRETCH),
        Goal("six arms with V_PROJ writes in every decode step", v.rounds.ratio(HAND, OURS), WANTED),
    )
    parts, limits = [_HOW, _table([kv, v]), process], []
    for each in (kv, v):
        shares, limit = breakdown(each.shape, each.trials, each.ours, machine)
        parts.append(f"Where {each.name} spends its time. {shares}")
        limits.append(f"{each.name}: {each.agreement}.")
        if each.rounds.ratio(HAND, OURS) < STRETCH:
            limits.append(f"{each.name}: {limit}")
    title, command = "A whole experiment against its script", "python -m benchmarks.decode"
    return Section("decode", title, command, machine.words(), goals, tuple(parts), tuple(limits))


def compare(
    name: str,
    bodies: Mapping[str, str],
    size: Size,
    folder: Path,
    rounds: int,
    words: Sequence[str] = (),
) -> Compared:
    """Time an experiment in all three ways, and hold what they give against each other.

    bodies: as `arms` takes them; words: further overrides. Raises AssertionError where tokens differ but at a
    near-tie, or scores do.
    """
    config = write_experiment(folder / "conf", name, arms(name, bodies))
    steps = size.pick(150, 150, 6)
    asked = [
        f"+experiment={name}",
        f"experiment.n={size.pick(300, 60, 2)}",
        f"sampling.max_new_tokens={steps}",
    ]
    ours = Experiment([*asked, *words], config, folder)
    prepared = ours.prepare()
    trials = ours.trials(prepared)
    one, sixteen = _scripts(prepared)
    alone, many = (_sample(trials, size.pick(*items)) for items in ((10, 4, 1), (32, 16, 2)))
    vocabulary = prepared.backend.info.vocabulary
    tasks, more = tasks_of(alone, vocabulary), tasks_of(many, vocabulary)
    agreement = _agree(one, sixteen, prepared, _sample(trials, size.pick(8, 4, 1)), size.pick(48, 32, 4))
    choices = range(1, size.pick(cores(), cores(), 1) + 1)
    threads = {
        HAND: best_threads(lambda: one.run(tasks[:6]), choices),
        BATCHED: best_threads(lambda: sixteen.run(more[:32]), choices),
    }
    by_hand = {HAND: _Timed(one, tasks), BATCHED: _Timed(sixteen, more)}
    ways = {
        way: Way(script, threads[way], of=len(script.tasks) / len(trials)) for way, script in by_hand.items()
    }
    timings = interleaved({**ways, OURS: Way(ours)}, rounds, warm=False)
    runs = ours.runs
    table = runs[-1].trials
    _same_samples(table, alone, by_hand[HAND].done)
    return Compared(
        name,
        Rounds(
            {**timings.seconds, OURS: tuple(each.seconds for each in runs)},
            {**timings.processor, OURS: tuple(each.processor for each in runs)},
        ),
        sorted(runs, key=lambda each: each.seconds)[len(runs) // 2],
        trials,
        {HAND: len(alone), BATCHED: len(many), OURS: len(trials)},
        {**{way: script.new_tokens for way, script in by_hand.items()}, OURS: int(table["n_new"].sum())},
        {**{way: str(count) for way, count in threads.items()}, OURS: "its own choice"},
        agreement,
        shape_of(model_source(prepared.design)),
    )


@dataclass
class _Timed:
    """A script with the tasks that it is timed on, and what it had of them last."""

    script: Script | BatchedScript
    tasks: Sequence[Task]
    done: Sequence[Done] = ()

    def __call__(self) -> None:
        self.done = self.script.run(self.tasks)

    @property
    def new_tokens(self) -> int:
        return sum(len(each.tokens) for each in self.done)


def _scripts(prepared: Prepared) -> tuple[Script, BatchedScript]:
    model = plain_model(model_source(prepared.design))
    ends = frozenset(prepared.backend.info.eos_ids)
    return (
        Script(model, prepared.tokenizer, ends),
        BatchedScript(model, prepared.tokenizer, ends),
    )


def _sample(trials: Sequence[Trial], items: int) -> list[Trial]:
    """All conditions of a fixed random choice of items, condition by condition as a script does them."""
    every = sorted({trial.item for trial in trials})
    chosen = set(np.random.default_rng(_SEED).permutation(every)[:items].tolist())
    names = list(dict.fromkeys(trial.condition for trial in trials))
    return sorted((t for t in trials if t.item in chosen), key=lambda t: names.index(t.condition))


def _agree(
    one: Script, sixteen: BatchedScript, prepared: Prepared, trials: Sequence[Trial], steps: int
) -> str:
    """Greedy tokens of all three ways. Raises AssertionError where they differ but at a near-tie."""
    chosen = [
        replace(trial.row, sampling=replace(trial.row.sampling, temperature=0.0, max_new_tokens=steps))
        for trial in trials
        if not any(write.drawn for write in trial.row.writes)
    ]
    ours = prepared.backend.decode(chosen)
    tasks = [Task.of(row, prepared.backend.info.vocabulary) for row in chosen]
    same = 0
    for found in zip(ours, one.run(tasks), sixteen.run(tasks), strict=True):
        equal = found[0].output_ids == found[1].tokens == found[2].tokens
        assert equal or found[0].min_margin < NEAR_TIE, "greedy tokens differ from the script's"
        same += equal
    tokens = sum(len(each.output_ids) for each in ours)
    return (
        f"greedy tokens of all three are the same in {same} of {len(ours)} trials ({tokens:,} tokens), and "
        "so are the sampled texts, scores and perplexities of the trials that the script was timed on"
    )


def _same_samples(table: pd.DataFrame, trials: Sequence[Trial], done: Sequence[Done]) -> None:
    """The sampled texts of the script, in what the run has stored. Raises AssertionError."""
    stored = {(row["condition"], row["item"]): row for row in table.to_dict("records")}
    for trial, found in zip(trials, done, strict=True):
        if any(write.drawn for write in trial.row.writes):
            continue
        row = stored[trial.condition, trial.item]
        if tuple(row["output_ids"]) != found.tokens:
            assert row["min_margin"] < NEAR_TIE, "sampled tokens differ from the script's"
            continue
        assert row["score"] == found.score
        assert math.isclose(row["perplexity"], found.perplexity or math.nan, rel_tol=1e-3)


def _table(compared: Sequence[Compared]) -> str:
    rows = []
    for each in compared:
        for way, count in each.timed.items():
            seconds = each.rounds.median(way)
            rows.append(
                (
                    f"{each.name}: {way}",
                    each.threads[way],
                    f"{count:,}",
                    f"{each.tokens[way] / count:.1f}",
                    number(seconds),
                    number(statistics.median(each.rounds.processor[way])),
                    f"{each.tokens[way] / count * len(each.trials) / seconds:,.0f}",
                    "" if way == OURS else f"{number(each.rounds.ratio(way, OURS))} x",
                )
            )
        whole = each.ours.whole
        gain = f"{number(each.rounds.median(HAND) / whole)} x"
        name = f"{each.name}: patchbay, to the end of its summary"
        rows.append((name, "", "", "", number(whole), "", "", gain))
    head = (
        "way",
        "threads",
        "trials timed",
        "new tokens each",
        f"seconds for {len(compared[0].trials):,}",
        "processor seconds",
        "new tokens/s",
        "gain",
    )
    return table(head, rows)


_HOW = (
    "All do the same trials with the same prompts, noise and score, on the same model, which is loaded "
    "already. The scripts do a random sample of the items (all six conditions of each), which stands for "
    "the whole by the number of trials; patchbay runs all of them, from the plan to trials.parquet. The "
    "scripts have the number of threads that is best for them, and their noise is drawn before. Ratios are "
    "medians over rounds in which all ways take turns."
)


def main(words: Sequence[str]) -> int:
    """Measure and keep."""
    return run(measure, "decode", words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
