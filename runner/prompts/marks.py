"""Whether the prompts in play have the parts that writes name: `role:NAME`, `token:'TEXT'`,
`post_instruction`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from backends.positions import FORMS, POST_INSTRUCTION, Positions, Span
from backends.writes import SELF, Write
from runner.config.errors import listed, suggestion
from runner.config.prompts.spec import PromptsSpec
from runner.prompts.banks import Prompt
from runner.prompts.pools import Banks

INSTRUCTION = "instruction"  # the role after which `post_instruction` begins
_TARGETS = ""  # no name of a role


def spans_read(write: Write, own: str = SELF) -> Iterator[tuple[Positions, str]]:
    """The marked parts of prompts that a write rests on, each with the side whose prompt it is a part of,
    those of the condition that its source is captured under included.

    own: the side whose prompt is run; SELF for the row's own.
    """
    if write.positions.span:
        for side in write.counted_on:
            yield write.positions, own if side == SELF else side
    if write.source_positions is not None and write.source_positions.span:
        yield write.source_positions, own if write.value.role == SELF else write.value.role
    if write.keys is not None and write.keys.span:
        yield write.keys, own
    if write.value.under is not None:
        run = own if write.value.role == SELF else write.value.role
        for inner in write.value.under.writes:
            yield from spans_read(inner, run)


def marked_text(positions: Positions, prompt: Prompt) -> Span | None:
    """Characters of the marked part that positions rest on; None where the prompt has none. Of
    `post_instruction` the instruction, which it comes after."""
    if positions.kind == "token":
        start = prompt.text.rfind(positions.name)
        return None if start < 0 else (start, start + len(positions.name))
    return prompt.spans.get(INSTRUCTION if positions.span == POST_INSTRUCTION else positions.role)


def has_part(positions: Positions, prompt: Prompt, chat: bool) -> bool:
    """Whether a prompt has the part that positions rest on. chat: whether a chat template ends every
    instruction."""
    return (chat and positions.span == POST_INSTRUCTION) or marked_text(positions, prompt) is not None


def lacks(positions: Positions, prompt: Prompt) -> str:
    """What a prompt without that part lacks, after the prompt's name."""
    if positions.kind == "token":
        return f"does not contain '{positions.name}'"
    if positions.span == POST_INSTRUCTION:
        return f"marks no role '{INSTRUCTION}', and no chat template ends its instruction"
    return f"has no role '{positions.role}' (its roles: {listed(sorted(prompt.spans))})"


def counted_prompts(side: str, prompt: str, banks: Banks) -> tuple[Prompt, ...]:
    """The prompts on which positions are counted.

    side: SELF for the row's own prompt, else the role of a source (`donor`, `other_donor`, or a name of
    `prompts.roles`). prompt: the condition's; of donor+target the spans are the target's.
    """
    pool = _pool(side, prompt)
    if pool == _TARGETS:
        return banks.targets
    return banks.roles.get(pool, banks.donors)


def unmarked(
    positions: Positions, side: str, prompt: str, prompts: PromptsSpec, banks: Banks, *, chat: bool
) -> str | None:
    """The sentence for a part that not one prompt of a side has; None where one does. side, prompt: as in
    `counted_prompts`; chat: as in `has_part`."""
    found = counted_prompts(side, prompt, banks)
    if not found or any(has_part(positions, one, chat) for one in found):
        return None  # without any prompt there is another fault, which is told
    pool = _pool(side, prompt)
    if pool == _TARGETS:
        what, bank = "targets", prompts.targets.bank
    elif pool in prompts.roles:
        choice = prompts.choice(pool)
        what, bank = f"donors of {pool}", "" if choice is None else choice.bank
    else:
        what, bank = "donors", "" if prompts.donors is None else prompts.donors.bank
    if positions.kind == "token":
        return f"none of the {len(found)} {what} taken from '{bank}' contains '{positions.name}'"
    role = INSTRUCTION if positions.span == POST_INSTRUCTION else positions.role
    otherwise = (
        "; with model.chat_template: true the template ends the instruction" if role != positions.role else ""
    )
    known = sorted({name for one in found for name in one.spans})
    if not known:
        others = listed(form for form in FORMS if not form.startswith("role") and form != POST_INSTRUCTION)
        return (
            f"no prompt bank marks '{role}' for the {what}: not one of the {len(found)} taken from '{bank}' "
            f"has `roles`; expected one of {others}{otherwise}"
        )
    return (
        f"none of the {len(found)} {what} taken from '{bank}' marks the role '{role}'; they mark "
        f"{listed(known)}{suggestion(role, known)}{otherwise}"
    )


def overlapping(first: Write, second: Write, prompts: Sequence[Prompt]) -> Prompt | None:
    """The first prompt in which two writes at spans, both acting on it before decode, have a character in
    common. What they share as tokens only is found when the prompt is tokenised (`plan_row`)."""
    if SELF not in first.counted_on or SELF not in second.counted_on:
        return None
    for prompt in prompts:
        one, other = (_characters(write.positions, prompt) for write in (first, second))
        if one is not None and other is not None and max(one[0], other[0]) < min(one[1], other[1]):
            return prompt
    return None


def _pool(side: str, prompt: str) -> str:
    if side != SELF:
        return side
    read_last = prompt.rpartition("+")[2]
    return _TARGETS if read_last == "target" else read_last.removeprefix("donor:")


def _characters(positions: Positions, prompt: Prompt) -> Span | None:
    """Characters that positions surely take in: of one end of a span, its first or last one."""
    found = marked_text(positions, prompt)
    if found is None:
        return None
    start, end = found
    if positions.span == POST_INSTRUCTION:
        return (end, len(prompt.text)) if end < len(prompt.text) else None
    if positions.end == "first":
        return start, start + 1
    return (end - 1, end) if positions.end == "last" else (start, end)
