"""In what two runs differ: configuration, model, prompts, measurement, machine, and conditions that share a
name but not the operation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from analyses.tables.stages import MEASURE, sections, staged
from analyses.wording import listed

ABSENT = "absent"
# Keys of a configuration that say where and how it is run, not what: no difference between two experiments.
WHERE = (
    "resume",
    "output_root",
    "launch",
    "profile",
    "quiet",
    "dry_run",
    "allow_inert",
    "report",
    "backend.memory_budget",
    "backend.max_rows",
    "backend.threads",
    "backend.workers",
)
# What is asked of the trials once they are there: told last, for no trial differs by it.
_AFTERWARDS = ("analyses", "contrasts", "figures", "findings", "published")
_SEEDS = ("sampling.seed", "prompts.seed")  # told as seeds
_MODEL = {
    "name": "name",
    "revision": "revision",
    "layers": "layers",
    "fingerprint": "weights",
    "tokenizer_fingerprint": "tokenizer",
    "chat_template": "chat template",
}
_MACHINE = ("machine", "system", "python", "cores", "memory_bytes", "device")
_LAYERS = ".layers"


@dataclass(frozen=True)
class Difference:
    """One thing in which two runs differ. of: configuration, seeds, model, prompts, measurement, packages,
    machine or code; first, second: what each has, "absent" where it has none."""

    of: str
    key: str
    first: Any
    second: Any


@dataclass(frozen=True)
class Operation:
    """A condition that has one name in two runs and does two things. fields: what of it differs. warns: False
    where that follows from a model of another depth alone."""

    stage: str
    condition: str
    fields: tuple[Difference, ...]
    warns: bool
    sentence: str


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[Difference]:
    """In what two manifests differ, but for the conditions. Where results go, how loud a run was and how much
    memory it had are no difference."""
    return [
        *_configuration(first, second),
        *_apart("seeds", _seeds(first), _seeds(second)),
        *_apart("model", _model(first), _model(second)),
        *_apart("prompts", _banks(first), _banks(second)),
        *_apart("measurement", _measurement(first), _measurement(second)),
        *_apart("packages", first.get("packages") or {}, second.get("packages") or {}),
        *_apart("machine", _machine(first), _machine(second)),
        *_apart("code", _code(first), _code(second)),
    ]


def operations(
    stage: str, first: Mapping[str, Any], second: Mapping[str, Any], names: tuple[str, str]
) -> list[Operation]:
    """Conditions of one name that differ in what they do: writes, prompt, sampling, weights, path.

    first, second: the manifests of a stage in two runs, of the names given. What all shared conditions sample
    differently is the experiment's sampling, and told once as that.
    """
    mine, theirs = first.get("conditions") or {}, second.get("conditions") or {}
    shared = [name for name in mine if name in theirs]
    found = {
        name: list(_apart("condition", _operation(mine[name]), _operation(theirs[name]))) for name in shared
    }
    common = [
        one
        for one in (found[shared[0]] if shared else ())
        if one.key.startswith("sampling.") and all(one in each for each in found.values())
    ]
    depths = [(each.get("model") or {}).get("layers") for each in (first, second)]
    told = []
    for name in shared:
        fields = tuple(one for one in found[name] if one not in common)
        if not fields:
            continue
        only_depth = depths[0] != depths[1] and all(one.key.endswith(_LAYERS) for one in fields)
        parts = [f"{one.key} {one.first} in {names[0]}, {one.second} in {names[1]}" for one in fields[:3]]
        more = f", and {len(fields) - 3} more" if len(fields) > 3 else ""
        what = (
            "the same name, other layers of a model of another depth"
            if only_depth
            else ("the same name, another operation")
        )
        sentence = f"{name}: {what}: {'; '.join(parts)}{more}."
        told.append(Operation(stage, name, fields, not only_depth, sentence))
    return told


def same_under_other_names(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Conditions without a partner of their name that do what one of another name does in the other run."""
    mine, theirs = first.get("conditions") or {}, second.get("conditions") or {}
    alone = {name: _operation(body) for name, body in theirs.items() if name not in mine}
    pairs = []
    for name, body in mine.items():
        if name in theirs:
            continue
        operation = _operation(body)
        pairs += [(name, other) for other, its in alone.items() if its and its == operation]
    return pairs


def leaves(body: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested mappings by dotted keys; a list is one value, an empty mapping none."""
    if isinstance(body, Mapping):
        for key, value in body.items():
            yield from leaves(value, f"{path}.{key}" if path else str(key))
    else:
        yield path, body


def _apart(of: str, first: Mapping[str, Any], second: Mapping[str, Any]) -> Iterator[Difference]:
    """Keys with two values. One that is absent and one that is null are the same: a newer version may have
    keys that an older one did without."""
    for key in sorted({*first, *second}):
        mine, theirs = first.get(key), second.get(key)
        if mine != theirs:
            yield Difference(of, key, *(ABSENT if each is None else each for each in (mine, theirs)))


def _configuration(first: Mapping[str, Any], second: Mapping[str, Any]) -> Iterator[Difference]:
    found = _apart(
        "configuration", dict(leaves(first.get("config") or {})), dict(leaves(second.get("config") or {}))
    )
    beside = (*WHERE, *_SEEDS)
    kept = (one for one in found if not any(f"{one.key}.".startswith(f"{name}.") for name in beside))
    yield from sorted(kept, key=lambda one: one.key.partition(".")[0] in _AFTERWARDS)


def _sections(manifest: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """What is said of each stage that measures, a flat run being its one stage; its name in front of keys."""
    return sections(manifest, MEASURE) if staged(manifest) else {"": manifest}


def _keyed(stage: str, key: str) -> str:
    return f"{stage}: {key}" if stage else key


def _seeds(manifest: Mapping[str, Any]) -> dict[str, Any]:
    return {
        _keyed(stage, key): value
        for stage, section in _sections(manifest).items()
        for key, value in (section.get("seeds") or {}).items()
    }


def _model(manifest: Mapping[str, Any]) -> dict[str, Any]:
    model = manifest.get("model") or {}
    found = {told: model.get(key) for key, told in _MODEL.items()}
    return found | {key: manifest.get(key) for key in ("dtype", "attention", "backend")}


def _banks(manifest: Mapping[str, Any]) -> dict[str, Any]:
    found = {}
    for section in _sections(manifest).values():
        for name, bank in ((section.get("prompts") or {}).get("banks") or {}).items():
            found[f"bank {name}"] = bank.get("sha256")
    return found


def _measurement(manifest: Mapping[str, Any]) -> dict[str, Any]:
    markers = manifest.get("markers") or {}
    found: dict[str, Any] = {
        "semantics": manifest.get("semantics"),
        "markers": markers.get("list"),
        "markers version": markers.get("version"),
    }
    for stage, section in _sections(manifest).items():
        for name, readout in (section.get("readout") or {}).items():
            found |= {_keyed(stage, f"{name}.{key}"): value for key, value in leaves(readout)}
    return found


def _machine(manifest: Mapping[str, Any]) -> dict[str, Any]:
    hardware = manifest.get("hardware") or {}
    return {"host": manifest.get("host")} | {key: hardware.get(key) for key in _MACHINE}


def _code(manifest: Mapping[str, Any]) -> dict[str, Any]:
    git = manifest.get("git") or {}
    dirty = git.get("dirty")
    changes = None if dirty is None else "uncommitted changes" if dirty else "committed as it is"
    return {"commit": git.get("commit"), "changes": changes}


def _operation(condition: Mapping[str, Any]) -> dict[str, Any]:
    """What a condition does, by dotted keys, without its labels and what it is expected to come to."""
    kept = {
        key: condition.get(key)
        for key in ("prompt", "writes", "sampling", "replay_last_token", "recompute", "weights")
    }
    if not condition.get("writes") and "writes" not in condition:
        kept["words"] = condition.get("words")
    found = {key: value for key, value in leaves(kept) if not key.endswith((".expect", ".has_old"))}
    return {
        key: listed(list(map(str, value))) if isinstance(value, list) else value
        for key, value in found.items()
        if value is not None and value is not False
    }
