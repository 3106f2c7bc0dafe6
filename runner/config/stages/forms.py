"""A stage in the flat form of an experiment: what it says itself over what stands at the top level."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

from runner.config.stages.known import MEASURE
from runner.config.stages.spec import ExtractStageSpec, MeasureStageSpec

Key = tuple[str | int, ...]

OUTLINE = ("stages", "findings", "figures", "analyses", "sweep")  # keys of an experiment that no stage has
_OVERLAID = ("prompts", "sampling", "contrasts")  # mappings of a stage that are merged over the top level's
_OF_EXPERIMENT = ("n", "repeats", "question")
OF, MINUS = "of", "minus"  # conditions of an extract stage: the prompts that its means are taken of
READ = "read"  # the write that stands for what an extract stage reads
_NOTHING_READ = "_of_nothing"
# Readers of activations for which a table of vectors makes sense.
NOT_EXTRACTED = ("kv_cache", "attention_edge", "sae", "logits")


def flat_mapping(mapping: Mapping[str, Any], stage: MeasureStageSpec | ExtractStageSpec) -> dict[str, Any]:
    """The mapping of one stage in the flat form. mapping: the whole, composed."""
    flat = {key: copy.deepcopy(value) for key, value in mapping.items() if key not in OUTLINE}
    body = stage.model_dump(mode="python", by_alias=True)
    for key in _OVERLAID:
        if body.get(key):
            base = flat.get(key)
            base = base if isinstance(base, dict) else {}
            flat[key] = _merged(_for_items(base, body[key]) if key == "prompts" else base, body[key])
    if stage.split is not None and isinstance(flat.get("prompts"), dict):
        for side in ("targets", "donors"):
            if isinstance(flat["prompts"].get(side), dict):
                flat["prompts"][side]["split"] = stage.split
    if isinstance(flat.get("experiment"), dict):
        for key in _OF_EXPERIMENT:
            if body.get(key):
                flat["experiment"][key] = body[key]
        flat["experiment"]["question"] = stage.question
    if isinstance(stage, ExtractStageSpec):
        return _as_reading(flat, stage)
    flat["conditions"] = copy.deepcopy(stage.conditions)
    if stage.readouts is not None:
        flat["readouts"] = list(stage.readouts)
    return flat


def _as_reading(flat: dict[str, Any], stage: ExtractStageSpec) -> dict[str, Any]:
    """An extract stage as conditions whose one write stands where its activations are read, so that sites,
    layers, positions and prompts are checked as those of writes are. Nothing of it is ever written."""
    read: dict[str, Any] = {"site": stage.site, "positions": stage.positions, "op": "zero"}
    if stage.site != "embed":
        read["layers"] = stage.layers if isinstance(stage.layers, str | int) else list(stage.layers)
    flat["conditions"] = {OF: {"prompt": stage.of, READ: dict(read)}}
    if stage.minus not in (None, stage.of):
        flat["conditions"][MINUS] = {"prompt": stage.minus, READ: dict(read)}
    flat["readouts"] = [_NOTHING_READ]
    flat["readout"] = {_NOTHING_READ: {"kind": "top_k", "top": 1}}
    flat["contrasts"] = {"family": "none", "primary": ""}
    flat["sampling"] = {"max_new_tokens": 1}  # nothing is generated
    if isinstance(flat.get("experiment"), dict):
        flat["experiment"]["repeats"] = 1
    return flat


def places(name: str, stage: MeasureStageSpec | ExtractStageSpec) -> Callable[[Key], Key]:
    """From a key of a stage's flat mapping to where it stands in the configuration."""
    body = stage.model_dump(mode="python", by_alias=True)
    inside: Key = ("stages", name)

    def place(key: Key) -> Key:
        if not key:
            return key
        head, rest = key[0], key[1:]
        if head == "conditions" and isinstance(stage, ExtractStageSpec):
            return (*inside, *_of_reading(rest))
        if head == "conditions" or (head == "readouts" and body.get("readouts") is not None):
            return (*inside, *key)
        if head in _OVERLAID and rest and rest[0] in body.get(str(head), {}):
            return (*inside, *key)
        if head == "experiment" and rest and rest[0] in _OF_EXPERIMENT and body.get(str(rest[0])):
            return (*inside, *rest)
        if head == "prompts" and rest[1:] == ("split",) and stage.split is not None:
            return (*inside, "split")
        return key

    return place


def _of_reading(rest: Key) -> Key:
    """Where the words of a reading stand: `site` of the write is `site` of the stage."""
    if rest[1:2] == ("prompt",):
        return (rest[0],)
    return rest[2:] if rest[1:2] == (READ,) else rest[:1]


def _for_items(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Prompts that a stage lays its own over: where pairs become items, without what is of those pairs."""
    if over.get("kind") != "items" or base.get("kind") == "items":
        return dict(base)
    of_pairs = ("donors", "pairing", "roles", *(("targets",) if "targets" in over else ()))
    return {key: value for key, value in base.items() if key not in of_pairs}


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings merged key by key, as Hydra does; anything else is replaced."""
    out = {key: copy.deepcopy(value) for key, value in base.items()}
    for key, value in over.items():
        both = isinstance(out.get(key), dict) and isinstance(value, Mapping)
        out[key] = _merged(out[key], value) if both else copy.deepcopy(value)
    return out


__all__ = ["MEASURE", "MINUS", "NOT_EXTRACTED", "OF", "OUTLINE", "READ", "flat_mapping", "places"]
