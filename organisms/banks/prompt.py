"""One line of a prompt bank: a text with the spans and facts that experiments need."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from organisms.grammar import Draw
from organisms.grammar.frames import STOP

# Share of the prompts (or of what must not be shared between splits) in each split.
SPLITS: Mapping[str, float] = {"extract": 0.4, "validate": 0.2, "test": 0.4}
Fact = str | int | float | bool | list[str]


@dataclass(frozen=True)
class Prompt:
    """A line. `tokens` includes <bos>; `roles`: half-open spans of characters in the text."""

    id: str
    group: str
    text: str
    tokens: int
    split: str | None = None
    roles: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    facts: Mapping[str, Fact] = field(default_factory=dict)


def said(words: Sequence[str]) -> str:
    """Words as a text: single spaces, none before a full stop."""
    return " ".join(words).replace(f" {STOP}", STOP)


def prompt(
    name: str,
    group: str,
    words: Sequence[str],
    split: str | None = None,
    roles: Mapping[str, tuple[int, int]] | None = None,
    facts: Mapping[str, Fact] | None = None,
) -> Prompt:
    """A prompt from its words; `roles` are half-open spans of words, stored as spans of characters."""
    spans = {}
    for role, (start, end) in (roles if roles is not None else {}).items():
        before = len(said([*words[:start], "x"])) - 1
        spans[role] = (before, len(said(words[:end])))
    return Prompt(name, group, said(words), len(words) + 1, split, spans, facts if facts is not None else {})


def splits(name: str, things: Sequence[str]) -> dict[str, str]:
    """A split for each thing: SPLITS' shares of the things in a random order."""
    order = Draw(f"splits/{name}").shuffled(things)
    ends, done = {}, 0.0
    for split, share in SPLITS.items():
        done += share
        ends[split] = round(done * len(order))
    return {
        thing: next(split for split, end in ends.items() if place < end) for place, thing in enumerate(order)
    }


def render(prompts: Sequence[Prompt]) -> str:
    """The text of a bank's file: one JSON object a line, without what is empty."""
    lines = [{k: v for k, v in asdict(prompt).items() if v not in (None, {})} for prompt in prompts]
    return "".join(json.dumps(line) + "\n" for line in lines)
