"""The course of a run: each stage in its order, as soon as everything that it rests on is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from backends.clock import Clock
from runner.config.check import Experiment, Stage, check_again
from runner.config.errors import ConfigurationError, Problem
from runner.config.resolve import resolve
from runner.config.stages.artefact_files import ArtefactError
from runner.config.stages.choice_words import choice_named
from runner.config.stages.spec import ExtractStageSpec, MeasureStageSpec, SelectStageSpec
from runner.config.stages.stand_ins import source_of
from runner.prepare import Prepared, prepare, refuse_words
from runner.results.manifest import described_banks
from runner.stages.extract import NothingToExtract, combine_stage, extract_stage
from runner.stages.measure import announce, measure_stage
from runner.stages.run import StagedRun
from runner.stages.select import select_stage

DONE, LEFT_OUT, RUNNING = "done", "left_out", "running"


def prepare_first(experiment: Experiment, config_dir: Path | None, clock: Clock | None = None) -> Prepared:
    """Load the model and the first stage that has prompts, before a folder is made for the run. Raises as
    `prepare` does, and for words of the readouts of any stage, before the first one runs.
    clock: takes up the seconds."""
    clock = Clock() if clock is None else clock
    with clock.during("plan"):
        first = prepare(resolve(experiment.specs[0]), config_dir, clock=clock)
        for spec in experiment.specs[1:]:
            refuse_words(resolve(spec), first.tokenizer, config_dir)
    return first


def run_stages(experiment: Experiment, run: StagedRun, first: Prepared) -> None:
    """Carry out every stage. A stage that needs an empty choice, or a stage that was left out, is left out
    and said so. first: the first stage that has prompts, prepared."""
    for stage in experiment.stages:
        why = _left_out(stage, run)
        if why is not None:
            _leave_out(stage, run, why)
            continue
        with run.spending.stage(stage.name):
            _carry_out(stage, run, first, fresh=stage.spec is experiment.specs[0])


def _carry_out(stage: Stage, run: StagedRun, first: Prepared, *, fresh: bool) -> None:
    body = stage.body
    if isinstance(body, SelectStageSpec):
        run.sections[stage.name] = _section(stage, DONE)
        with run.spending.during("summarise"):
            chosen = select_stage(run, stage.name, body, first.design.model.layers)
        run.known = run.known.and_choice(chosen)
        run.sections[stage.name] |= {"sentence": run.known.choices[stage.name].sentence}
    elif isinstance(body, ExtractStageSpec):
        _extract(stage, body, run, first)
    else:
        _measure(stage, body, run, first, fresh=fresh)
    run.changed()


def _measure(
    stage: Stage, body: MeasureStageSpec | None, run: StagedRun, first: Prepared, *, fresh: bool
) -> None:
    prepared = first if body is None or (fresh and not stage.needs) else _prepared(stage, body, run)
    if prepared.kept is not None and not prepared.items:
        assert body is not None
        _leave_out(stage, run, f"none of its items is one that {body.items} has kept")
        return
    with run.spending.during("plan"):
        announce(run, stage.name, prepared, _section(stage, RUNNING) | _kept(prepared, body))
    run.tables[stage.name] = measure_stage(run, stage.name, prepared)
    run.sections[stage.name]["status"] = DONE


def _extract(stage: Stage, body: ExtractStageSpec, run: StagedRun, first: Prepared) -> None:
    run.speaker.say(f"stage {stage.name}: extract", "bold")
    run.sections[stage.name] = _section(stage, RUNNING)
    try:
        if body.from_ is not None:
            assert body.heads is not None
            source = run.known.artefacts[source_of(body)]
            heads = run.known.choices[choice_named(body.heads) or ""]
            spec = stage.spec
            assert spec is not None
            artefact = combine_stage(run, stage.name, body, source, heads, spec, first.backend)
        else:
            prepared = _prepared(stage, body, run)
            run.sections[stage.name]["prompts"] = {"banks": described_banks(prepared.banks)}
            run.changed()
            with run.spending.work(prepared.backend):
                artefact = extract_stage(run, stage.name, body, prepared)
    except NothingToExtract as error:
        _leave_out(stage, run, str(error))
        return
    except ArtefactError as error:
        raise ConfigurationError([Problem("stages", f"stages.{stage.name}", str(error))]) from error
    run.known = run.known.and_artefact(artefact)
    run.sections[stage.name]["status"] = DONE


def _leave_out(stage: Stage, run: StagedRun, why: str) -> None:
    """Record and say that a stage does not run. What it gave before the run was resumed goes."""
    run.sections[stage.name] = _section(stage, LEFT_OUT) | {"reason": why}
    run.speaker.say(f"stage {stage.name} is left out: {why}", "yellow")
    run.changed()
    for folder, suffix in (("choices", ".json"), ("artefacts", ".json"), ("artefacts", ".safetensors")):
        (run.folder.path / folder / f"{stage.name}{suffix}").unlink(missing_ok=True)


def _prepared(stage: Stage, body: MeasureStageSpec | ExtractStageSpec, run: StagedRun) -> Prepared:
    """A stage with what is known by now in the place of what stood in for it."""
    clock = run.spending.clock
    with clock.during("plan"):
        spec = check_again(run.composed, stage, run.known)
        name = None if body.items is None else choice_named(body.items)
        keep = None if name is None else run.known.choices[name].items
        return prepare(resolve(spec), run.config_dir, keep=keep, clock=clock)


def _left_out(stage: Stage, run: StagedRun) -> str | None:
    """Why a stage cannot run: what it needs was left out, or is a choice of nothing."""
    for name in stage.needs:
        section = run.sections.get(name)
        if section is not None and section["status"] == LEFT_OUT:
            return f"it needs '{name}', which was left out"
        chosen = run.known.choices.get(name)
        if chosen is not None and chosen.empty:
            return f"'{name}' has chosen nothing"
    return None


def _section(stage: Stage, status: str) -> dict[str, Any]:
    question = "" if stage.body is None else stage.body.question
    return {
        "kind": stage.kind,
        "status": status,
        "reason": None,
        "question": question,
        "in_sample": stage.in_sample,
        "needs": list(stage.needs),
    }


def _kept(prepared: Prepared, body: MeasureStageSpec | None) -> dict[str, Any]:
    """How many items a choice has kept."""
    if prepared.kept is None or body is None:
        return {}
    return {"kept": {"choice": body.items, "items": len(prepared.items), "of": prepared.kept}}
