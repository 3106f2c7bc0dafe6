"""The door: a composed mapping becomes an `Experiment`, or every mistake in it is told at once."""

from __future__ import annotations

import copy
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from runner.config.complaints import complaint, existing_path
from runner.config.compose import Composed
from runner.config.errors import ConfigurationError, Problem, as_yaml, listed, suggestion
from runner.config.folders import options
from runner.config.local_model import with_local_files
from runner.config.one_stage import check_stage, take_out
from runner.config.provenance import COMMAND_LINE
from runner.config.spec import ExperimentSpec, Spec
from runner.config.stages.analysis_checks import analysis_faults
from runner.config.stages.analysis_spec import ANALYSES, AnalysisSpec
from runner.config.stages.checks import stage_faults
from runner.config.stages.choice_words import fill
from runner.config.stages.finding_checks import finding_faults
from runner.config.stages.forms import OUTLINE, flat_mapping, places
from runner.config.stages.known import MEASURE, NOTHING, Known
from runner.config.stages.spec import (
    AnyStage,
    ExtractStageSpec,
    FigureSpec,
    FindingSpec,
    MeasureStageSpec,
    SelectStageSpec,
)
from runner.config.stages.stand_ins import chosen_stand_in, extracted_stand_in, keys_naming, names_read

Key = tuple[str | int, ...]
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_FIRST_LINE = "# @package _global_"
_KINDS: Mapping[str, type[MeasureStageSpec] | type[ExtractStageSpec] | type[SelectStageSpec]] = {
    "measure": MeasureStageSpec,
    "extract": ExtractStageSpec,
    "select": SelectStageSpec,
}
_OTHERS: Mapping[str, type[FindingSpec] | type[FigureSpec] | Mapping[str, type[AnalysisSpec]]] = {
    "findings": FindingSpec,
    "figures": FigureSpec,
    "analyses": ANALYSES,
}
_Others = tuple[Mapping[str, FindingSpec], Mapping[str, FigureSpec], Mapping[str, AnalysisSpec]]


@dataclass(frozen=True)
class Stage:
    """One stage, checked. body: what its YAML says, None for the flat form; spec: its flat specification
    (None of a select stage). needs: the earlier stages that it rests on. in_sample: why it evaluates on what
    it was chosen or extracted on, None where it does not."""

    name: str
    kind: str
    body: MeasureStageSpec | ExtractStageSpec | SelectStageSpec | None
    spec: Spec | None
    needs: tuple[str, ...] = ()
    in_sample: str | None = None


@dataclass(frozen=True)
class Experiment:
    """A whole experiment, checked. staged: whether its YAML has stages; known: what was known of choices and
    artefacts, or what stands in for them."""

    stages: tuple[Stage, ...]
    staged: bool = False
    findings: Mapping[str, FindingSpec] = field(default_factory=dict)
    figures: Mapping[str, FigureSpec] = field(default_factory=dict)
    analyses: Mapping[str, AnalysisSpec] = field(default_factory=dict)
    known: Known = NOTHING

    @property
    def specs(self) -> tuple[Spec, ...]:
        """The specifications of the stages that measure or extract, in their order."""
        return tuple(stage.spec for stage in self.stages if stage.spec is not None)

    @property
    def spec(self) -> Spec:
        """That of the first stage that measures, whose keys for a whole run are those of every stage."""
        measured = [stage.spec for stage in self.stages if stage.kind == MEASURE]
        found = measured[0] if measured else self.specs[0]
        assert found is not None
        return found

    def stage(self, name: str) -> Stage:
        """The stage of that name. Raises KeyError."""
        return {stage.name: stage for stage in self.stages}[name]


def check(composed: Composed) -> Spec:
    """The specification of the (first) stage that measures. Raises ConfigurationError as
    `check_experiment` does."""
    return check_experiment(composed).spec


def check_experiment(composed: Composed) -> Experiment:
    """Check a configuration: the outline of its stages, then each stage with stand-ins for what the earlier
    ones will give.

    Raises ConfigurationError with all mistakes, each with the file that set the key. Reads YAML, JSON and
    JSONL files only; no model library is loaded.
    """
    misplaced = _misplaced(composed)
    if misplaced:
        raise ConfigurationError(misplaced)
    told = [*composed.problems, *composed.misread]
    given = any(composed.mapping.get(key) for key in ("conditions", "stages"))
    if not given and not told and _named(composed):
        message = "expected conditions, or stages of the form NAME: {kind: ...}; this experiment has neither"
        raise ConfigurationError([Problem(composed.origin(("experiment", "name")), "stages", message)])
    if not given and not told:
        known = options("experiment", composed.folders)
        message = f"expected an experiment; add +experiment=NAME, one of {listed(known)}"
        raise ConfigurationError([Problem(COMMAND_LINE, "experiment", message)])
    mapping = copy.deepcopy(composed.mapping)
    take_out(mapping, [tuple(problem.key.split(".")) for problem in composed.problems])
    stages = mapping.get("stages")
    if stages is not None and not isinstance(stages, dict):
        told.append(_problem(composed, ("stages",), f"expected a mapping of stages, got {as_yaml(stages)}"))
        stages = {}
    if not stages:
        flat = {key: value for key, value in mapping.items() if key not in ("stages", "sweep")}
        others = _others(flat, composed, told)
        spec, problems = check_stage(flat, composed)
        told += problems
        flat_stages = (Stage(MEASURE, MEASURE, None, spec),)
        told += _of_others(others, flat_stages, composed) if spec is not None else []
        if told:
            raise ConfigurationError(list(dict.fromkeys(told)))
        assert spec is not None
        return Experiment(flat_stages, False, *others)
    if mapping.get("conditions"):
        message = "expected conditions inside the stages, or no stages at all"
        told.append(_problem(composed, ("conditions",), message))
    found, known_now, unsound = _stages(stages, mapping, composed, told)
    others = _others(mapping, composed, told)
    told += _of_others(others, found, composed, unsound)
    if told:
        raise ConfigurationError(list(dict.fromkeys(told)))
    return Experiment(tuple(found), True, *others, known_now)


def _named(composed: Composed) -> bool:
    """Whether an experiment is given, whatever it says."""
    experiment = composed.mapping.get("experiment")
    return isinstance(experiment, dict) and "name" in experiment


def _of_others(
    others: _Others, stages: Sequence[Stage], composed: Composed, unsound: Collection[str] = ()
) -> list[Problem]:
    """What is wrong with the findings, figures and analyses about stages of which nothing is."""
    findings = {name: one for name, one in others[0].items() if _about(one).isdisjoint(unsound)}
    figures = {name: one for name, one in others[1].items() if one.stage not in unsound}
    analyses = {name: one for name, one in others[2].items() if one.stage not in unsound}
    faults = (*finding_faults(findings, figures, stages), *analysis_faults(analyses, stages))
    return [_problem(composed, key, message) for key, message in faults]


def _about(finding: FindingSpec) -> set[str | None]:
    return {finding.stage, finding.choice, finding.artefact}


def check_again(composed: Composed, stage: Stage, known: Known) -> Spec:
    """The specification of a stage once everything that it rests on is known. Raises ConfigurationError where
    what was chosen or extracted does not fit."""
    body = stage.body
    if body is None:
        assert stage.spec is not None
        return stage.spec
    assert not isinstance(body, SelectStageSpec)
    told: list[Problem] = []
    spec = _one(stage.name, body, copy.deepcopy(composed.mapping), composed, known, told)
    if told:
        raise ConfigurationError(list(dict.fromkeys(told)))
    assert spec is not None
    return spec


def _stages(
    stages: Mapping[str, Any], mapping: Mapping[str, Any], composed: Composed, told: list[Problem]
) -> tuple[list[Stage], Known, set[str]]:
    """Every stage in its order, each checked with stand-ins for what the earlier ones give; and the names of
    those of which something is wrong."""
    found: list[Stage] = []
    known = NOTHING
    unsound: set[str] = set()  # what later stages say of these is left out, as it follows from their mistakes
    for name, given in stages.items():
        body = _body(name, given, composed, told)
        if body is None:
            unsound.add(name)
            continue
        if isinstance(body, SelectStageSpec):
            spec = None
            known = known.and_choice(chosen_stand_in(name, body, found))
        else:
            spec = _one(name, body, mapping, composed, known, told, unsound)
            if isinstance(body, ExtractStageSpec) and spec is not None:
                known = known.and_artefact(extracted_stand_in(name, body, spec, known))
        stage = Stage(name, body.kind, body, spec, names_read(body))
        faults, in_sample = stage_faults(stage, found, set(stages), composed.reader, unsound)
        told += [_problem(composed, ("stages", name, *key), message) for key, message in faults]
        found.append(Stage(name, body.kind, body, spec, stage.needs, in_sample))
        gives = not isinstance(body, MeasureStageSpec)
        if any(_within(problem.key, name) for problem in told) or (gives and unsound & {*stage.needs}):
            unsound.add(name)
    return found, known, unsound


def _within(key: str, stage: str) -> bool:
    return f"{key}.".startswith(f"stages.{stage}.")


def _one(
    name: str,
    body: MeasureStageSpec | ExtractStageSpec,
    mapping: Mapping[str, Any],
    composed: Composed,
    known: Known,
    told: list[Problem],
    unsound: Collection[str] = (),
) -> Spec | None:
    flat, place = flat_mapping(mapping, body), places(name, body)
    wrong = keys_naming(flat, unsound)
    take_out(flat, wrong)
    take_out(
        flat, [key[:3] for key in wrong if key[2:3] == ("grid",) and not flat["conditions"][key[1]]["grid"]]
    )
    filled = fill(flat, known)
    told += [_problem(composed, place(key), message) for key, message in filled.faults]
    wrong += [key for key, _ in filled.faults]
    take_out(filled.body, [key for key, _ in filled.faults])
    spec, problems = check_stage(filled.body, composed, known, place, name=name, wrong=wrong)
    told += problems
    return spec


def _body(name: str, given: Any, composed: Composed, told: list[Problem]) -> AnyStage | None:
    key: Key = ("stages", name)
    told += _misnamed(key, composed)
    if not isinstance(given, dict):
        told.append(_problem(composed, key, f"expected a stage, {{kind: ...}}, got {as_yaml(given)}"))
        return None
    kind = _kind(given, _KINDS, key, composed, told)
    body: AnyStage | None = None if kind is None else _read(kind, given, key, composed, told)
    return body


def _kind(
    given: Mapping[str, Any], kinds: Mapping[str, Any], key: Key, composed: Composed, told: list[Problem]
) -> Any:
    """The model of the kind that a mapping names; None, and what is wrong told, where it names none."""
    kind = given.get("kind")
    if isinstance(kind, str) and kind in kinds:
        return kinds[kind]
    what = "missing: expected" if kind is None else "expected"
    got = "" if kind is None else f", got {as_yaml(kind)}{suggestion(str(kind), kinds)}"
    told.append(_problem(composed, (*key, "kind"), f"{what} one of {listed(kinds)}{got}"))
    return None


def _misnamed(key: Key, composed: Composed) -> list[Problem]:
    """Names are words in other places (`choice:NAME`, overrides), and those of files."""
    if _NAME.fullmatch(str(key[-1])):
        return []
    message = f"expected a name of letters, digits and _ that begins with no digit, got '{key[-1]}'"
    return [_problem(composed, key, message)]


def _others(mapping: dict[str, Any], composed: Composed, told: list[Problem]) -> _Others:
    read: dict[str, dict[str, Any]] = {}
    for name, model in _OTHERS.items():
        given = mapping.pop(name, None)
        read[name] = {}
        if given is not None and not isinstance(given, dict):
            told.append(_problem(composed, (name,), f"expected a mapping by name, got {as_yaml(given)}"))
        for key, body in given.items() if isinstance(given, dict) else ():
            told += _misnamed((name, key), composed)
            if body is None and name == "analyses":
                continue  # takes out what a file that this one builds on declares
            if not isinstance(body, dict):
                told.append(_problem(composed, (name, key), f"expected a mapping, got {as_yaml(body)}"))
                continue
            found = _kind(body, model, (name, key), composed, told) if isinstance(model, Mapping) else model
            one = None if found is None else _read(found, body, (name, key), composed, told)
            if one is not None:
                read[name][key] = one
    return read["findings"], read["figures"], read["analyses"]


def _read(model: Any, given: dict[str, Any], key: Key, composed: Composed, told: list[Problem]) -> Any:
    """A mapping as a model; None, and what is wrong told, where it is none."""
    try:
        return model.model_validate(given)
    except ValidationError as error:
        by_path: dict[Key, list[Any]] = {}
        for detail in error.errors(include_url=False):
            by_path.setdefault(existing_path(given, detail), []).append(detail)
        for path, found in by_path.items():
            told.append(_problem(composed, (*key, *path), complaint(path, found, given, model)))
    return None


def _problem(composed: Composed, key: Key, message: str) -> Problem:
    written = tuple(str(part).partition("[")[0] if isinstance(part, str) else part for part in key)
    return Problem(composed.origin(written), ".".join(map(str, key)), message)


def _misplaced(composed: Composed) -> list[Problem]:
    """Experiment files whose keys do not reach the root, where everything is looked for."""
    chosen = composed.mapping.get("experiment")
    keys = set(chosen) - set(ExperimentSpec.model_fields) if isinstance(chosen, dict) else set()
    roots = {*Spec.model_fields, *OUTLINE}
    if any(composed.mapping.get(key) for key in ("conditions", "stages")) and not keys & roots:
        return []
    problems = []
    for file in composed.origins.files:
        if not any(file.path.is_relative_to(folder / "experiment") for folder in composed.folders):
            continue
        if not isinstance(file.content, dict):
            message = "expected an experiment (a mapping of keys), got " + (
                "an empty file" if file.content is None else repr(file.content)
            )
            problems.append(Problem(str(file.path), "", message))
        elif file.package[:1] == ("experiment",) and set(file.content) & roots:
            message = (
                f"expected '{_FIRST_LINE}' as the first line; without it all keys of the file come under "
                f"{'.'.join(file.package)}, where nothing reads them"
            )
            problems.append(Problem(f"{file.path}:1", "", message))
    return problems


def resolved_mapping(composed: Composed) -> dict[str, Any]:
    """The configuration as it is recorded and hashed: composed, with what a local model's files declare."""
    mapping = copy.deepcopy(composed.mapping)
    if isinstance(mapping.get("model"), dict):
        mapping["model"] = with_local_files(mapping["model"]).mapping
    return mapping
