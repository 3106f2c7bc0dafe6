"""The door: a composed mapping becomes a `Spec`, or every mistake in it is told at once."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from runner.bodies import split_bodies
from runner.complaints import complaint, existing_path
from runner.compose import Composed, options
from runner.consistency import Inconsistency, bank_inconsistencies, inconsistencies
from runner.errors import ConfigurationError, Problem, listed
from runner.local_model import with_local_files
from runner.pairing import choose, read_banks
from runner.provenance import COMMAND_LINE
from runner.spec import Spec

Key = tuple[str | int, ...]
_ROUNDS = 50  # each takes at least one wrong value out

# Required values on which no other check depends: with one of these in place of a wrong one, the rest is
# checked as well.
_STAND_INS: Mapping[Key, object] = {
    ("experiment", "name"): "unnamed",
    ("experiment", "n"): 1,
    ("model", "dtype"): "float32",
    ("model", "width"): 1,
    ("model", "head_width"): 1,
    ("model", "context"): 1,
    ("backend", "name"): "torch",
    ("launch", "name"): "local",
}


def check(composed: Composed) -> Spec:
    """Check a configuration: keys, types and values, then everything that only fits or fails together, then
    the banks.

    Raises ConfigurationError with all mistakes, each with the file that set the key. Reads YAML, JSON and
    JSONL files only; no model library is loaded.
    """
    report = _Report(composed)
    report.problems += composed.problems
    mapping = copy.deepcopy(composed.mapping)
    _take_out(mapping, [tuple(problem.key.split(".")) for problem in composed.problems])
    if not any(composed.mapping.get(key) for key in ("conditions", "stages")) and not report.problems:
        known = options("experiment", composed.folders)
        message = f"expected an experiment; add +experiment=NAME, one of {listed(known)}"
        raise ConfigurationError([Problem(COMMAND_LINE, "experiment", message)])
    _prepare(mapping, report)
    spec, damaged = _validated(mapping, report)
    if spec is not None:
        for found in inconsistencies(spec, damaged):
            report.inconsistent(found)
        _banks(spec, composed, report)
    if report.problems:
        raise ConfigurationError(report.problems)
    assert spec is not None
    return spec


def resolved_mapping(composed: Composed) -> dict[str, Any]:
    """The configuration as it is recorded and hashed: composed, with what a local model's files declare."""
    mapping = copy.deepcopy(composed.mapping)
    if isinstance(mapping.get("model"), dict):
        mapping["model"], _ = with_local_files(mapping["model"])
    return mapping


class _Report:
    """Problems in the order in which they are found; what follows from an earlier one is left out."""

    def __init__(self, composed: Composed) -> None:
        self._composed = composed
        self.problems: list[Problem] = []

    def add(self, key: Key, message: str) -> None:
        written = tuple(str(part).partition("[")[0] if isinstance(part, str) else part for part in key)
        self.problems.append(Problem(self._composed.origin(written), ".".join(map(str, key)), message))

    def inconsistent(self, found: Inconsistency) -> None:
        key = ".".join(map(str, found.key))
        if not any(_same_line(key, problem.key) for problem in self.problems):
            self.add(found.key, found.message)


def _same_line(one: str, other: str) -> bool:
    return one == other or one.startswith(f"{other}.") or other.startswith(f"{one}.")


def _prepare(mapping: dict[str, Any], report: _Report) -> None:
    """Bring a mapping into the form of `Spec`: local model filled in, bodies split, grids expanded."""
    if isinstance(mapping.get("model"), dict):
        mapping["model"], mismatches = with_local_files(mapping["model"])
        for mismatch in mismatches:
            report.add(("model", mismatch.key), mismatch.message)
    stages = mapping.get("stages")
    if isinstance(stages, dict) and stages:
        if mapping.get("conditions"):
            report.add(("conditions",), "expected conditions inside the stages, or no stages at all")
        if len(stages) > 1:
            message = f"expected one stage of the kind measure, got {len(stages)}: {', '.join(stages)}"
            report.add(("stages",), message)
        for name, stage in stages.items():
            if isinstance(stage, dict) and isinstance(stage.get("conditions"), dict):
                stage["conditions"] = _split(stage["conditions"], ("stages", name, "conditions"), report)
    elif isinstance(mapping.get("conditions"), dict):
        mapping["conditions"] = _split(mapping["conditions"], ("conditions",), report)


def _split(conditions: Mapping[str, Any], prefix: Key, report: _Report) -> dict[str, Any]:
    bodies, faults = split_bodies(conditions)
    for fault in faults:
        report.add((*prefix, *fault.key), fault.message)
    return bodies


def _validated(mapping: dict[str, Any], report: _Report) -> tuple[Spec | None, frozenset[Key]]:
    """A Spec, if need be of what is left when wrong values are taken out, so that the rest is checked as
    well."""
    damaged: set[Key] = set()
    for _ in range(_ROUNDS):
        try:
            return Spec.model_validate(mapping), frozenset(damaged)
        except ValidationError as error:
            details = error.errors(include_url=False)
        by_path: dict[Key, list[Any]] = {}
        for detail in details:
            by_path.setdefault(existing_path(mapping, detail), []).append(detail)
        for path, found in by_path.items():
            written = tuple(part for index, part in enumerate(path) if not _is_ours(path, index))
            key = ".".join(map(str, written))
            if not any(key == problem.key for problem in report.problems):
                report.add(written, complaint(path, found, mapping))
            damaged.update(_condition_part(path))
        removable = []
        for path, found in by_path.items():
            if len(path) > 3 and path[-1] == "site" and path[-3] == "writes":
                _at(mapping, path[:-1])["site"] = "resid_pre"  # so that the write's other fields are checked
            elif path in _STAND_INS:
                mapping[str(path[0])][path[1]] = _STAND_INS[path]
            else:
                removable.append(path[:-1] if all(detail["type"] == "missing" for detail in found) else path)
        if not all(_optional(path) for path in removable):
            return None, frozenset(damaged)
        _take_out(mapping, removable)
    return None, frozenset(damaged)


def _is_ours(path: Key, index: int) -> bool:
    """Whether this part of a path is the `writes` that bodies are split into, which no YAML file has."""
    return path[index] == "writes" and index >= 2 and path[index - 2] == "conditions"


def _condition_part(path: Key) -> list[Key]:
    """The condition, or the write of a condition, that a path leads into."""
    if "conditions" not in path[:-1]:
        return []
    rest = path[path.index("conditions") + 1 :]
    return [(rest[0], rest[2]) if len(rest) > 2 and rest[1] == "writes" else rest[:1]]


def _optional(path: Key) -> bool:
    """Whether a Spec can be had without the value at this path."""
    if not path or path in (
        ("experiment",),
        ("model",),
        ("backend",),
        ("prompts",),
        ("readouts",),
        ("launch",),
    ):
        return False
    if path[0] in ("conditions", "stages", "contrasts", "sampling", "readout"):
        return True
    return path[0] not in ("experiment", "model", "backend", "prompts") or len(path) > 1


def _at(mapping: dict[str, Any], path: Key) -> Any:
    level: Any = mapping
    for part in path:
        level = level[part]
    return level


def _take_out(mapping: dict[str, Any], paths: Sequence[Key]) -> None:
    for path in paths:
        level: Any = mapping
        parents: list[tuple[Any, Any]] = []
        for part in path:
            if isinstance(level, dict) and part in level:
                parents.append((level, part))
                level = level[part]
            else:
                break  # a list, whose places mean something, goes as a whole
        if parents and (len(parents) == len(path) or isinstance(level, list)):
            holder, part = parents[-1]
            del holder[part]


def _banks(spec: Spec, composed: Composed, report: _Report) -> None:
    """Read the banks and report what is wrong with them, or what is asked of them that they do not hold."""
    try:
        banks = read_banks(spec.prompts, composed.folders)
        chosen = choose(spec.prompts, banks)
    except ConfigurationError as error:
        report.problems += error.problems
        return
    for found in bank_inconsistencies(spec, chosen):
        report.inconsistent(found)
