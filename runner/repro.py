"""A sample of a stored run's trials, run again: which come out as they did, and what is different where they
do not."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from analyses.runs.differences import Difference, differences
from analyses.tables.cells import grid_name
from analyses.tables.run import Run
from analyses.tables.stages import DONE, staged
from analyses.wording import plural
from runner.config.check import Experiment, Stage, check_again, check_experiment
from runner.config.compose import Composed
from runner.config.resolve import resolve
from runner.config.stages.choice_words import choice_named
from runner.config.stages.known import MEASURE
from runner.config.stages.spec import MeasureStageSpec
from runner.execute import Executor, Result
from runner.plan import Plan, Trial
from runner.plan_gates import plan_gates
from runner.prepare import Prepared, prepare
from runner.repeated import Repeated, held_against
from runner.results.manifest import describe_run, describe_stage
from runner.results.resume import from_row
from runner.results.stored import composed_of, stored_config, stored_known
from runner.schedule import Batch

FULL = "float32"
_INPUTS = ("model", "measurement")  # differences that change every key
_COMPUTER = ("machine", "packages")


class CannotRepeat(Exception):
    """No trial of the run can be run again as it was; the message says why."""


@dataclass(frozen=True)
class Reproduction:
    """A sample of a run, run again. trials: valid ones that it has; gone: those that this code and these
    inputs would not compute any more. uncovered: conditions and grids of which no trial was run. notes: what
    was left out, and why. differences: between the run and now."""

    run: str
    seed: int
    dtype: str
    trials: int
    gone: int
    repeated: tuple[Repeated, ...]
    uncovered: tuple[str, ...]
    notes: tuple[str, ...]
    differences: tuple[Difference, ...]

    def number(self, verdict: str) -> int:
        """How many trials came out so."""
        return sum(each.verdict == verdict for each in self.repeated)

    @property
    def sound(self) -> bool:
        """Whether everything is the same but for near-ties."""
        return not self.number("differs") and not self.number("failed")


def reproduce(
    run: Run, name: str, config_dir: Path | None, sample: int, seed: int, note: Callable[[str], None]
) -> Reproduction:
    """Run a sample of a run's valid trials again, from the run's own configuration, choices and artefacts.

    sample: how many trials, spread evenly over stages, conditions and grids by a seeded order. In low
    precision whole batches are run as they were, where they can be made again. note: told what is going on.

    Raises CannotRepeat where weights, tokenizer, number format or a version differ so that no result would be
    the same one, ConfigurationError and BackendError where the experiment cannot be set up again.
    """
    config = stored_config(run.folder, run.manifest)
    composed = composed_of(run.folder, config, config_dir)
    experiment = check_experiment(composed)
    valid = run.trials[run.trials["status"] == "ok"]
    if valid.empty or "key" not in valid.columns:
        why = "has no valid trial" if valid.empty else "has no keys to know its trials by"
        raise CannotRepeat(f"{name} {why}")
    notes: list[str] = []
    prepared = dict(_prepared(run, experiment, composed, config_dir, notes))
    if not prepared:
        raise CannotRepeat(f"{name}: no stage can be set up again: {' '.join(notes)}")
    found = _differences(run, config, composed, prepared)
    planned = {stage: {t.key: t for t in each.plan.trials} for stage, each in prepared.items()}
    there = [key in planned.get(stage, {}) for stage, key in zip(valid["stage"], valid["key"], strict=True)]
    kept = valid[there]
    if kept.empty:
        raise CannotRepeat(_why_none(name, found))
    gone = int(valid["stage"].isin(list(prepared)).sum()) - len(kept)
    low = str(run.manifest.get("dtype")) != FULL
    repeated: list[Repeated] = []
    chosen = _sample(kept, sample, seed, low)
    for stage, rows in chosen.groupby("stage", sort=False):
        repeated += _of_stage(prepared[str(stage)], rows, kept, run.manifest, found, low, note)
    covered = {each.stratum for each in repeated}
    strata = dict.fromkeys(zip(valid["stage"], valid["condition"].map(grid_name), strict=True))
    several = staged(run.manifest)
    left = [
        f"{stage}.{condition}" if several else str(condition)
        for stage, condition in strata
        if (stage, condition) not in covered
    ]
    dtype = str(run.manifest.get("dtype"))
    told = (tuple(repeated), tuple(left), tuple(notes), tuple(found))
    return Reproduction(name, seed, dtype, len(valid), gone, *told)


def _prepared(
    run: Run, experiment: Experiment, composed: Composed, config_dir: Path | None, notes: list[str]
) -> Iterator[tuple[str, Prepared]]:
    """Every stage of the run that measured, with its model and plan, as what it made says."""
    known = stored_known(run.folder, [stage.name for stage in experiment.stages if stage.kind != MEASURE])
    sections = run.manifest.get("stages") or {}
    for stage in experiment.stages:
        if stage.kind != MEASURE or (
            experiment.staged and sections.get(stage.name, {}).get("status") != DONE
        ):
            continue
        missing = [name for name in stage.needs if name not in known.choices and name not in known.artefacts]
        if missing:
            notes.append(f"Stage {stage.name} is left out: the run's folder lacks {', '.join(missing)}.")
            continue
        spec = stage.spec if not stage.needs else check_again(composed, stage, known)
        assert spec is not None
        choice = _choice_of_items(stage)
        keep = None if choice is None else known.choices[choice].items
        yield stage.name, prepare(resolve(spec), config_dir, keep=keep)


def _choice_of_items(stage: Stage) -> str | None:
    body = stage.body
    if not isinstance(body, MeasureStageSpec) or body.items is None:
        return None
    return choice_named(body.items)


def _differences(
    run: Run, config: Mapping[str, Any], composed: Composed, prepared: Mapping[str, Prepared]
) -> list[Difference]:
    """Between the run's manifest and what a run of the same configuration would write now."""
    first = next(iter(prepared.values()))
    spoken = run.manifest.get("command") or []
    now: dict[str, Any] = describe_run(
        first.design,
        config,
        str(run.manifest.get("config_hash")),
        spoken,
        first.backend.info,
        first.tokenizer.fingerprint,
        run.manifest.get("allow_inert"),
    )
    sections = {name: _section(each) for name, each in prepared.items()}
    then = dict(run.manifest)
    if staged(run.manifest):
        now["stages"] = {name: {"kind": MEASURE} | section for name, section in sections.items()}
        then["stages"] = {name: run.manifest["stages"][name] for name in prepared}
    else:
        now |= next(iter(sections.values()))
    return [each for each in differences(then, now) if each.of != "configuration"]


def _section(prepared: Prepared) -> dict[str, Any]:
    gates = plan_gates(prepared.design, prepared.plan)
    return describe_stage(prepared.design, prepared.pairing, prepared.banks, gates)


def _why_none(name: str, found: Sequence[Difference]) -> str:
    told = [f"{each.key} was {each.first}, is {each.second}" for each in found if each.of in _INPUTS]
    banks = [each.key for each in found if each.of == "prompts"]
    told += [f"{', '.join(banks)} changed"] if banks else []
    why = "; ".join(told) if told else "its keys are made another way in this version"
    return f"no trial of {name} would be computed again as it was: {why}."


def _order(seed: int, *parts: object) -> str:
    text = "\x1f".join(map(str, (seed, *parts)))
    return hashlib.sha256(text.encode()).hexdigest()


def _sample(rows: pd.DataFrame, sample: int, seed: int, low: bool) -> pd.DataFrame:
    """So many trials, one of each condition in turn. In low precision those that were computed in batches of
    one shape stand together, so that few batches are run."""
    shape = rows["batch_length"].fillna(0).astype(int).astype(str) if low else pd.Series("", index=rows.index)
    draws = [_order(seed, key) for key in rows["key"]]
    shapes = [_order(seed, "shape", each) for each in shape]
    held = pd.DataFrame({"draw": draws, "shape": shapes, "stage": rows["stage"]})
    held["condition"] = rows["condition"].map(grid_name)
    held = held.sort_values(["shape", "draw"], kind="stable")
    held["turn"] = held.groupby(["stage", "condition"], sort=False).cumcount()
    which = [_order(seed, stage, name) for stage, name in zip(held["stage"], held["condition"], strict=True)]
    chosen = held.assign(which=which).sort_values(["turn", "which"], kind="stable").index[:sample]
    return rows.loc[rows.index.isin(chosen)]


def _of_stage(
    prepared: Prepared,
    rows: pd.DataFrame,
    kept: pd.DataFrame,
    manifest: Mapping[str, Any],
    found: Sequence[Difference],
    low: bool,
    note: Callable[[str], None],
) -> Iterator[Repeated]:
    planned = {trial.key: trial for trial in prepared.plan.trials}
    chosen = list(dict.fromkeys(rows["key"]))
    again: dict[str, Result] = {}
    executor = Executor(
        prepared.backend,
        prepared.tokenizer,
        prepared.design.measured,
        lambda results: again.update({result["key"]: result for result in results}),
        _Quiet(note),
        prepared.design.backend.max_rows,
    )
    parts = list(executor.batches([planned[key] for key in chosen]))
    if low:
        own = kept[kept["stage"] == prepared.plan.stage]
        parts = _as_they_were(executor, prepared.plan, own, rows)
    total = sum(len(batch.trials) for batch in parts)
    beside = f", {total} with the rest of their batches" if total > len(chosen) else ""
    verb = "is" if len(chosen) == 1 else "are"
    stage = prepared.plan.stage
    note(f"{plural(len(chosen), 'trial')} of {stage} {verb} run again{beside}")
    executor.run_batches(parts)
    elsewhere = any(each.of in _COMPUTER for each in found)
    orders = _receipt_orders(manifest, stage)
    for record in rows.to_dict(orient="records"):
        row = {str(name): value for name, value in record.items()}
        then = from_row(row, orders.get(row["condition"], []), prepared.design.columns)
        yield held_against(row, then, again[row["key"]], prepared.design, low, elsewhere, orders)


def _receipt_orders(manifest: Mapping[str, Any], stage: str) -> dict[str, list[str]]:
    section = (manifest.get("stages") or {}).get(stage, manifest)
    return {name: list(body.get("receipt_order") or ()) for name, body in section["conditions"].items()}


def _as_they_were(executor: Executor, plan: Plan, kept: pd.DataFrame, rows: pd.DataFrame) -> list[Batch]:
    """The batches that hold the chosen trials, as the run had them if it computed all of its own trials at
    once. A trial whose batch cannot have been that one is run alone."""
    own = kept[kept["origin"].isna()]
    sizes = dict(zip(own["key"], own["batch_rows"], strict=True))
    planned = {trial.key: trial for trial in plan.trials}
    todo = [trial for key, trial in planned.items() if key in sizes]
    wanted = set(rows["key"])
    parts: list[Batch] = []
    for batch in executor.batches(todo):
        mine = [trial for trial in batch.trials if trial.key in wanted]
        widest = max(sizes[trial.key] for trial in batch.trials)
        if mine and (not plan.decodes or widest == batch.together):
            parts.append(batch)
            wanted -= {trial.key for trial in mine}
    return parts + [Batch((planned[key],), 1) for key in rows["key"] if key in wanted]


@dataclass(frozen=True)
class _Quiet:
    """Who is told of progress, which is short."""

    tell: Callable[[str], None]

    def advanced(self, trials: int, tokens: int) -> None:
        """Nothing: the sample is small."""

    def failed(self, trial: Trial, error: str) -> None:
        self.tell(f"{trial.condition}, item {trial.item}: {error}")

    def note(self, sentence: str) -> None:
        self.tell(sentence)
