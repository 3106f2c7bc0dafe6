"""Which donor goes with which target: deterministic, and prefix-stable in the number of items."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from runner.config.errors import ConfigurationError, Problem
from runner.config.spec import PromptsSpec
from runner.prompts.banks import Bank, Prompt, find_bank, read_bank

# The donor of a length-matched pair is the nearest in tokens among so many drawn for it: near, and still
# varied.
CANDIDATES = 12


@dataclass(frozen=True)
class Item:
    """One pair with its further donors. group: the target's. occurrence: how often the same (donor, target)
    pair has come before, counting from 0. item_id: the index, zero-padded, e.g. `0007`."""

    item_id: str
    donor: Prompt
    target: Prompt
    roles: Mapping[str, Prompt]
    other_donor: Prompt | None
    occurrence: int

    @property
    def group(self) -> str:
        return self.target.group


@dataclass(frozen=True)
class Pairing:
    """What a set of items really holds. Mean differences are in tokens: donor minus target, and for each role
    role minus donor."""

    asked: int
    items: int
    distinct_donors: int
    distinct_targets: int
    distinct_pairs: int
    donor_minus_target: float
    role_minus_donor: Mapping[str, float]


@dataclass(frozen=True)
class Banks:
    """The prompts that a pairing draws from, groups already chosen."""

    donors: tuple[Prompt, ...]
    targets: tuple[Prompt, ...]
    roles: Mapping[str, tuple[Prompt, ...]]


def read_banks(prompts: PromptsSpec, folders: Sequence[Path]) -> dict[str, Bank]:
    """Every bank that the prompts need, by the name that the YAML uses, searched in the configuration
    folders.

    Raises ConfigurationError with every fault of every bank.
    """
    banks: dict[str, Bank] = {}
    problems: list[Problem] = []
    for name in dict.fromkeys(
        (prompts.donors.bank, prompts.targets.bank, *(r.bank for r in prompts.roles.values()))
    ):
        try:
            banks[name] = read_bank(name, find_bank(name, prompts.language, folders))
        except ConfigurationError as error:
            problems += error.problems
    if problems:
        raise ConfigurationError(problems)
    return banks


def choose(prompts: PromptsSpec, banks: Mapping[str, Bank]) -> Banks:
    """The groups and splits that a YAML asks for. banks: by the name that the YAML uses. Raises
    ConfigurationError for a group that a bank does not have, or a split of which nothing is there."""
    return Banks(
        banks[prompts.donors.bank].only(prompts.donors.groups, prompts.donors.split),
        banks[prompts.targets.bank].only(prompts.targets.groups, prompts.targets.split),
        {name: banks[role.bank].only(role.groups, role.split) for name, role in prompts.roles.items()},
    )


def available(prompts: PromptsSpec, banks: Banks) -> int | None:
    """How many items can be had: the smaller of donors and targets without replacement; no limit (None) with
    it."""
    return None if prompts.pairing.replace else min(len(banks.donors), len(banks.targets))


def pair(
    prompts: PromptsSpec, banks: Mapping[str, Bank], n: int, count_tokens: Callable[[str], int]
) -> list[Item]:
    """The first n items.

    Item i depends on the seed, the banks and i alone, so that a larger n only appends. With replacement,
    donor and target are drawn by hash; without, each prompt is used at most once, in a seeded order (with
    `length_matched` the target decides and takes the nearest donor still free). count_tokens: tokens of a
    text, BOS included; asked once for each text, and only where a length decides. Raises ConfigurationError
    where the banks hold fewer items than n.
    """
    chosen = choose(prompts, banks)
    limit = available(prompts, chosen)
    if limit is not None and n > limit:
        raise ConfigurationError([Problem("prompts", "pairing.replace", too_few(n, chosen))])
    lengths: dict[str, int] = {}

    def length(prompt: Prompt) -> int:
        if prompt.text not in lengths:
            lengths[prompt.text] = count_tokens(prompt.text)
        return lengths[prompt.text]

    seen: Counter[tuple[str, str]] = Counter()
    items = []
    for index, (donor, target) in enumerate(_draw_pairs(prompts, chosen, n, length)):
        roles = {
            name: _role(prompts.seed, name, role.match, index, chosen.roles[name], donor, length)
            for name, role in prompts.roles.items()
        }
        others = [prompt for prompt in chosen.donors if prompt.id != donor.id]
        other = others[_draw(prompts.seed, "other_donor", index, len(others))] if others else None
        occurrence = seen[donor.id, target.id]
        seen[donor.id, target.id] += 1
        items.append(Item(f"{index:04d}", donor, target, roles, other, occurrence))
    return items


def summarise(items: Sequence[Item], asked: int, count_tokens: Callable[[str], int]) -> Pairing:
    """What was really paired: distinct prompts and pairs, and mean differences in length."""
    texts = {prompt.text for item in items for prompt in (item.donor, item.target, *item.roles.values())}
    tokens = {text: count_tokens(text) for text in texts}
    roles = sorted({name for item in items for name in item.roles})
    return Pairing(
        asked=asked,
        items=len(items),
        distinct_donors=len({item.donor.id for item in items}),
        distinct_targets=len({item.target.id for item in items}),
        distinct_pairs=len({(item.donor.id, item.target.id) for item in items}),
        donor_minus_target=_mean([tokens[item.donor.text] - tokens[item.target.text] for item in items]),
        role_minus_donor={
            name: _mean([tokens[item.roles[name].text] - tokens[item.donor.text] for item in items])
            for name in roles
        },
    )


def too_few(n: int, banks: Banks) -> str:
    """The sentence for more items than the banks hold."""
    return (
        f"expected at most {min(len(banks.donors), len(banks.targets))} items without replacement "
        f"({len(banks.donors)} donors, {len(banks.targets)} targets), got {n}"
    )


def _draw_pairs(
    prompts: PromptsSpec, banks: Banks, n: int, length: Callable[[Prompt], int]
) -> list[tuple[Prompt, Prompt]]:
    seed = prompts.seed
    if prompts.pairing.replace:
        pairs = []
        for index in range(n):
            target = banks.targets[_draw(seed, "target", index, len(banks.targets))]
            if prompts.pairing.length_matched:
                order = _order(seed, f"donor/{index}", banks.donors)[:CANDIDATES]
                donor = min(order, key=lambda prompt: abs(length(prompt) - length(target)))
            else:
                donor = banks.donors[_draw(seed, "donor", index, len(banks.donors))]
            pairs.append((donor, target))
        return pairs
    targets = _order(seed, "target", banks.targets)[:n]
    free = _order(seed, "donor", banks.donors)
    if not prompts.pairing.length_matched:
        return list(zip(free[:n], targets, strict=True))
    pairs = []
    for target in targets:
        donor = min(free, key=lambda prompt: abs(length(prompt) - length(target)))
        free.remove(donor)
        pairs.append((donor, target))
    return pairs


def _role(
    seed: int,
    name: str,
    match: str,
    index: int,
    prompts: Sequence[Prompt],
    donor: Prompt,
    length: Callable[[Prompt], int],
) -> Prompt:
    # A donor never stands in for itself where a role draws from the donors' own bank.
    others = [prompt for prompt in prompts if prompt.text != donor.text] or list(prompts)
    if match == "random":
        return others[_draw(seed, f"role/{name}", index, len(others))]
    gap = min(abs(length(prompt) - length(donor)) for prompt in others)
    ties = [prompt for prompt in others if abs(length(prompt) - length(donor)) == gap]
    return ties[_draw(seed, f"role/{name}", index, len(ties))]


def _hash(*parts: object) -> int:
    return int.from_bytes(hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()[:8], "big")


def _draw(seed: int, what: str, index: int, size: int) -> int:
    return _hash(seed, what, index) % size


def _order(seed: int, what: str, prompts: Sequence[Prompt]) -> list[Prompt]:
    return sorted(prompts, key=lambda prompt: _hash(seed, what, prompt.id))


def _mean(values: Sequence[int]) -> float:
    return sum(values) / len(values) if values else 0.0
