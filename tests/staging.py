"""A small experiment with stages, for tests: a direction between harmful and harmless requests, the candidate
that moves the answers most, and that one on other requests."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

PROJECTED = {"site": "resid_pre", "layers": "all", "op": "project_out", "value": "artefact:direction"}
STAGES: Mapping[str, Any] = {
    "screen": {
        "kind": "measure",
        "split": "extract",
        "conditions": {"harmless": {}, "harmful": {"prompt": "donor"}},
        "readouts": ["refusal"],
        "contrasts": {"family": "none", "primary": "refusal"},
    },
    "agreed": {
        "kind": "select",
        "from": "screen",
        "items": [{"of": "harmful", "readout": "refusal", "above": 0}],
    },
    "direction": {
        "kind": "extract",
        "split": "extract",
        "items": "choice:agreed",
        "site": "resid_pre",
        "positions": "last:2",
        "each_position": True,
        "of": "donor",
        "minus": "target",
    },
    "candidates": {
        "kind": "measure",
        "split": "validate",
        "conditions": {
            "baseline": {"prompt": "donor"},
            "ablate": {
                "prompt": "donor",
                "grid": {"dir.from_layer": [0, 5, 8], "dir.from_positions": ["index:-2", "index:-1"]},
                "dir": PROJECTED,
            },
        },
        "readouts": ["refusal"],
        "contrasts": {"primary": "refusal"},
    },
    "best": {
        "kind": "select",
        "from": "candidates",
        "over": ["dir.from_layer", "dir.from_positions"],
        "where": [{"axis": "dir.from_layer", "at_most": "95%"}],
        "lowest": {"of": "ablate", "readout": "refusal", "minus": "baseline"},
    },
    "evaluate": {
        "kind": "measure",
        "split": "test",
        "conditions": {
            "baseline": {"prompt": "donor"},
            "ablated": {
                "prompt": "donor",
                "dir": {**PROJECTED, "from_layer": "choice:best", "from_positions": "choice:best"},
            },
        },
        "readouts": ["refusal"],
        "contrasts": {"primary": "refusal"},
    },
}
FINDINGS = {
    "layer": {"choice": "best", "axis": "from_layer"},
    "effect": {"stage": "evaluate", "of": "ablated", "against": "baseline", "readout": "refusal"},
}


def staged(folder: Path, changes: Mapping[str, Any] | None = None, name: str = "mine", **root: Any) -> Path:
    """A user's folder with the experiment. changes: dotted key -> value, None to remove it; root: further
    keys of the file."""
    body: dict[str, Any] = {
        "defaults": ["_self_", {"override /prompts": "refusal"}],
        "experiment": {"name": name, "n": 8},
        "model": {"chat_template": True},
        "prompts": {"pairing": {"replace": False}},
        "stages": copy.deepcopy(dict(STAGES)),
        "findings": copy.deepcopy(FINDINGS),
        **root,
    }
    for key, value in (changes or {}).items():
        *parents, last = key.split("/")
        level: Any = body
        for part in parents:
            level = level.setdefault(part, {})
        if value is None:
            del level[last]
        else:
            level[last] = value
    (folder / "experiment").mkdir(exist_ok=True)
    text = yaml.safe_dump(body, sort_keys=False)
    (folder / "experiment" / f"{name}.yaml").write_text(f"# @package _global_\n{text}", encoding="utf-8")
    return folder
