"""Whether the prompts in play mark the spans that writes name as `role:NAME`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from backends.positions import FORMS, Positions, Span
from backends.writes import SELF, Write
from runner.config.errors import listed, suggestion
from runner.config.spec import PromptsSpec
from runner.prompts.banks import Prompt
from runner.prompts.pairing import Banks

_TARGETS = ""  # no name of a role


def counted_prompts(side: str, prompt: str, banks: Banks) -> tuple[Prompt, ...]:
    """The prompts on which positions are counted.

    side: SELF for the row's own prompt, else the role of a source (`donor`, `other_donor`, or a name of
    `prompts.roles`). prompt: the condition's; of donor+target the spans are the target's.
    """
    pool = _pool(side, prompt)
    if pool == _TARGETS:
        return banks.targets
    return banks.roles.get(pool, banks.donors)


def unmarked(role: str, side: str, prompt: str, prompts: PromptsSpec, banks: Banks) -> str | None:
    """The sentence for a role that not one prompt of a side marks; None where one does. side and prompt: as
    in `counted_prompts`."""
    found = counted_prompts(side, prompt, banks)
    known = sorted({name for one in found for name in one.spans})
    if role in known:
        return None
    pool = _pool(side, prompt)
    if pool == _TARGETS:
        what, bank = "targets", prompts.targets.bank
    elif pool in prompts.roles:
        what, bank = f"donors of {pool}", prompts.roles[pool].bank
    else:
        what, bank = "donors", prompts.donors.bank
    if not known:
        others = listed(form for form in FORMS if not form.startswith("role"))
        return (
            f"no prompt bank marks '{role}' for the {what}: not one of the {len(found)} taken from '{bank}' "
            f"has `roles`; expected one of {others}"
        )
    return (
        f"none of the {len(found)} {what} taken from '{bank}' marks the role '{role}'; they mark "
        f"{listed(known)}{suggestion(role, known)}"
    )


def overlapping(first: Write, second: Write, prompts: Sequence[Prompt]) -> Prompt | None:
    """The first prompt in which two writes at spans, both acting on it before decode, have a character in
    common. What they share as tokens only is found when the prompt is tokenised (`plan_row`)."""
    if SELF not in first.counted_on or SELF not in second.counted_on:
        return None
    for prompt in prompts:
        one, other = (_characters(write.positions, prompt.spans) for write in (first, second))
        if one is not None and other is not None and max(one[0], other[0]) < min(one[1], other[1]):
            return prompt
    return None


def _pool(side: str, prompt: str) -> str:
    if side != SELF:
        return side
    return "donor" if prompt == "donor" else _TARGETS


def _characters(positions: Positions, spans: Mapping[str, Span]) -> Span | None:
    """Characters that positions surely take in: of one end of a span, its first or last one."""
    if positions.role not in spans:
        return None
    start, end = spans[positions.role]
    if positions.end == "first":
        return start, start + 1
    return (end - 1, end) if positions.end == "last" else (start, end)
