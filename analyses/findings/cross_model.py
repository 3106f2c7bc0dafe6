"""What was published of each model: figures by a dotted path, beside a finding of this run."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

MODEL = "{model}"
PATH = Path(__file__).parent.parent / "published" / "cross_model.yaml"
_MODEL_NAME = re.compile(r"_\d+b$")
_KIND_OF_MODEL = re.compile(r"(it|instruct|chat)$")


@dataclass(frozen=True)
class Published:
    """A published figure. model: of which, as the file calls it; value: its figure there, None where nothing
    is published of this run's model; models: of every model, where the path goes by model."""

    path: str
    model: str | None
    value: Any
    models: Mapping[str, Any]


def published(path: str, model: str | None) -> Published:
    """The figure at a dotted path of cross_model.yaml (`refusal_direction.{model}.0`), for the model of this
    name. `PATH / of` is the share that a count is of the number beside it, `PATH / 15` of a number.

    Raises KeyError, which names the file and what there is, for a path that leads nowhere.
    """
    whole = yaml.safe_load(PATH.read_text(encoding="utf-8"))
    if MODEL not in path:
        return Published(path, None, _figure(whole, path, path), {})
    before, _, after = path.partition(MODEL)
    head = [part for part in before.split(".") if part]
    by_model = _at(whole, head, path)
    models = {}
    for name, figures in by_model.items() if isinstance(by_model, Mapping) else ():
        # Beside the models stand what is said of all: ids of papers, languages, gates.
        if _MODEL_NAME.search(str(name)):
            try:
                models[str(name)] = _figure(figures, after, path)
            except KeyError:
                continue
    if not models:
        raise KeyError(f"{PATH}: {path}: no model has a figure there")
    mine = _same_model(model or "", list(models))
    return Published(path, mine, None if mine is None else models[mine], models)


def _same_model(name: str, models: Sequence[str]) -> str | None:
    """The model of the file that a model of conf/model is: qwen2_5_7b_instruct is qwen_2_5_7b."""
    return next((each for each in models if _bare(each) == _bare(name)), None)


def _bare(name: str) -> str:
    letters = re.sub(r"[^a-z0-9]", "", name.lower()).removeprefix("meta")
    return _KIND_OF_MODEL.sub("", letters)


def _figure(found: Any, path: str, whole: str) -> Any:
    """The figure at a path, as a share where the path goes on with ` / ` and what it is of."""
    parts, _, of = path.partition(" / ")
    *front, last = [part for part in parts.split(".") if part] or [""]
    beside = _at(found, front, whole) if last else found
    value = _at(beside, [last], whole) if last else found
    if not of:
        return value
    total = float(of) if of.isdecimal() else _at(beside, [of], whole)
    if isinstance(value, Mapping):
        return {name: each / total for name, each in value.items()}
    return [each / total for each in value] if isinstance(value, list) else value / total


def _at(found: Any, parts: Sequence[str], path: str) -> Any:
    for part in parts:
        if isinstance(found, Mapping) and part in found:
            found = found[part]
        elif isinstance(found, list) and part.isdecimal() and int(part) < len(found):
            found = found[int(part)]
        else:
            offered = [str(key) for key in found] if isinstance(found, Mapping) else []
            if isinstance(found, list):
                offered = [str(place) for place in range(len(found))]
            near = get_close_matches(part, offered, 1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise KeyError(f"{PATH}: {path}: expected one of {', '.join(offered)}, got '{part}'{hint}")
    return found
