"""What a model cannot do, as far as its YAML and its config.json say so: nothing is loaded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from backends.architectures import ARCHITECTURES, Architecture
from backends.writes import Write
from runner.config.spec import ModelSpec


def lacking(site: str, model: ModelSpec) -> str | None:
    """The sentence that says that the model has no such site, and which is nearest; None where it has it, and
    where only the backend can say: of an unknown architecture, or a config.json that is not here."""
    known = ARCHITECTURES.get(model.architecture)
    return None if known is None else known.lacks(site, in_parallel=_in_parallel(known, model))


def model_faults(write: Write, model: ModelSpec) -> Iterator[tuple[str, str]]:
    """(field, sentence) for a site that the model lacks, and for keys that cannot be moved in it."""
    sentence = lacking(write.tensor, model)
    if sentence is not None:
        yield "site" if write.features is None else "sae", sentence
    known = ARCHITECTURES.get(model.architecture)
    if known is not None and known.fixes_keys is not None and write.moves_keys:
        yield "rope", f"model '{model.name}': {known.fixes_keys}"


def _in_parallel(known: Architecture, model: ModelSpec) -> bool:
    """Whether attention and MLP are known to read one residual stream."""
    if known.parallel is None or model.source != "local" or model.path is None:
        return False
    file = Path(model.path).expanduser() / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False  # told with the model
    return isinstance(config, dict) and bool(config.get(known.parallel, True))
