"""Which prompts make an item: deterministic, and prefix-stable in the number of items."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from runner.config.errors import ConfigurationError, Problem
from runner.config.prompts.spec import PromptsSpec, RoleSpec
from runner.prompts.banks import Bank, Prompt
from runner.prompts.draws import draw, in_order
from runner.prompts.matching import maximum_matching
from runner.prompts.pools import Banks as Banks
from runner.prompts.pools import choose as choose
from runner.prompts.pools import read_banks as read_banks
from runner.prompts.relations import Relation, same

# The donor of a length-matched pair is the nearest in tokens among so many drawn for it: near, and still
# varied.
CANDIDATES = 12

Length = Callable[[Prompt], int]


@dataclass(frozen=True)
class Item:
    """One target with its donor and further prompts. group: the target's. occurrence: how often the same
    (donor, target) pair has come before, counting from 0. item_id: the index, zero-padded, e.g. `0007`.

    Where items have no donors, the target stands as its own, so that streams and tables are those of a pair;
    no write reads it. missing: roles for which no prompt was there, with the reason.
    """

    item_id: str
    donor: Prompt
    target: Prompt
    roles: Mapping[str, Prompt]
    other_donor: Prompt | None
    occurrence: int
    missing: Mapping[str, str] = field(default_factory=dict)

    @property
    def group(self) -> str:
        return self.target.group


@dataclass(frozen=True)
class Pairing:
    """What a set of items really holds. Mean differences are in tokens: donor minus target, and for each role
    that any item has role minus donor."""

    asked: int
    items: int
    distinct_donors: int
    distinct_targets: int
    distinct_pairs: int
    donor_minus_target: float
    role_minus_donor: Mapping[str, float]


def available(prompts: PromptsSpec, banks: Banks) -> int | None:
    """How many items can be had; no limit (None) where prompts recur.

    Of items the targets; of pairs without replacement as many as donors and targets give, or with `agree` or
    `differ` as many as fit at once.
    """
    if not prompts.pairs:
        return len(banks.targets)
    if prompts.pairing.replace or prompts.donors is None:
        return None
    return sum(1 for _ in _once_each(prompts, banks, None))


def pair(
    prompts: PromptsSpec, banks: Mapping[str, Bank], n: int, count_tokens: Callable[[str], int]
) -> list[Item]:
    """The first n items.

    Item i depends on the seed, the banks and i alone, so that a larger n only appends. Of kind `items` each
    target is taken once, in a seeded order. Of pairs with replacement, target and donor are drawn by hash,
    the donor among those that agree and differ as asked (targets for which there is none are not drawn);
    without, each prompt is used at most once, in a seeded order (with `length_matched` the target decides and
    takes the nearest donor still free). Where donors are to agree or differ, all the pairs that can be had at
    once are made first, whatever n, and the first n of them taken. Roles are drawn the same way; an item for
    which a role has no prompt says so in `missing`.

    count_tokens: tokens of a text as written, BOS included; asked once for each text, and only where a length
    decides. Raises ConfigurationError where the banks hold fewer items than n, or a template cannot be filled
    in.
    """
    chosen = choose(prompts, banks)
    lengths: dict[str, int] = {}

    def length(prompt: Prompt) -> int:
        if prompt.text not in lengths:
            lengths[prompt.text] = count_tokens(prompt.text)
        return lengths[prompt.text]

    pairs = _draw_pairs(prompts, chosen, n, length)
    if len(pairs) < n:
        key = "pairing.replace" if prompts.pairs else "targets"
        raise ConfigurationError([Problem("prompts", key, too_few(n, prompts, chosen, len(pairs)))])
    relation = Relation() if prompts.donors is None else Relation.of(prompts.donors)
    written = {
        name: {prompt.id: prompt for prompt in chosen.roles[name]}
        for name, role in prompts.roles.items()
        if role.of is not None
    }
    seen: Counter[tuple[str, str]] = Counter()
    items = []
    for index, (donor, target) in enumerate(pairs):
        roles, missing = dict[str, Prompt](), dict[str, str]()
        for name, role in prompts.roles.items():
            if role.of is not None:
                found = written[name].get((target if role.of == "target" else donor).id)
            else:
                found = _role(prompts.seed, name, role, index, chosen.roles[name], donor, target, length)
            if found is None:
                missing[name] = f"no prompt of the role '{name}' {Relation.of(role).words}"
            else:
                roles[name] = found
        fitting = relation.among(chosen.donors, target) if relation else chosen.donors
        others = [prompt for prompt in fitting if prompt.id != donor.id]
        other = others[draw(prompts.seed, "other_donor", index, len(others))] if others else None
        occurrence = seen[donor.id, target.id]
        seen[donor.id, target.id] += 1
        items.append(Item(f"{index:04d}", donor, target, roles, other, occurrence, missing))
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
            name: _mean(
                [
                    tokens[item.roles[name].text] - tokens[item.donor.text]
                    for item in items
                    if name in item.roles
                ]
            )
            for name in roles
        },
    )


def too_few(n: int, prompts: PromptsSpec, banks: Banks, held: int) -> str:
    """The sentence for more items than the banks hold, which is `held`."""
    if not prompts.pairs:
        return f"expected at most {held} items, which is how many targets there are, each once; got {n}"
    fitting = ""
    if prompts.donors is not None and (relation := Relation.of(prompts.donors)):
        fitting = f"; a donor {relation.words} with its target"
    return (
        f"expected at most {held} items without replacement ({len(banks.donors)} donors, "
        f"{len(banks.targets)} targets{fitting}), got {n}"
    )


def _draw_pairs(prompts: PromptsSpec, banks: Banks, n: int, length: Length) -> list[tuple[Prompt, Prompt]]:
    seed = prompts.seed
    if not prompts.pairs:
        return [(target, target) for target in in_order(seed, "target", banks.targets)[:n]]
    if prompts.donors is None:
        return []
    matched = prompts.pairing.length_matched
    if not prompts.pairing.replace:
        found = _once_each(prompts, banks, length if matched else None)
        return [each for each, _ in zip(found, range(n), strict=False)]
    relation = Relation.of(prompts.donors)
    fitting: dict[str, Sequence[Prompt]] = {}
    targets: Sequence[Prompt] = banks.targets
    if relation:
        fitting = {target.id: relation.among(banks.donors, target) for target in targets}
        targets = [target for target in targets if fitting[target.id]]
    pairs = []
    for index in range(n if targets else 0):
        target = targets[draw(seed, "target", index, len(targets))]
        donors = fitting.get(target.id, banks.donors)
        if matched:
            order = in_order(seed, f"donor/{index}", donors)[:CANDIDATES]
            donor = _nearest(order, target, length)
        else:
            donor = donors[draw(seed, "donor", index, len(donors))]
        pairs.append((donor, target))
    return pairs


def _once_each(prompts: PromptsSpec, banks: Banks, length: Length | None) -> Iterator[tuple[Prompt, Prompt]]:
    """Pairs without replacement. length: of a prompt, where the nearest donor in tokens is taken."""
    assert prompts.donors is not None
    relation = Relation.of(prompts.donors)
    targets = in_order(prompts.seed, "target", banks.targets)
    if relation:
        yield from _related(prompts.seed, relation, banks.donors, targets, length)
        return
    free = in_order(prompts.seed, "donor", banks.donors)
    for target in targets[: len(free)]:
        donor = free[0] if length is None else _nearest(free, target, length)
        free.remove(donor)
        yield donor, target


def _related(
    seed: int, relation: Relation, donors: Sequence[Prompt], targets: Sequence[Prompt], length: Length | None
) -> Iterator[tuple[Prompt, Prompt]]:
    """As many pairs of which the relation holds as can be had when no prompt recurs."""
    preferred: dict[str, list[str]] = {}
    for target in targets:
        order = in_order(seed, f"donor/{target.id}", relation.among(donors, target))
        if length is not None:
            order.sort(key=lambda prompt: abs(length(prompt) - length(target)))
        preferred[target.id] = [donor.id for donor in order]
    held, by_id = maximum_matching(preferred), {donor.id: donor for donor in donors}
    for target in targets:
        if target.id in held:
            yield by_id[held[target.id]], target


def _nearest(prompts: Sequence[Prompt], to: Prompt, length: Length) -> Prompt:
    return min(prompts, key=lambda prompt: abs(length(prompt) - length(to)))


def _role(
    seed: int,
    name: str,
    role: RoleSpec,
    index: int,
    prompts: Sequence[Prompt],
    donor: Prompt,
    target: Prompt,
    length: Length,
) -> Prompt | None:
    """The prompt of a role that is drawn from a bank; None where none fits."""
    relation = Relation.of(role)
    # A donor never stands in for itself where a role draws from the donors' own bank.
    others = [prompt for prompt in prompts if not same(prompt, donor)]
    if relation:
        others = relation.among(others, target)
    elif not others:
        others = list(prompts)
    if not others:
        return None
    if role.match == "random":
        return others[draw(seed, f"role/{name}", index, len(others))]
    gap = min(abs(length(prompt) - length(donor)) for prompt in others)
    ties = [prompt for prompt in others if abs(length(prompt) - length(donor)) == gap]
    return ties[draw(seed, f"role/{name}", index, len(ties))]


def _mean(values: Sequence[int]) -> float:
    return sum(values) / len(values) if values else 0.0
