"""In what the prompts of two compared conditions differ, by the facts that the banks state of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from runner.config.resolve import Condition, Design
from runner.prompts.banks import Prompt
from runner.prompts.pairing import Item

GROUP = "group"


def factors(design: Design, items: Sequence[Item]) -> dict[str, list[str]]:
    """`A|B` -> names of the facts (and `group`) that differ between the prompts of conditions A and B in any
    item, those that differ in most items first. Of compared conditions that read different prompts, one pair
    for each two prompts; a grid's cells, which share a prompt, are told once.
    """
    found: dict[str, list[str]] = {}
    told: set[tuple[tuple[str, ...], tuple[str, ...]]] = set()
    for one, other in _compared(design):
        prompts = (one.prompt, other.prompt)
        if one.prompt == other.prompt or prompts in told:
            continue
        told.add(prompts)
        differing = _differing(one, other, items)
        if differing:
            found[f"{one.name}|{other.name}"] = differing
    return found


def _compared(design: Design) -> Iterator[tuple[Condition, Condition]]:
    by_name: Mapping[str, Condition] = {condition.name: condition for condition in design.conditions}
    contrasts = design.contrasts
    pairs: list[tuple[str, str]] = []
    if contrasts.family == "each_against_baseline":
        pairs += [(name, contrasts.baseline) for name in by_name if name != contrasts.baseline]
    pairs += [*contrasts.extra, *((one, other) for one, other, _ in contrasts.same)]
    for one, other in pairs:
        if one in by_name and other in by_name:
            yield by_name[one], by_name[other]


def _differing(one: Condition, other: Condition, items: Sequence[Item]) -> list[str]:
    counts: dict[str, int] = {}
    for item in items:
        first, second = (_read(condition, item) for condition in (one, other))
        if first is None or second is None:
            continue
        facts = [{**prompt.facts, GROUP: prompt.group} for prompt in (first, second)]
        for name in facts[0].keys() & facts[1].keys():
            if facts[0][name] != facts[1][name]:
                counts[name] = counts.get(name, 0) + 1
    return sorted(counts, key=lambda name: (-counts[name], name))


def _read(condition: Condition, item: Item) -> Prompt | None:
    """The prompt that a condition reads last."""
    part = condition.prompt[-1]
    if part == "target":
        return item.target
    name = part.removeprefix("donor:")
    return item.donor if name == "donor" else item.roles.get(name)
