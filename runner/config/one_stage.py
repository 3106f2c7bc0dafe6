"""The door for one stage: its mapping, in the flat form, becomes a `Spec`, or every mistake in it is told."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from runner.config.bodies import Grids, expand_contrasts, expand_names, split_bodies
from runner.config.complaints import complaint, existing_path
from runner.config.compose import Composed
from runner.config.consistency import bank_inconsistencies, inconsistencies
from runner.config.errors import ConfigurationError, Problem
from runner.config.inconsistency import Inconsistency
from runner.config.local_model import with_local_files
from runner.config.provenance import COMMAND_LINE
from runner.config.spec import RESERVED, Spec
from runner.config.stages.known import MEASURE, NOTHING, Known
from runner.prompts.pairing import available

Key = tuple[str | int, ...]
ALL = "all"  # of n: every item that the banks hold
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


def check_stage(
    mapping: dict[str, Any],
    composed: Composed,
    known: Known = NOTHING,
    place: Callable[[Key], Key] = lambda key: key,
    *,
    name: str = MEASURE,
    wrong: Collection[Key] = (),
) -> tuple[Spec | None, list[Problem]]:
    """Check one stage: keys, types and values, then everything that only fits or fails together, then the
    banks. Reads YAML, JSON and JSONL files only; no model library is loaded.

    mapping: the stage in the flat form of an experiment (changed on the way). known: what earlier stages
    give. place: from a key of the mapping to where it stands in the configuration. wrong: keys whose values
    were taken out because of mistakes that are told elsewhere; nothing is said of what follows. Returns the
    specification, None where it cannot be had, and all mistakes.
    """
    report = _Report(composed, place)
    gone: list[Key] = [tuple(problem.key.split(".")) for problem in composed.problems]
    gone += [one for key in wrong for one in (key, *_of_axis(key))]
    report.known_wrong(gone)
    _prepare(mapping, report)
    gone = [one for key in gone for one in report.expanded(key)]
    report.known_wrong(gone)
    damaged = {part for key in gone for part in _written_part(key)}
    every = _takes_all(mapping)
    spec = _validated(mapping, report, damaged)
    if spec is not None:
        spec = spec.of_stage(name, known)
        if every:
            spec = _with_all(spec, composed, report)
        for found in inconsistencies(spec, frozenset(damaged)):
            report.inconsistent(found)
        _banks(spec, composed, report)
    return spec, report.told_once()


class _Report:
    """Problems in the order in which they are found; what follows from an earlier one is left out."""

    def __init__(self, composed: Composed, place: Callable[[Key], Key]) -> None:
        self._composed = composed
        self._place = place
        self.problems: list[Problem] = [*composed.problems, *composed.misread]
        self._keys = {problem.key for problem in self.problems}  # as the configuration calls them
        self.read_from: Mapping[str, tuple[Path, str]] = {}  # keys of the model that another file gave
        self.places: dict[Key, Key] = {}  # what grids and lists of sites became -> as it was written
        self.grids: Grids = {}
        self.cells: dict[str, list[str]] = {}  # grid -> its cells, by their keys

    def known_wrong(self, keys: Sequence[Key]) -> None:
        """Take note of keys of which something is said elsewhere."""
        self._keys |= {".".join(map(str, key)) for key in keys}

    def expanded(self, key: Key) -> list[Key]:
        """A key as it is written, with those of the cells and writes that stand for it once grids and lists
        of sites are expanded."""
        if len(key) < 2 or key[0] != "conditions":
            return [key]
        names = [key[1], *(cell.name for cell in self.grids.get(str(key[1]), ()))]
        found: list[Key] = [("conditions", name, *key[2:]) for name in names]
        for made, written in self.places.items():
            if made[:1] == key[:1] and made[1] in names and written[2:] == key[2:3]:
                found.append((*made, *key[3:]))
        return found

    def as_written(self, key: Key) -> str:
        """The key in the file that a key of an expanded condition stands for."""
        head = self.places.get(key[:3], key[:3])
        return ".".join([*(str(part).partition("[")[0] for part in head), *map(str, key[3:])])

    def add(self, key: Key, message: str) -> None:
        key = (*self.places.get(key[:3], key[:3]), *key[3:])
        self._keys.add(".".join(map(str, key)))
        placed = self._place(key)
        if len(key) == 2 and key[0] == "model" and key[1] in self.read_from:
            file, name = self.read_from[str(key[1])]
            self.problems.append(Problem(str(file), name, message.partition("; YAML reads")[0]))
            return
        written = tuple(str(part).partition("[")[0] if isinstance(part, str) else part for part in placed)
        self.problems.append(Problem(self._composed.origin(written), ".".join(map(str, placed)), message))

    def told_once(self) -> list[Problem]:
        """The problems, one that all cells of a grid have by the grid's own key alone."""
        told, renamed = set(self.problems), dict[Problem, Problem]()
        for grid, cells in self.cells.items():
            for problem in self.problems:
                if not problem.key.startswith(f"{cells[0]}."):
                    continue
                rest = problem.key.removeprefix(cells[0])
                same = [replace(problem, key=f"{cell}{rest}") for cell in cells]
                if told.issuperset(same):
                    told.difference_update(same)
                    told.add(problem)
                    renamed[problem] = replace(problem, key=f"{grid}{rest}")
        return [renamed.get(problem, problem) for problem in self.problems if problem in told]

    def inconsistent(self, found: Inconsistency) -> None:
        rests_on = [".".join(map(str, key)) for key in (found.key, *found.rests_on)]
        if not any(_same_line(key, told) for key in rests_on for told in self._keys):
            self.add(found.key, found.message)

    def typed(self, key: Key) -> bool:
        """Whether the command line has set the key."""
        return self._composed.origin(self._place(key)) == COMMAND_LINE

    def placed(self, *key: str) -> str:
        """Where a key stands in the configuration, as a word."""
        return ".".join(map(str, self._place(key)))

    def told(self, key: str) -> bool:
        """Whether something has been said of the key or of what is below it."""
        return any(told == key or told.startswith(f"{key}.") for told in self._keys)


def _same_line(one: str, other: str) -> bool:
    return one == other or one.startswith(f"{other}.") or other.startswith(f"{one}.")


def _prepare(mapping: dict[str, Any], report: _Report) -> None:
    """Bring a mapping into the form of `Spec`: local model filled in, bodies split, grids expanded."""
    if isinstance(mapping.get("model"), dict):
        local = with_local_files(mapping["model"])
        mapping["model"], report.read_from = local.mapping, local.read_from
        for mismatch in local.mismatches:
            report.add(("model", mismatch.key), mismatch.message)
    if isinstance(mapping.get("conditions"), dict):
        _split(mapping, report)


def _split(mapping: dict[str, Any], report: _Report) -> None:
    """Split the bodies of the conditions, and expand their grids there and in the contrasts."""

    def given(name: str, axis: str) -> bool:
        key = ("conditions", name)
        return report.typed((*key, *axis.split("."))) and not report.typed((*key, "grid"))

    model = mapping.get("model")
    bodies = split_bodies(
        mapping["conditions"],
        given,
        model if isinstance(model, dict) else None,
        mapping.get("reference_depth"),
    )
    for fault in bodies.faults:
        report.add(("conditions", *fault.key), fault.message)
    mapping["conditions"] = bodies.conditions
    for (name, write), written in bodies.written.items():
        report.places["conditions", name, write] = ("conditions", name, written)
    report.grids = bodies.grids
    for name, cells in bodies.grids.items():
        report.cells[report.placed("conditions", name)] = [
            report.placed("conditions", cell.name) for cell in cells
        ]
    if isinstance(mapping.get("contrasts"), dict):
        _expand(mapping["contrasts"], bodies.grids, report)


def _expand(contrasts: dict[str, Any], grids: Grids, report: _Report) -> None:
    for kind in ("extra", "same"):
        if isinstance(contrasts.get(kind), list):
            expanded = expand_contrasts(contrasts[kind], grids)
            contrasts[kind] = [entry for _, entry in expanded]
            for now, (written, _) in enumerate(expanded):
                report.places["contrasts", kind, now] = ("contrasts", kind, written)
    if isinstance(contrasts.get("trends"), list):
        contrasts["trends"] = [
            expand_names(names if isinstance(names, list) else [names], grids)
            for names in contrasts["trends"]
        ]


def _validated(mapping: dict[str, Any], report: _Report, damaged: set[Key]) -> Spec | None:
    """A Spec, if need be of what is left when wrong values are taken out, so that the rest is checked as
    well. damaged: takes up the conditions and writes from which something was taken."""
    for _ in range(_ROUNDS):
        try:
            return Spec.model_validate(mapping)
        except ValidationError as error:
            details = error.errors(include_url=False)
        by_path: dict[Key, list[Any]] = {}
        for detail in details:
            by_path.setdefault(existing_path(mapping, detail), []).append(detail)
        for path, found in by_path.items():
            written = tuple(part for index, part in enumerate(path) if not _is_ours(path, index))
            key = ".".join(map(str, written))
            unknown = any(detail["type"] == "extra_forbidden" for detail in found)
            if unknown or not (report.told(key) or report.told(report.as_written(written))):
                report.add(written, complaint(path, found, mapping))
            damaged.update(_condition_part(path))
        removable = []
        for path, found in by_path.items():
            if not _stood_in(mapping, path):
                removable.append(path[:-1] if all(detail["type"] == "missing" for detail in found) else path)
        if not all(_optional(path) for path in removable):
            return None
        take_out(mapping, removable)
    return None


def _stood_in(mapping: dict[str, Any], path: Key) -> bool:
    """Put something sound in place of a wrong value, where the rest can be checked with it; False where
    nothing would do."""
    if path in _STAND_INS:
        _at(mapping, path[:-1])[path[-1]] = _STAND_INS[path]
    elif len(path) > 3 and path[-1] == "site" and path[-3] == "writes":
        _at(mapping, path[:-1])["site"] = "resid_pre"  # so that the write's other fields are checked
    elif path[:2] == ("contrasts", "same") and (len(path) == 3 or path[3:4] == (2,)):
        pair = _at(mapping, path[:3])
        if not isinstance(pair, list) or len(pair) not in (2, 3):
            return False
        pair[2:] = [{"margin": 1.0}]  # so that the conditions are looked up
    else:
        return False
    return True


def _is_ours(path: Key, index: int) -> bool:
    """Whether this part of a path is the `writes` that bodies are split into, which no YAML file has."""
    return path[index] == "writes" and index >= 2 and path[index - 2] == "conditions"


def _condition_part(path: Key) -> list[Key]:
    """The condition, or the write of a condition, that a path leads into."""
    if "conditions" not in path[:-1]:
        return []
    rest = path[path.index("conditions") + 1 :]
    return [(rest[0], rest[2]) if len(rest) > 2 and rest[1] == "writes" else rest[:1]]


def _written_part(path: Key) -> list[Key]:
    """The same for a path as it is in the YAML file, where writes stand beside the reserved keys."""
    if "conditions" not in path[:-1]:
        return []
    rest = path[path.index("conditions") + 1 :]
    return [rest[:2] if len(rest) > 2 and rest[1] not in RESERVED else rest[:1]]


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
    if path[0] in ("conditions", "contrasts", "sampling", "readout"):
        return True
    return path[0] not in ("experiment", "model", "backend", "prompts") or len(path) > 1


def _of_axis(key: Key) -> list[Key]:
    """The field that an axis of a grid stands for."""
    if len(key) < 4 or key[0] != "conditions" or key[2] != "grid":
        return []
    return [(*key[:2], *str(key[3]).split("."))]


def _at(mapping: dict[str, Any], path: Key) -> Any:
    level: Any = mapping
    for part in path:
        level = level[part]
    return level


def take_out(mapping: dict[str, Any], paths: Sequence[Key]) -> None:
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


def _takes_all(mapping: dict[str, Any]) -> bool:
    """Whether `n: all` is asked; a number stands in for it until the banks are read."""
    experiment = mapping.get("experiment")
    if not isinstance(experiment, dict) or experiment.get("n") != ALL:
        return False
    experiment["n"] = 1
    return True


def _with_all(spec: Spec, composed: Composed, report: _Report) -> Spec:
    """With as many items as the banks hold. Banks that cannot be read are told by themselves."""
    try:
        banks = composed.reader.chosen(spec.prompts)
    except ConfigurationError:
        return spec
    limit = available(spec.prompts, banks)
    if limit is None:
        message = f"expected a number: with pairing.replace prompts recur, and '{ALL}' are without end"
        report.add(("experiment", "n"), message)
        return spec
    experiment = spec.experiment.model_copy(update={"n": max(1, limit)})
    return spec.of_items(experiment)


def _banks(spec: Spec, composed: Composed, report: _Report) -> None:
    """Read the banks and report what is wrong with them, or what is asked of them that they do not hold."""
    try:
        chosen = composed.reader.chosen(spec.prompts)
    except ConfigurationError as error:
        report.problems += error.problems
        return
    for found in bank_inconsistencies(spec, chosen):
        report.inconsistent(found)
