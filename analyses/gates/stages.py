"""What must be said of stages: choices of nothing, and evaluation on what was chosen on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from analyses.gates.gate import EVERY, Gate
from analyses.tables.stages import SELECT, left_out, sections
from analyses.wording import listed, plural

EMPTY, IN_SAMPLE = "empty_selection", "in_sample"


def in_sample_gates(manifest: Mapping[str, Any]) -> list[Gate]:
    """A warning where a stage evaluates on prompts that what it uses was chosen on or extracted from.
    manifest: that of the stage."""
    told = manifest.get("in_sample")
    if not told:
        return []
    name = manifest.get("experiment", {}).get("stage") or "the stage"
    sentence = f"Stage {name} is no test of its own choice: {str(told).rstrip('.')}."
    return [Gate(EVERY, IN_SAMPLE, "warn", sentence)]


def empty_selections(
    manifest: Mapping[str, Any], choices: Mapping[str, Mapping[str, Any]]
) -> list[tuple[str, Gate]]:
    """(stage, warning) for every choice that took nothing, with the stages that were left out for it."""
    gone = left_out(manifest)
    found = []
    for name in sections(manifest, SELECT):
        choice = choices.get(name)
        if choice is None or choice.get("chosen") or choice.get("items"):
            continue
        lost = _rest_on(name, manifest, gone)
        end = ""
        if lost:
            verb = "was" if len(lost) == 1 else "were"
            end = f" {plural(len(lost), 'stage')} {verb} left out for it: {listed(lost)}."
        found.append((name, Gate(EVERY, EMPTY, "warn", f"Nothing was chosen: {choice.get('sentence')}{end}")))
    return found


def _rest_on(name: str, manifest: Mapping[str, Any], gone: Mapping[str, str]) -> list[str]:
    """The stages that were left out and need a choice, directly or through others that need it."""
    reached = [name]
    for other, section in sections(manifest).items():
        if other in gone and set(section.get("needs") or ()) & set(reached):
            reached.append(other)
    return reached[1:]
