"""In which factors the prompts of two compared conditions differ: what a difference may be due to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from analyses.gates.gate import Gate
from analyses.wording import count, listed

BETWEEN = "|"  # of the two conditions, in a key of the manifest's `factors`


def confounded_gates(manifest: Mapping[str, Any]) -> list[Gate]:
    """A gate for every two compared conditions whose prompts differ in known factors (`factors` of the
    manifest: "A|B" -> names of facts). More than one is a warning: a difference between the conditions is
    that of all of them together. One is what the comparison is about, and is only listed."""
    gates = []
    for pair, names in (manifest.get("factors") or {}).items():
        first, _, second = str(pair).partition(BETWEEN)
        factors = list(dict.fromkeys(map(str, names)))
        if not factors:
            continue
        if len(factors) == 1:
            sentence = f"The prompts of {first} and {second} differ in one factor, {factors[0]}."
            gates.append(Gate(first, "confounded", "pass", sentence))
            continue
        sentence = (
            f"The prompts of {first} and {second} differ in {count(len(factors))} factors at once "
            f"({listed(factors)}): a difference between the two cannot be put down to any one of them."
        )
        gates.append(Gate(first, "confounded", "warn", sentence))
    return gates
