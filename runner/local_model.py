"""What a local model's config.json declares, read as JSON before any library of models is loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.layers import rescale

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
_REQUIRED = ("architecture", "layers", "heads", "width", "context")


@dataclass(frozen=True)
class Mismatch:
    """A key of the model's YAML that does not agree with its files; key "path" where the files cannot be
    read."""

    key: str
    message: str


def with_local_files(model: Mapping[str, Any]) -> tuple[dict[str, Any], list[Mismatch]]:
    """The model's mapping with what its local folder declares.

    A `path` makes any model a local one. Where the YAML already says `source: local`, the numbers that it
    states must agree with config.json; where a path has replaced another source, the numbers come from
    config.json, the name from the folder, and landmarks keep their relative depth. Models without a path are
    returned as they are.
    """
    out = dict(model)
    path, declared_local = out.get("path"), out.get("source") == "local"
    if path is None:
        missing = (
            [Mismatch("path", "expected the folder of the model, source being local")]
            if declared_local
            else []
        )
        return out, missing
    if not isinstance(path, str):
        return out, []
    out["source"] = "local"
    folder = Path(path).expanduser()
    stated, fault = _read(folder)
    if fault is not None:
        return out, [Mismatch("path", fault)]
    if declared_local:
        problems = [
            Mismatch(key, f"expected {value} as {folder / 'config.json'} says, got {out[key]}")
            for key, value in stated.items()
            if out.get(key) is not None and out[key] != value
        ]
        return {**out, **{key: value for key, value in stated.items() if out.get(key) is None}}, problems
    before, landmarks = out.get("layers"), out.get("landmarks")
    out.update(stated, name=folder.resolve().name, id=None, revision=None)
    depth = stated["layers"]
    if isinstance(before, int) and before > 1 and isinstance(landmarks, dict):
        out["landmarks"] = {
            name: rescale(layer, depth, before) if isinstance(layer, int) else layer
            for name, layer in landmarks.items()
        }
    return out, []


def _read(folder: Path) -> tuple[dict[str, Any], str | None]:
    file = folder / "config.json"
    if not folder.is_dir():
        return {}, f"expected the folder of a model, found none at '{folder}'"
    if not file.is_file():
        return {}, f"expected a config.json in '{folder}', found none"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        return {}, f"expected a JSON object in '{file}': {error}"
    if not isinstance(config, dict):
        return {}, f"expected a JSON object in '{file}', got {type(config).__name__}"
    stated: dict[str, Any] = {}
    for key, names in _STATED.items():
        for name in names:
            if config.get(name) is not None:
                stated[key] = config[name]
                break
    missing = [f"{key} ({' or '.join(_STATED[key])})" for key in _REQUIRED if key not in stated]
    if missing:
        return {}, f"expected '{file}' to state {', '.join(missing)}"
    wrong = [key for key, value in stated.items() if key != "architecture" and not _count(value)]
    if wrong:
        return {}, f"expected whole numbers of at least 1 in '{file}' for {', '.join(wrong)}"
    head_width = config.get("head_dim")
    stated["head_width"] = head_width if _count(head_width) else stated["width"] // stated["heads"]
    return stated, None


def _count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
