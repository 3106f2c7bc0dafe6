"""What no single key can show: whether the parts of a checked configuration fit each other, the model and the
prompts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

from runner.config.checks import contrast_faults
from runner.config.errors import listed, suggestion
from runner.config.inconsistency import Inconsistency, Key
from runner.config.prompts.rules import held_faults, prompts_faults
from runner.config.readouts.faults import fact_faults, readout_faults
from runner.config.readouts.readout import decodes
from runner.config.resolve import Condition, layer_words, resolve_condition, resolve_sampling
from runner.config.spec import ConditionSpec, Spec
from runner.config.writes.checks import WRONG, draws_of, prompt_faults, write_faults
from runner.config.writes.values import DONOR
from runner.config.writes.weights import WeightsError, resolve_weights
from runner.prompts.pools import Banks

_REPEATS: Key = ("experiment", "repeats")


def inconsistencies(spec: Spec, damaged: frozenset[Key]) -> Iterator[Inconsistency]:
    """Everything that does not fit. damaged: paths of conditions (name) and writes (name, write) from which a
    wrong key has been removed already: they are not compared with others, because what they were to be is
    unknown."""
    yield from _model(spec)
    yield from _backend(spec)
    yield from prompts_faults(spec)
    yield from _length(("sampling",), spec.sampling.max_new_tokens, spec)
    _, conditions, _ = spec.stage
    prefix = ("conditions",)
    sound: dict[str, Condition] = {}
    for name, body in conditions.items():
        found = list(_condition((*prefix, name), name, body, spec, damaged))
        yield from found
        if not found and not any(key[0] == name for key in damaged):
            with suppress(*WRONG):  # of a condition that it rests on, which is told there
                sound[name] = resolve_condition(name, body, spec)
    yield from _identical(prefix, sound, spec)
    yield from _contrasts(spec)
    for key, message in readout_faults(spec):
        listed_there = key[-1] if isinstance(key[-1], int) else None
        named: Key = () if listed_there is None else ("readout", spec.stage[2][listed_there])
        yield Inconsistency(key, message, (named,) if named else ())
    for key, message in contrast_faults(spec):
        yield Inconsistency(key, message, (("readout",),))


def bank_inconsistencies(spec: Spec, banks: Banks) -> Iterator[Inconsistency]:
    """Whether the banks hold what is asked of them."""
    yield from held_faults(spec, banks)
    _, conditions, _ = spec.stage
    for name, body in conditions.items():
        yield from prompt_faults(name, body, spec, banks)
    for key, message in fact_faults(spec, banks):
        yield Inconsistency(key, message)


def _model(spec: Spec) -> Iterator[Inconsistency]:
    model = spec.model
    if model.heads % model.kv_heads:
        message = f"expected a divisor of the {model.heads} query heads, got {model.kv_heads}"
        yield Inconsistency(("model", "kv_heads"), message)
    for name, layer in model.landmarks.items():
        if not 0 <= layer < model.layers:
            message = f"expected a layer from 0 to {model.layers - 1} (absolute, of this model), got {layer}"
            yield Inconsistency(("model", "landmarks", name), message)
    if model.source == "hub":
        for key, value in (("id", model.id), ("revision", model.revision)):
            if value is None:
                yield Inconsistency(("model", key), f"expected the {key} of the model on the hub, got null")


def _backend(spec: Spec) -> Iterator[Inconsistency]:
    backend = spec.backend
    if backend.workers is None or backend.workers == 1:
        return
    one = f"device {backend.device}" if backend.device.startswith("cuda") else None
    if backend.device_map is not None:
        one = f"device_map {backend.device_map}"
    if one is not None:
        message = (
            f"expected 1 or null with {one}: its batches run one after the other, and larger ones are what "
            f"keeps it busy; got {backend.workers}"
        )
        yield Inconsistency(("backend", "workers"), message)


def _length(key: Key, asked: int | None, spec: Spec) -> Iterator[Inconsistency]:
    context = spec.model.context
    if asked is not None and asked >= context:
        message = f"expected fewer than the {context} positions of model '{spec.model.name}', got {asked}"
        yield Inconsistency((*key, "max_new_tokens"), message, (("model", "context"),))


def _condition(
    key: Key, name: str, body: ConditionSpec, spec: Spec, damaged: frozenset[Key]
) -> Iterator[Inconsistency]:
    yield from write_faults(key, name, body, spec, damaged)
    asked = body.prompt.partition("+")[0].partition(":")[2]
    if asked and asked not in spec.prompts.roles:
        known = spec.prompts.roles
        message = f"expected a role of the prompts '{spec.prompts.name}' ({listed(known)}), got '{asked}'"
        yield Inconsistency((*key, "prompt"), message + suggestion(asked, known))
    if body.prompt.split("+")[0] == DONOR and not spec.prompts.pairs:
        yield Inconsistency((*key, "prompt"), spec.prompts.no_donors(body.prompt))
    if body.weights is not None:
        try:
            resolve_weights(body.weights, spec)
        except WeightsError as error:
            yield Inconsistency((*key, "weights", error.field), str(error))
    if body.recompute and body.replay_last_token:
        message = "expected one or the other: a token is fed again into a cache, and recompute keeps none"
        yield Inconsistency((*key, "replay_last_token"), message)
    greedy = resolve_sampling(body, spec.sampling).temperature == 0
    repeats = spec.experiment.repeats
    if (greedy or not decodes(spec)) and repeats > 1 and draws_of(body, spec.stage[1]) < repeats:
        same = f"in all {repeats} repeats of '{name}'; expected repeats: 1,"
        random = f"a random value with draws: {repeats}"
        message = f"greedy decoding gives the same text {same} a temperature above 0, or {random}"
        if not decodes(spec):
            message = f"nothing is drawn by readouts of tensors alone: they are the same {same} or {random}"
        yield Inconsistency(_REPEATS, message)
    yield from _length((*key, "sampling"), body.sampling.max_new_tokens, spec)


def _fingerprint(condition: Condition) -> tuple[object, ...]:
    """What a condition does, whatever it and its writes are called."""
    writes = frozenset(replace(write, name="") for write in condition.writes)
    return (
        condition.prompt,
        writes,
        condition.weights,
        condition.sampling,
        condition.replay_last_token,
        condition.recompute,
    )


def _identical(prefix: Key, sound: Mapping[str, Condition], spec: Spec) -> Iterator[Inconsistency]:
    _, bodies, _ = spec.stage
    for name, body in bodies.items():
        other = body.same_as
        if other is None:
            continue
        if other not in bodies or other == name:
            known = [n for n in bodies if n != name]
            message = f"expected another condition ({listed(known)}), got '{other}'{suggestion(other, known)}"
            yield Inconsistency((*prefix, name, "same_as"), message)
        elif name in sound and other in sound and _fingerprint(sound[name]) != _fingerprint(sound[other]):
            message = f"expected the writes, sampling and prompt of '{other}', but they resolve differently"
            yield Inconsistency((*prefix, name, "same_as"), message)
    first_of: dict[tuple[object, ...], str] = {}
    for name, condition in sound.items():
        mark = _fingerprint(condition)
        first = first_of.setdefault(mark, name)
        if first == name or condition.same_as is not None or sound[first].same_as is not None:
            continue
        message = f"conditions '{first}' and '{name}' resolve to the same writes, sampling and prompt"
        if _layer_words(bodies[first]) != _layer_words(bodies[name]) and spec.reference_depth is not None:
            message += (
                f": their layers fall together because reference_depth {spec.reference_depth} is read on "
                f"{spec.model.layers} layers"
            )
        message += f"; change one, or say same_as: {first} if that is meant"
        yield Inconsistency((*prefix, name), message)


def _layer_words(body: ConditionSpec) -> list[str]:
    return sorted(str(layer_words(write)) for write in body.writes.values())


def _contrasts(spec: Spec) -> Iterator[Inconsistency]:
    _, conditions, _ = spec.stage
    contrasts = spec.contrasts
    if not conditions:
        message = "expected at least one condition, got none"
        yield Inconsistency(("conditions",), message, (("stages",), ("conditions",)))
        return
    extra: list[tuple[Key, tuple[str, str]]] = [
        (("contrasts", "extra", index), pair) for index, pair in enumerate(contrasts.extra)
    ]
    same: list[tuple[Key, tuple[str, str]]] = [
        (("contrasts", "same", index), (first, second))
        for index, (first, second, _) in enumerate(contrasts.same)
    ]
    named = [((*key, side), pair[side]) for key, pair in (*extra, *same) for side in (0, 1)]
    family: list[tuple[Key, tuple[str, str]]] = []
    if contrasts.family == "each_against_baseline":
        named.append((("contrasts", "baseline"), contrasts.baseline))
        others = [name for name in conditions if name != contrasts.baseline]
        family = [(("contrasts", "family"), (name, contrasts.baseline)) for name in others]
    for key, name in named:
        if name not in conditions:
            message = (
                f"expected a condition ({listed(conditions)}), got '{name}'{suggestion(name, conditions)}"
            )
            yield Inconsistency(key, message)
    yield from _positive_control(spec)
    yield from _trends(spec)
    yield from _repeated_pairs([*family, *extra])
    yield from _repeated_pairs(same)  # equivalence is another question than difference: a pair may have both


def _positive_control(spec: Spec) -> Iterator[Inconsistency]:
    """What a suggested margin rests on: a condition, the baseline that it is held against, and one or the
    other margin for every pair of `same`."""
    _, conditions, _ = spec.stage
    contrasts, key = spec.contrasts, ("contrasts", "positive_control")
    control, baseline = contrasts.positive_control, contrasts.baseline
    if control is None:
        for index, (_, _, margin) in enumerate(contrasts.same):
            if margin.margin is None:
                message = (
                    "expected a margin, [a, b, {margin: 0.6}], or contrasts.positive_control, a condition of "
                    "whose effect a third is the margin"
                )
                yield Inconsistency(("contrasts", "same", index), message)
        return
    offered = [name for name in conditions if name != baseline]
    if control not in offered:
        message = (
            f"expected a condition other than the baseline ({listed(offered)}), got '{control}'"
            f"{suggestion(control, offered)}"
        )
        yield Inconsistency(key, message)
    elif baseline not in conditions:
        yield Inconsistency(key, f"needs contrasts.baseline, and there is no condition '{baseline}'")


def _trends(spec: Spec) -> Iterator[Inconsistency]:
    _, conditions, _ = spec.stage
    for index, names in enumerate(spec.contrasts.trends):
        key: Key = ("contrasts", "trends", index)
        for name in names:
            if name not in conditions:
                message = (
                    f"expected conditions or a grid ({listed(conditions)}), got '{name}'"
                    f"{suggestion(name, conditions)}"
                )
                yield Inconsistency(key, message)
        if len(set(names)) < max(3, len(names)):
            message = (
                f"expected three or more different conditions in the order of a dose, got {listed(names)}"
            )
            yield Inconsistency(key, message)


def _repeated_pairs(pairs: Sequence[tuple[Key, tuple[str, str]]]) -> Iterator[Inconsistency]:
    """A comparison that is made twice counts twice in the correction for many comparisons."""
    before: dict[frozenset[str], Key] = {}
    for key, (first, second) in pairs:
        if first == second:
            yield Inconsistency(key, f"expected two conditions, got '{first}' twice")
            continue
        earlier = before.setdefault(frozenset((first, second)), key)
        if earlier == key:
            continue
        where = ".".join(map(str, earlier))
        if earlier == ("contrasts", "family"):
            where += ", which compares every condition with the baseline"
        yield Inconsistency(key, f"'{first}' and '{second}' are compared already by {where}; remove one")
