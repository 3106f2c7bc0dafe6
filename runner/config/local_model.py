"""What a local model's config.json declares, read as JSON before any library of models is loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from runner.config.layers import rescale

# Our key -> the keys of config.json that state it, the first one found counting.
_STATED = {
    "architecture": ("model_type",),
    "layers": ("num_hidden_layers", "n_layer"),
    "heads": ("num_attention_heads", "n_head"),
    "kv_heads": ("num_key_value_heads", "num_attention_heads", "n_head"),
    "width": ("hidden_size", "n_embd"),
    "context": ("max_position_embeddings", "n_positions"),
    "vocabulary": ("vocab_size",),
}
# What the names of landmarks stand for: the published layers, of 32. A model YAML has them at its own depth,
# rounded; those of another depth are taken from here, so that they are rounded once.
_PUBLISHED = {"early": 5, "relay": 18, "late": 27}
_PUBLISHED_DEPTH = 32
_REQUIRED = ("architecture", "layers", "heads", "width", "context")


@dataclass(frozen=True)
class Mismatch:
    """A key of the model's YAML that does not agree with its files; key "path" where the files cannot be
    read."""

    key: str
    message: str


@dataclass(frozen=True)
class LocalModel:
    """The model's mapping with what its folder declares. read_from: our key -> (file, its key there), for
    every number that stands as the file has it, right or wrong."""

    mapping: dict[str, Any]
    mismatches: tuple[Mismatch, ...] = ()
    read_from: Mapping[str, tuple[Path, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Stated:
    """What a config.json states, unchecked, and under which of its keys."""

    values: dict[str, Any]
    names: dict[str, str]


def with_local_files(model: Mapping[str, Any]) -> LocalModel:
    """The model's mapping with what its local folder declares.

    A `path` makes any model a local one. Where the YAML already says `source: local`, the numbers that it
    states must agree with config.json; where a path has replaced another source, the numbers come from
    config.json, the name from the folder (in a hub's cache: from its repository), and landmarks keep their
    relative depth. Models without a path are returned as they are. Values are not checked here: a wrong one
    is told with `read_from` as its place.
    """
    out = dict(model)
    path, declared_local = out.get("path"), out.get("source") == "local"
    if path is None:
        missing = Mismatch("path", "expected the folder of the model, source being local")
        return LocalModel(out, (missing,) if declared_local else ())
    if not isinstance(path, str):
        return LocalModel(out)
    out["source"] = "local"
    file = Path(path).expanduser() / "config.json"
    stated = _read(file)
    if isinstance(stated, str):
        return LocalModel(out, (Mismatch("path", stated),))
    if declared_local:
        problems = tuple(
            Mismatch(key, f"expected {value} as {file} says, got {out[key]}")
            for key, value in stated.values.items()
            if out.get(key) is not None and out[key] != value
        )
        taken = [key for key in stated.values if out.get(key) is None]
    else:
        problems, taken = (), list(stated.values)
        _move_landmarks(out, stated.values["layers"])
        out.update(name=_name(file.parent.resolve()), id=None, revision=None)
    out.update({key: stated.values[key] for key in taken})
    return LocalModel(out, problems, {key: (file, stated.names[key]) for key in taken})


def _name(folder: Path) -> str:
    """A folder's name; in a hub's cache, where folders are named after revisions, that of the model."""
    repository = folder.parent.parent.name
    if folder.parent.name == "snapshots" and repository.startswith("models--"):
        return repository.rpartition("--")[2]
    return folder.name


def _move_landmarks(model: dict[str, Any], depth: object) -> None:
    before, landmarks = model.get("layers"), model.get("landmarks")
    if isinstance(before, int) and before > 1 and isinstance(landmarks, dict) and _count(depth):
        model["landmarks"] = {
            name: _moved(name, layer, depth, before) if isinstance(layer, int) else layer
            for name, layer in landmarks.items()
        }


def _moved(name: str, layer: int, depth: int, before: int) -> int:
    published = _PUBLISHED.get(name)
    if published is not None and layer == rescale(published, before, _PUBLISHED_DEPTH):
        return rescale(published, depth, _PUBLISHED_DEPTH)
    return rescale(layer, depth, before)


def _read(file: Path) -> _Stated | str:
    """What the file states, or the sentence that says why it cannot be had."""
    if not file.parent.is_dir():
        return f"expected the folder of a model, found none at '{file.parent}'"
    if not file.is_file():
        return f"expected a config.json in '{file.parent}', found none"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        return f"expected a JSON object in '{file}': {error}"
    if not isinstance(config, dict):
        return f"expected a JSON object in '{file}', got {type(config).__name__}"
    names = {
        key: next((name for name in known if config.get(name) is not None), None)
        for key, known in _STATED.items()
    }
    missing = [f"{key} ({' or '.join(_STATED[key])})" for key in _REQUIRED if names[key] is None]
    if missing:
        return f"expected '{file}' to state {', '.join(missing)}"
    found = {key: name for key, name in names.items() if name is not None}
    values = {key: config[name] for key, name in found.items()}
    if config.get("head_dim") is not None:
        values["head_width"], found["head_width"] = config["head_dim"], "head_dim"
    elif _count(values["width"]) and _count(values["heads"]):
        values["head_width"] = values["width"] // values["heads"]
        found["head_width"] = f"{found['width']} / {found['heads']}"
    return _Stated(values, found)


def _count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
