"""A measure stage: conditions x items x repeats, of which only what is not known yet is computed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from analyses.runs.folders import versions
from analyses.tables.join import join
from analyses.wording import plural
from runner.execute import Executor
from runner.factors import factors
from runner.key_table import Places
from runner.plan import Trials
from runner.plan_gates import plan_gates
from runner.power_before import power_before
from runner.prepare import Prepared, plan_rows
from runner.progress import ProgressWatcher
from runner.results.manifest import describe_stage
from runner.results.prompt_texts import prompt_texts
from runner.results.resume import Rescoring, Wanted, earlier_results, own_results
from runner.results.rows import Parts, Rows
from runner.results.segments import Segments
from runner.stages.run import StagedRun


class StageInterrupted(Exception):
    """The user stopped a stage; what had finished is stored."""

    def __init__(self, done: int, total: int) -> None:
        super().__init__(f"{done} of {total} trials")
        self.done, self.total = done, total


def announce(run: StagedRun, name: str, prepared: Prepared, extra: dict[str, Any]) -> None:
    """Put a stage that is about to run into the manifest and the plan, and say what it is."""
    design = prepared.design
    section = describe_stage(design, prepared.pairing, prepared.banks, plan_gates(design, prepared.plan))
    if prepared.kept is not None:  # what is asked of this stage is what the choice has kept
        section["experiment"]["n"] = len(prepared.items)
    compared = factors(design, prepared.items)
    earlier = [folder for folder in versions(run.folder.path.parent) if folder != run.folder.path]
    power = power_before(design, prepared.plan, earlier)
    told = {key: found for key, found in (("factors", compared), ("power", power)) if found}
    run.sections[name] = section | told | extra
    run.columns[name] = design.columns
    run.prepared[name] = prepared
    run.plans[name] = plan_rows(prepared.plan, design)
    run.folder.write_plan(run.whole_plan())
    run.folder.write_prompts(prompt_texts((each.plan, each.tokenizer) for each in run.prepared.values()))
    run.changed()
    pairing = prepared.pairing
    if run.staged:
        run.speaker.say(f"stage {name}: measure{_question(design.question)}", "bold")
    else:
        run.speaker.say(f"{run.folder.name}{_question(design.question)}", "bold")
    distinct = (
        f" ({pairing.distinct_donors} donors, {pairing.distinct_targets} targets, "
        f"{pairing.distinct_pairs} pairs)"
        if design.prompts.pairs
        else ""
    )
    kept = "" if prepared.kept is None else f" (of {prepared.kept})"
    run.speaker.say(
        f"{plural(len(prepared.plan.trials), 'trial')}: {plural(len(design.conditions), 'condition')}, "
        f"{plural(pairing.items, 'item')}{kept}{distinct}, {plural(design.repeats, 'repeat')}; "
        f"{design.model.name} on {design.backend.name}"
    )
    for note in design.layer_notes:
        run.speaker.say(note, "dim")
    if power is not None:
        run.speaker.say(power["sentence"], "dim")
        for sentence in power["warnings"]:
            run.speaker.say(sentence, "yellow")


def measure_stage(run: StagedRun, name: str, prepared: Prepared) -> Rows:
    """Compute what is not known of an announced stage, and join it with the plan.

    Raises StageInterrupted where the user stops it; what else goes wrong is raised as it is. In each case
    what has finished is stored.
    """
    design, plan = prepared.design, prepared.plan
    with run.spending.during("join"):
        assert isinstance(plan.trials, Trials)
    todo = plan.trials.take(_unknown(run, prepared))
    watcher = ProgressWatcher(run.speaker, len(todo), run.quiet)
    known = [rows for rows in (design.backend.max_rows, run.most_rows) if rows is not None]
    executor = Executor(
        prepared.backend,
        prepared.tokenizer,
        design.measured,
        run.folder.append,
        watcher,
        min(known, default=None),
    )
    with run.spending.during("plan"):
        batches = list(executor.batches(todo))
    if todo:
        run.speaker.write(executor.in_words(batches))
    try:
        with run.spending.work(prepared.backend), watcher.showing():
            executor.run_batches(batches)
    except KeyboardInterrupt as error:
        raise StageInterrupted(watcher.done, watcher.total) from error
    finally:
        run.most_rows = executor.most_rows
    if todo:
        told = [f"{len(todo):,} trials in {watcher.seconds:.1f} s", watcher.speed]
        run.speaker.say(", ".join(filter(None, told)))
    return join_stage(run, name)


def join_stage(run: StagedRun, name: str) -> Rows:
    """The plan of a stage with the results that are stored, scored as the stage asks: another stage, with
    other scores, may have been the one that computed them. Joined anew, a part at a time, whenever it is
    read; as long as the segments are there."""
    conditions = run.sections[name]["conditions"]
    orders = {condition: body["receipt_order"] for condition, body in conditions.items()}
    prepared, columns = run.prepared[name], run.columns[name]
    again, ledger = Rescoring.of(prepared.design.measured), prepared.plan.ledger

    def parts() -> Iterator[pa.Table]:
        segments = Segments.of(run.folder.path)
        first = 0
        for plan in run.plans[name].parts:
            rows = np.arange(first, first + plan.num_rows)
            first += plan.num_rows
            places = segments.places(ledger.keys[rows])
            stored = np.unique(places[places >= 0])
            words = dict(zip(plan["key"].to_pylist(), map(ledger.words_of, rows.tolist()), strict=True))
            results = [again.scored(result, words[result["key"]]) for result in segments.read(stored)]
            yield join(plan, results, orders, columns)

    schema = join(run.plans[name].schema.empty_table(), (), orders, columns).schema
    return Rows(schema, Parts(parts))


def _unknown(run: StagedRun, prepared: Prepared) -> Places:
    """The trials, one for each key, of which neither this version nor an earlier one has a result; what only
    an earlier one has is taken over."""
    design, folder = prepared.design, run.folder.path
    wanted = Wanted.of(prepared.plan.ledger)
    again = Rescoring.of(design.measured)
    every = int(wanted.open.sum())
    for results in own_results(folder, wanted, design.columns, again):
        run.folder.append(results)
    own = every - int(wanted.open.sum())
    taken = 0
    origins: set[str] = set()
    for results in earlier_results(
        folder.parent,
        wanted,
        folder,
        design.columns,
        again,
        lambda sentence: run.speaker.say(sentence, "yellow"),
    ):
        run.folder.append(results)
        taken += len(results)
        origins |= {result["origin"] for result in results}
    if taken:
        run.speaker.say(f"{taken:,} results taken over from {', '.join(sorted(origins))}")
    if own:
        where = "were already here" if run.resumed else "are those of an earlier stage"
        run.speaker.say(f"{own:,} results {where}")
    return wanted.left


def _question(question: str) -> str:
    return f": {question}" if question else ""
