"""A measure stage: conditions x items x repeats, of which only what is not known yet is computed."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from analyses.runs.folders import versions
from analyses.tables.join import join
from analyses.wording import plural
from runner.execute import Executor
from runner.factors import factors
from runner.plan_gates import plan_gates
from runner.power_before import power_before
from runner.prepare import Prepared, plan_table
from runner.progress import ProgressWatcher
from runner.results.manifest import describe_stage
from runner.results.prompt_texts import prompt_texts
from runner.results.resume import Rescoring, earlier_results, own_results
from runner.results.store import read_segments
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
    run.plans[name] = plan_table(prepared.plan, design)
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


def measure_stage(run: StagedRun, name: str, prepared: Prepared) -> pa.Table:
    """Compute what is not known of an announced stage, and join it with the plan.

    Raises StageInterrupted where the user stops it; what else goes wrong is raised as it is. In each case
    what has finished is stored.
    """
    design, plan = prepared.design, prepared.plan
    done = _known(run, prepared)
    todo = {t.key: t for t in plan.trials if t.invalid is None and t.key not in done}
    watcher = ProgressWatcher(run.speaker, len(todo), run.quiet)
    executor = Executor(
        prepared.backend,
        prepared.tokenizer,
        design.measured,
        run.folder.append,
        watcher,
        design.backend.max_rows,
    )
    try:
        with watcher.showing():
            executor.run(list(todo.values()))
    except KeyboardInterrupt as error:
        raise StageInterrupted(watcher.done, watcher.total) from error
    finally:
        for what, seconds in executor.times.items():
            run.spent(what, seconds)
    if todo:
        told = [f"{len(todo):,} trials in {watcher.seconds:.1f} s", watcher.speed]
        run.speaker.say(", ".join(filter(None, told)))
    return join_stage(run, name)


def join_stage(run: StagedRun, name: str) -> pa.Table:
    """The plan of a stage with the results that are stored, scored as the stage asks: another stage, with
    other scores, may have been the one that computed them."""
    conditions = run.sections[name]["conditions"]
    orders = {condition: body["receipt_order"] for condition, body in conditions.items()}
    again = _rescoring(run.prepared[name])
    stored = read_segments(run.folder.path)
    results = [again.rescored(result) for key, result in stored.items() if key in again.words]
    return join(run.plans[name], results, orders, run.columns[name])


def _known(run: StagedRun, prepared: Prepared) -> dict[str, dict[str, Any]]:
    """Results that this version has, or that earlier versions have and this one now takes over."""
    design, folder = prepared.design, run.folder.path
    wanted = {t.key for t in prepared.plan.trials if t.invalid is None}
    stored = read_segments(folder)
    again = _rescoring(prepared)
    own = own_results(folder, wanted, design.columns, again)
    taken = earlier_results(
        folder.parent,
        wanted - own.keys(),
        folder,
        design.columns,
        again,
        lambda sentence: run.speaker.say(sentence, "yellow"),
    )
    unstored = [*(r for key, r in own.items() if key not in stored), *taken.values()]
    if unstored:
        run.folder.append(unstored)
    if taken:
        origins = sorted({result["origin"] for result in taken.values()})
        run.speaker.say(f"{len(taken):,} results taken over from {', '.join(origins)}")
    if own:
        where = "were already here" if run.resumed else "are those of an earlier stage"
        run.speaker.say(f"{len(own):,} results {where}")
    return own | taken


def _rescoring(prepared: Prepared) -> Rescoring:
    return Rescoring.of(prepared.design.measured, prepared.plan.trials)


def _question(question: str) -> str:
    return f": {question}" if question else ""
