"""Whether the parts of `prompts` fit each other, and the banks what is asked of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from backends.writes import SELF
from runner.config.errors import listed, suggestion
from runner.config.inconsistency import Inconsistency, Key
from runner.config.prompts.spec import PromptsSpec, RoleSpec
from runner.config.readouts.readout import TARGET
from runner.config.spec import Spec
from runner.config.writes.values import DONOR, DONORS, OTHER_DONOR, TARGETS
from runner.prompts.banks import Prompt
from runner.prompts.pairing import available, too_few
from runner.prompts.pools import Banks
from runner.prompts.relations import GROUP, Relation, fact_of
from runner.prompts.templates import template_faults

_CHOSEN = ("bank", "groups", "split", "match", "agree", "differ")  # keys of a role that is drawn


def prompts_faults(spec: Spec) -> Iterator[Inconsistency]:
    """What is wrong with `prompts` by itself, no bank read."""
    prompts, model = spec.prompts, spec.model
    if prompts.language != model.language:
        message = f"expected {model.language}, the language of model '{model.name}', got {prompts.language}"
        yield Inconsistency(("prompts", "language"), message)
    yield from _kind(prompts)
    for name, role in prompts.roles.items():
        yield from _role(("prompts", "roles", name), name, role, prompts)
    for key, named in (
        (("prompts", "donors"), prompts.donors),
        (("prompts", "targets"), prompts.targets),
        *((("prompts", "roles", name), role) for name, role in prompts.roles.items()),
    ):
        if named is not None and named.template is not None and named.template not in prompts.templates:
            known = prompts.templates
            message = f"expected a template of the prompts '{prompts.name}' ({listed(known)}), got "
            message += f"'{named.template}'{suggestion(named.template, known)}"
            yield Inconsistency((*key, "template"), message, (("prompts", "templates"),))
    for field, message in template_faults(prompts):
        yield Inconsistency(field, message)


def held_faults(spec: Spec, banks: Banks) -> Iterator[Inconsistency]:
    """Whether the banks hold so many items, and prompts that are related as asked."""
    prompts = spec.prompts
    found = list(_relations(prompts, banks))
    yield from found
    limit = available(prompts, banks)
    if limit is not None and spec.experiment.n > limit and not any(each.key[1] == "donors" for each in found):
        message = too_few(spec.experiment.n, prompts, banks, limit)
        yield Inconsistency(("experiment", "n"), message, (("prompts", "donors"),))


def _kind(prompts: PromptsSpec) -> Iterator[Inconsistency]:
    if prompts.pairs:
        if prompts.donors is None:
            message = "missing: expected a value for 'donors'; prompts without them are kind: items"
            yield Inconsistency(("prompts", "donors"), message)
        return
    if prompts.donors is not None:
        message = "prompts of kind items have no donors; expected roles, or kind: pairs"
        yield Inconsistency(("prompts", "donors"), message)
    if "pairing" in prompts.model_fields_set:
        message = "prompts of kind items are in no pairs, each target is taken once; remove it"
        yield Inconsistency(("prompts", "pairing"), message)


def _role(key: Key, name: str, role: RoleSpec, prompts: PromptsSpec) -> Iterator[Inconsistency]:
    if name in (DONOR, OTHER_DONOR, SELF, TARGET, TARGETS, DONORS):
        what = {TARGET: "prompt", TARGETS: "set", DONORS: "set"}.get(name, "value")
        message = f"'{name}' is the name of a {what} already; give the role another one"
        yield Inconsistency(key, message)
    if role.of is None:
        if role.bank is None:
            message = "missing: expected a bank that the role is drawn from, or of: target"
            yield Inconsistency((*key, "bank"), message)
        return
    if role.of == "donor" and not prompts.pairs:
        yield Inconsistency((*key, "of"), "prompts of kind items have no donors; expected target, got donor")
    given = [field for field in _CHOSEN if field in role.model_fields_set]
    if given:
        message = (
            f"a role that is the item's own {role.of} leaves nothing to choose; expected {listed(given)} or "
            "of, not both"
        )
        yield Inconsistency((*key, given[0]), message)


def _relations(prompts: PromptsSpec, banks: Banks) -> Iterator[Inconsistency]:
    """Relations in facts that no prompt states, or that hold of no prompt and target."""
    related: list[tuple[Key, str, Relation, Sequence[Prompt]]] = [
        (("prompts", "roles", name), f"the role '{name}'", Relation.of(role), banks.roles[name])
        for name, role in prompts.roles.items()
    ]
    if prompts.donors is not None:
        related.append((("prompts", "donors"), "the donors", Relation.of(prompts.donors), banks.donors))
    for key, what, relation, pool in related:
        if not relation or not pool:
            continue
        unknown = [
            *_unstated((*key, "agree"), relation.agree, what, pool, banks.targets),
            *_unstated((*key, "differ"), relation.differ, what, pool, banks.targets),
        ]
        yield from unknown
        if not unknown and not any(relation.among(pool, target) for target in banks.targets):
            first = "agree" if relation.agree else "differ"
            message = (
                f"not one of the {len(pool)} prompts of {what} {relation.words} with any of the "
                f"{len(banks.targets)} targets"
            )
            yield Inconsistency((*key, first), message)


def _unstated(
    key: Key, names: Sequence[str], what: str, pool: Sequence[Prompt], targets: Sequence[Prompt]
) -> Iterator[Inconsistency]:
    for name in names:
        for whose, prompts in ((f"prompts of {what}", pool), ("targets", targets)):
            if any(fact_of(prompt, name) is not None for prompt in prompts):
                continue
            known = (GROUP, *sorted({fact for prompt in prompts for fact in prompt.facts}))
            message = f"not one of the {len(prompts)} {whose} states the fact '{name}'; they state "
            yield Inconsistency(key, f"{message}{listed(known)}{suggestion(name, known)}")
