"""What a terminal says in a line where `summary.md` says it in many, so that a screen or two hold a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from analyses.comparisons.contrast import ALPHA, HOLM, corrected, correction_name
from analyses.tables.pairs import EQUIVALENCE
from analyses.wording import count, listed, plural

MOST_CONTRASTS = 8  # in a sentence each; of more the table is enough
_MOST_WARNINGS = 2  # of one gate, in full
_MOST_NAMED = 6  # conditions and contrasts that a line names


def contrasts_in_brief(contrasts: Sequence[Mapping[str, Any]], readout: str) -> str:
    """How many of many declared comparisons came out how. It names none, so that none is picked out by its
    result."""
    after = correction_name(contrasts[0].get("correction", HOLM))
    decided = [(each["kind"], corrected(each)) for each in contrasts]
    tested = [(kind, p) for kind, p in decided if p is not None]
    differ = [p < ALPHA for kind, p in tested if kind != EQUIVALENCE]
    equal = [p < ALPHA for kind, p in tested if kind == EQUIVALENCE]
    told = []
    if differ:
        told.append(
            f"{count(sum(differ))} of {plural(len(differ), 'comparison')} show a difference after {after}"
        )
    if differ and not all(differ):
        told.append("that the others show none is no sign that they are equal")
    if equal:
        told.append(f"{count(sum(equal))} of {plural(len(equal), 'equivalence')} hold within the margin")
    if untested := len(decided) - len(tested):
        told.append(f"{count(untested)} could not be tested")
    return f"{readout}: {'; '.join(told)}. summary.md has a sentence for each."


def cross_checks_in_brief(contrasts: Sequence[Mapping[str, Any]]) -> str | None:
    """Where another method would have come to another verdict; None where none would."""
    apart = [
        f"{each['condition']} - {each['against']}"
        for each in contrasts
        if any(check["agrees"] is False for check in each.get("cross_checks") or ())
    ]
    return f"They do not in {_some(apart)}: summary.md has each." if apart else None


def study_in_brief(sentence: str) -> str:
    """The first sentence on a declared analysis."""
    first, stop, rest = sentence.partition(". ")
    return f"{first}. (More in summary.md.)" if stop and rest else sentence


def gates_in_brief(gates: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Gates with the warnings of one kind beyond the first told as one, where there are more than two of them
    in a stage."""
    alike: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for gate in gates:
        if gate["verdict"] == "warn":
            alike.setdefault((gate.get("stage") or "", gate["gate"]), []).append(gate)
    found: list[dict[str, Any]] = []
    for gate in gates:
        members = alike.get((gate.get("stage") or "", gate["gate"]), [])
        if gate["verdict"] != "warn" or len(members) <= _MOST_WARNINGS:
            found.append(dict(gate))
        elif gate is members[0]:
            where = _some(list(dict.fromkeys(str(each["condition"]) for each in members[1:])))
            rest = f"{count(len(members) - 1)} more of this kind ({gate['gate']}: {where})"
            more = f" {rest}; summary.md has each."
            found.append(dict(gate) | {"sentence": gate["sentence"] + more})
    return found


def _some(names: Sequence[str]) -> str:
    rest = len(names) - _MOST_NAMED
    return listed(names) if rest <= 1 else f"{', '.join(names[:_MOST_NAMED])} and {count(rest)} others"
