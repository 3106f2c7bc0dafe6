"""The jobs of a sweep: what `-m` on the command line and `sweep:` in an experiment multiply out to."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException

from runner.config.compose import Composed, compose, expand_sweep
from runner.config.errors import ConfigurationError, Problem, as_yaml, listed, suggestion
from runner.config.folders import options

KEY = "sweep"
EXPERIMENT = "experiment"
_OF_EXPERIMENT = ("name", "question")  # what an experiment that sweeps over experiments says of itself
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")  # a folder
_MOST_SHOWN = 12
# Keys of which a sweep makes no sense: they say where results go and how the command is carried out.
_NOT_SWEPT = (
    KEY,
    "findings",
    "figures",
    "analyses",
    "output_root",
    "resume",
    "dry_run",
    "quiet",
    "report",
    "profile",
    "launch",
)


@dataclass(frozen=True)
class PlannedJob:
    """One run of a sweep before it runs. overrides: its command line; swept: key -> value of what tells it
    from the others, in words; composed: its configuration, without `sweep`, or None with the error of it."""

    overrides: tuple[str, ...]
    swept: Mapping[str, str] = field(default_factory=dict)
    composed: Composed | None = None
    error: ConfigurationError | None = None


@dataclass(frozen=True)
class Sweep:
    """The jobs of a command line. declared: whether anything is swept, be it over one value; folder: of the
    experiment that sweeps, where the combined table goes (None where no job can be composed)."""

    jobs: tuple[PlannedJob, ...]
    declared: bool
    folder: Path | None = None


def plan_jobs(words: Sequence[str], multirun: bool, config_dir: Path | None) -> Sweep:
    """Compose every job that a command line asks for.

    words: overrides; with `multirun` the product of those that have several values. An experiment's own
    `sweep: {override: [values]}` is multiplied out in each; a key that the words set is not swept. With
    `sweep: {experiment: [a, b]}` these take the place of the experiment that says so.

    Raises ConfigurationError for what is wrong with the words or a `sweep`; what is wrong with a job of
    several is kept with it, so that the others run.
    """
    lines = expand_sweep(words) if multirun else [list(words)]
    jobs: list[PlannedJob] = []
    folder: Path | None = None
    declared = multirun
    for line in lines:
        apart = (word for word in line if any(word not in other for other in lines))
        swept = {key: value for key, _, value in (word.lstrip("+").partition("=") for word in apart)}
        try:
            composed = compose(line, config_dir)
        except ConfigurationError as error:
            if not multirun:
                raise
            jobs.append(PlannedJob(tuple(line), swept, error=error))
            continue
        declared = declared or bool(composed.mapping.get(KEY))
        folder = folder or _folder(composed)
        jobs += _expanded(line, composed, swept, config_dir)
    return Sweep(tuple(jobs), declared, folder)


def swept_experiments(composed: Composed) -> tuple[str, ...]:
    """The experiments that a configuration sweeps over, instead of having conditions of its own."""
    sweep = composed.mapping.get(KEY)
    given = sweep.get(EXPERIMENT) if isinstance(sweep, Mapping) else None
    return tuple(map(str, given)) if isinstance(given, list) else ()


def show_sweep(composed: Composed, config_dir: Path | None) -> list[str]:
    """The jobs of an experiment that sweeps, in lines; none where it does not. Raises
    ConfigurationError."""
    if not composed.mapping.get(KEY):
        return []
    sweep = plan_jobs(composed.overrides, False, config_dir)
    count = len(sweep.jobs)
    lines = ["", f"Swept, in {count} run{'s' if count > 1 else ''} one after the other:"]
    lines += [
        "  " + ", ".join(f"{key}={value}" for key, value in job.swept.items())
        for job in sweep.jobs[:_MOST_SHOWN]
    ]
    if count > _MOST_SHOWN:
        lines.append(f"  and {count - _MOST_SHOWN} more")
    return lines


def _expanded(
    words: Sequence[str],
    composed: Composed,
    swept: Mapping[str, str],
    config_dir: Path | None,
    within: str | None = None,
) -> list[PlannedJob]:
    """The jobs of one composed configuration. within: the experiment that sweeps over this one."""
    axes = _axes(composed)
    if EXPERIMENT in axes:
        problems = list(_not_applied(composed))
        if within is not None:
            message = f"expected no further sweep over experiments inside the one of {within}"
            problems = [Problem(composed.origin((KEY, EXPERIMENT)), f"{KEY}.{EXPERIMENT}", message)]
        if problems:
            raise ConfigurationError([*composed.misread, *problems])
    typed = _typed(composed, axes)
    told = {**swept, **{axis: value for axis, value in typed.items() if axis not in swept}}
    free = {axis: values for axis, values in axes.items() if axis not in typed}
    if not free:
        kept = {key: value for key, value in composed.mapping.items() if key != KEY}
        return [PlannedJob(tuple(words), told, replace(composed, mapping=kept))]
    jobs: list[PlannedJob] = []
    for values in itertools.product(*free.values()):
        combination = dict(zip(free, values, strict=True))
        line = _with(words, combination, composed)
        now = {**told, **{axis: _shown(value) for axis, value in combination.items()}}
        inside = within if EXPERIMENT not in combination else (_experiment(composed) or EXPERIMENT)
        try:
            jobs += _expanded(line, compose(line, config_dir), now, config_dir, inside)
        except ConfigurationError as error:
            jobs.append(PlannedJob(tuple(line), now, error=error))
    return jobs


def _axes(composed: Composed) -> dict[str, list[Any]]:
    """`sweep`, checked. Raises ConfigurationError with everything that is wrong with it."""
    given = composed.mapping.get(KEY)
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        message = (
            f"expected a mapping {{override: [values]}}, such as {{model: [organism]}}, got {as_yaml(given)}"
        )
        raise ConfigurationError([Problem(composed.origin((KEY,)), KEY, message)])
    problems = []
    for axis, values in given.items():
        problems += [
            Problem(composed.origin((KEY, axis)), f"{KEY}.{axis}", message)
            for message in _faults(str(axis), values, composed)
        ]
    if problems:
        raise ConfigurationError([*composed.problems, *composed.misread, *problems])
    return {str(axis): list(values) for axis, values in given.items()}


def _faults(axis: str, values: object, composed: Composed) -> Iterator[str]:
    root = axis.partition(".")[0]
    known = [key for key in composed.mapping if key not in _NOT_SWEPT]
    if root in _NOT_SWEPT:
        yield f"'{root}' cannot be swept; expected an override of the experiment, such as model"
    elif root not in known:
        yield f"unknown key '{root}'{suggestion(root, known)}; expected one such as model or sampling.seed"
    if isinstance(values, Mapping):
        inner = next(iter(values), "KEY")
        yield f"expected a list of values; a key further in is written {axis}.{inner}: [...]"
        return
    if not isinstance(values, list) or not values:
        yield f"expected a list of values, got {as_yaml(values)}"
        return
    wrong = [value for value in values if not isinstance(value, str | int | float)]
    if wrong:
        yield f"expected plain values, got {listed(as_yaml(value) for value in wrong)}"
    elif len({str(value) for value in values}) < len(values):
        yield f"expected values that differ, got {as_yaml(values)}"
    if any((folder / axis).is_dir() for folder in composed.folders):
        files = options(axis, composed.folders)
        unknown = [value for value in values if not isinstance(value, str) or value not in files]
        if unknown:
            told = listed(f"{as_yaml(value)}{suggestion(str(value), files)}" for value in unknown)
            yield f"expected names of {listed(files)}; got {told}"


def _not_applied(composed: Composed) -> Iterator[Problem]:
    """Keys beside a sweep over experiments, which would reach none of them."""
    for file in composed.origins.files:
        if not any(file.path.is_relative_to(folder / EXPERIMENT) for folder in composed.folders):
            continue
        content = file.content if isinstance(file.content, dict) else {}
        own = content.get(EXPERIMENT)
        keys = [key for key in content if key not in ("defaults", KEY, EXPERIMENT)]
        keys += [
            f"{EXPERIMENT}.{key}"
            for key in (own if isinstance(own, dict) else ())
            if key not in _OF_EXPERIMENT
        ]
        for key in keys:
            message = (
                f"a sweep over experiments has {KEY}, experiment.name and experiment.question; this key "
                f"would reach none of them. Expected it in the experiments, or as an override under {KEY}"
            )
            yield Problem(str(file.path), key, message)


def _typed(composed: Composed, axes: Mapping[str, object]) -> dict[str, str]:
    """Axes that the words set, with the value as it stands there; the experiment that sweeps over others is
    not one. A model's path takes the place of any model."""
    found: dict[str, str] = {}
    for override in OverridesParser.create().parse_overrides(list(composed.overrides)):
        if override.type == OverrideType.DEL or override.package is not None:
            continue
        for axis in axes:
            if axis != EXPERIMENT and _sets(override, axis):
                found[axis] = str(override.input_line).partition("=")[2]
    return found


def _sets(override: Override, axis: str) -> bool:
    key = override.key_or_group
    if key == axis or (axis, key) == ("model", "model.path"):
        return True
    if not axis.startswith(f"{key}."):
        return False
    value: object = override.value()
    for part in axis.removeprefix(f"{key}.").split("."):
        if not isinstance(value, Mapping) or part not in value:
            return False
        value = value[part]
    return True


def _with(words: Sequence[str], combination: Mapping[str, Any], composed: Composed) -> list[str]:
    """The words of one job: the values of its combination in them."""
    line = list(words)
    for axis, value in combination.items():
        if axis == EXPERIMENT:
            line = [
                f"+{axis}={value}",
                *(word for word in line if not word.lstrip("+").startswith(f"{axis}=")),
            ]
        else:  # of other experiments it is not known whether they have the key
            plus = "" if EXPERIMENT not in combination and _has(composed.mapping, axis) else "++"
            group = any((folder / axis).is_dir() for folder in composed.folders)
            line.append(f"{'' if group else plus}{axis}={_as_word(axis, value)}")
    return line


def _as_word(axis: str, value: Any) -> str:
    """A value as an override has it, in quotes where it would be read as something else."""
    if not isinstance(value, str):
        return _shown(value)
    escaped = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), value)
    return value if _reads_as(f"{axis}={value}", value) else f"'{escaped}'"


def _reads_as(word: str, value: str) -> bool:
    try:
        (override,) = OverridesParser.create().parse_overrides([word])
    except HydraException:
        return False
    return not override.is_sweep_override() and override.value() == value


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _has(mapping: Mapping[str, Any], path: str) -> bool:
    level: Any = mapping
    for part in path.split("."):
        if not isinstance(level, Mapping) or part not in level:
            return False
        level = level[part]
    return True


def _experiment(composed: Composed) -> str | None:
    """The name that an experiment gives itself, else that of its file."""
    own = composed.mapping.get(EXPERIMENT)
    name = own.get("name") if isinstance(own, Mapping) else None
    if not isinstance(name, str):
        chosen = (word.lstrip("+").partition("=") for word in composed.overrides)
        name = next((value for key, _, value in chosen if key == EXPERIMENT), None)
    return name


def _folder(composed: Composed) -> Path | None:
    root, name = composed.mapping.get("output_root"), _experiment(composed)
    if not isinstance(root, str) or name is None or not _NAME.fullmatch(name):
        return None
    return Path(os.path.expanduser(root)) / name
