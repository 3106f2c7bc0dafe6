"""What no single key can show: whether the parts of a checked configuration fit each other, the model and the
prompts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from backends.positions import PositionError, Positions
from backends.writes import SELF, Write, same_tensor
from runner.config.errors import listed, suggestion
from runner.config.layers import LayerError, resolve_layers
from runner.config.resolve import (
    DONOR,
    OTHER_DONOR,
    Condition,
    WordError,
    resolve_condition,
    resolve_heads,
    resolve_sampling,
    resolve_value,
    resolve_write,
)
from runner.config.spec import READOUT_COLUMNS, ConditionSpec, Spec, WriteSpec
from runner.config.write_rules import broken_rules
from runner.prompts.marks import counted_prompts, overlapping, unmarked
from runner.prompts.pairing import Banks, available, too_few

Key = tuple[str | int, ...]
_REPEATS: Key = ("experiment", "repeats")


@dataclass(frozen=True)
class Inconsistency:
    """What does not fit, and the key under which it is reported. rests_on: other keys that it was found with;
    where one of these is wrong itself, this says nothing."""

    key: Key
    message: str
    rests_on: tuple[Key, ...] = ()


def inconsistencies(spec: Spec, damaged: frozenset[Key]) -> Iterator[Inconsistency]:
    """Everything that does not fit. damaged: paths of conditions (name) and writes (name, write) from which a
    wrong key has been removed already: they are not compared with others, because what they were to be is
    unknown."""
    yield from _model(spec)
    yield from _prompts(spec)
    yield from _length(("sampling",), spec.sampling.max_new_tokens, spec)
    _, conditions, _ = spec.stage
    prefix = _prefix(spec)
    sound: dict[str, Condition] = {}
    for name, body in conditions.items():
        found = list(_condition((*prefix, name), name, body, spec, damaged))
        yield from found
        if not found and not any(key[0] == name for key in damaged):
            sound[name] = resolve_condition(name, body, spec)
    yield from _identical(prefix, sound, spec)
    yield from _contrasts(spec)
    yield from _readouts(spec)


def bank_inconsistencies(spec: Spec, banks: Banks) -> Iterator[Inconsistency]:
    """Whether the banks hold what is asked of them."""
    limit = available(spec.prompts, banks)
    if limit is not None and spec.experiment.n > limit:
        yield Inconsistency(("experiment", "n"), too_few(spec.experiment.n, banks))
    _, conditions, _ = spec.stage
    if len(banks.donors) < 2:
        for name, body in conditions.items():
            for key, write in body.writes.items():
                if (write.value or "").endswith("other_donor"):
                    message = f"expected two donors at least, to take another one; got {len(banks.donors)}"
                    yield Inconsistency((*_prefix(spec), name, key, "value"), message)
    for name, body in conditions.items():
        yield from _roles(name, body, spec, banks)


def _roles(name: str, body: ConditionSpec, spec: Spec, banks: Banks) -> Iterator[Inconsistency]:
    """Whether the prompts mark the spans that the writes of a condition name, and writes at two spans keep
    apart."""
    writes: list[tuple[WriteSpec, Write]] = []
    for key, words in body.writes.items():
        try:
            write = resolve_write(key, words, spec)
        except (WordError, LayerError, PositionError):
            continue  # told already
        if write.positions.kind != "role":
            continue
        writes.append((words, write))
        where = (*_prefix(spec), name, key, "positions")
        if not write.counted_on:
            message = (
                f"a decode write of {words.value or 'zeros'} has no window, so that nothing reads "
                f"{words.positions}; remove it"
            )
            yield Inconsistency(where, message)
        missing = [
            sentence
            for side in write.counted_on
            if (sentence := unmarked(write.positions.role, side, body.prompt, spec.prompts, banks))
            is not None
        ]
        if missing:
            yield Inconsistency(where, "; ".join(dict.fromkeys(missing)))
    own = counted_prompts(SELF, body.prompt, banks)
    for (first_spec, first), (second_spec, second) in combinations(writes, 2):
        if not _same_rank(first_spec, second_spec) or not same_tensor(first, second):
            continue
        shared = overlapping(first, second, own)
        if shared is not None:
            message = (
                f"writes '{first.name}' and '{second.name}' change the same {first.site} where "
                f"'{first.positions.role}' and '{second.positions.role}' overlap, as in prompt "
                f"'{shared.id}'; expected a different order: for each (the lower one first)"
            )
            yield Inconsistency((*_prefix(spec), name, second.name, "order"), message)


def _prefix(spec: Spec) -> Key:
    for name in spec.stages:
        return ("stages", name, "conditions")
    return ("conditions",)


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


def _prompts(spec: Spec) -> Iterator[Inconsistency]:
    prompts, model = spec.prompts, spec.model
    if prompts.language != model.language:
        message = f"expected {model.language}, the language of model '{model.name}', got {prompts.language}"
        yield Inconsistency(("prompts", "language"), message)
    for name in prompts.roles:
        if name in (DONOR, OTHER_DONOR, SELF):
            message = f"'{name}' is the name of a value already; give the role another one"
            yield Inconsistency(("prompts", "roles", name), message)


def _length(key: Key, asked: int | None, spec: Spec) -> Iterator[Inconsistency]:
    context = spec.model.context
    if asked is not None and asked >= context:
        message = f"expected fewer than the {context} positions of model '{spec.model.name}', got {asked}"
        yield Inconsistency((*key, "max_new_tokens"), message, (("model", "context"),))


def _condition(
    key: Key, name: str, body: ConditionSpec, spec: Spec, damaged: frozenset[Key]
) -> Iterator[Inconsistency]:
    writes: list[tuple[WriteSpec, Write]] = []
    for write_name, write in body.writes.items():
        wrong = list(_write((*key, write_name), write, spec, with_heads=(name, write_name) not in damaged))
        yield from wrong
        if (name, write_name) in damaged:
            continue
        broken = [Inconsistency((*key, write_name, field), text) for field, text in broken_rules(write, body)]
        yield from broken
        if write.draws > spec.experiment.repeats:
            message = (
                f"{write.draws} draws need at least {write.draws} repeats, got {spec.experiment.repeats}"
            )
            yield Inconsistency((*key, write_name, "draws"), message, (_REPEATS,))
        if not wrong and not broken:
            writes.append((write, resolve_write(write_name, write, spec)))
    for (first_spec, first), (second_spec, second) in combinations(writes, 2):
        entire = [write for write in (first, second) if write.align in ("whole", "concat")]
        if first.site == second.site == "kv_cache" and entire:
            message = (
                f"kv_cache writes '{first.name}' and '{second.name}': after align {entire[0].align} of "
                f"'{entire[0].name}' the slots are those of another cache; expected no other kv_cache write"
            )
            yield Inconsistency((*key, second.name, "site"), message)
        elif _overlap(first, second) and _same_rank(first_spec, second_spec):
            message = (
                f"writes '{first.name}' and '{second.name}' change the same {first.site} at the same layers, "
                f"phase and positions; expected a different order: for each (the lower one first)"
            )
            yield Inconsistency((*key, second.name, "order"), message)
    if body.recompute and body.replay_last_token:
        message = "expected one or the other: a token is fed again into a cache, and recompute keeps none"
        yield Inconsistency((*key, "replay_last_token"), message)
    greedy = resolve_sampling(body, spec.sampling).temperature == 0
    repeats = spec.experiment.repeats
    if greedy and repeats > 1 and not any(write.draws >= repeats for write in body.writes.values()):
        message = (
            f"greedy decoding gives the same text in all {repeats} repeats of '{name}'; expected repeats: 1, "
            f"a temperature above 0, or a random value with draws: {repeats}"
        )
        yield Inconsistency(_REPEATS, message)
    yield from _length((*key, "sampling"), body.sampling.max_new_tokens, spec)


def _write(key: Key, write: WriteSpec, spec: Spec, *, with_heads: bool) -> Iterator[Inconsistency]:
    try:
        resolve_layers(write.layers, spec.model.layers, spec.reference_depth, spec.model.landmarks)
    except LayerError as error:
        yield Inconsistency((*key, "layers"), str(error))
    try:
        Positions.parse(write.positions)  # whether the prompts mark a role is checked with the banks
    except PositionError as error:
        yield Inconsistency((*key, "positions"), str(error))
    try:
        resolve_value(write, spec.prompts)
    except WordError as error:
        yield Inconsistency((*key, "value"), str(error))
    try:
        if with_heads:  # which heads there are depends on the site, which may be what is wrong
            resolve_heads(write, spec.model)
    except WordError as error:
        yield Inconsistency((*key, "heads"), str(error))


def _same_rank(first: WriteSpec, second: WriteSpec) -> bool:
    """Whether nothing says which of two writes comes first."""
    return None in (first.order, second.order) or first.order == second.order


def _overlap(first: Write, second: Write) -> bool:
    if not same_tensor(first, second):
        return False
    phases = [{"prefill", "decode"} if w.during == "both" else {w.during} for w in (first, second)]
    shared = phases[0] & phases[1]
    if "decode" in shared:
        return True  # both change the new token
    return bool(shared) and not _disjoint(first.positions, second.positions)


def _disjoint(first: Positions, second: Positions) -> bool:
    """Whether two words never name one position, whatever the length of the prompt. Of two spans that is
    for the banks to say (`_roles`)."""
    if first.kind == second.kind == "index":
        return first.count != second.count and (first.count < 0) == (second.count < 0)
    if first.kind == second.kind == "role":
        return first.role != second.role
    if (
        {first.kind, second.kind} == {"first", "last"}
        and first.percent is not None
        and second.percent is not None
    ):
        return first.percent + second.percent < 100
    return False


def _fingerprint(condition: Condition) -> tuple[object, ...]:
    """What a condition does, whatever it and its writes are called."""
    writes = frozenset(replace(write, name="") for write in condition.writes)
    return (condition.prompt, writes, condition.sampling, condition.replay_last_token, condition.recompute)


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
    return sorted(str(write.layers) for write in body.writes.values())


def _contrasts(spec: Spec) -> Iterator[Inconsistency]:
    _, conditions, readouts = spec.stage
    contrasts = spec.contrasts
    if not conditions:
        message = "expected at least one condition, got none"
        yield Inconsistency(_prefix(spec), message, (("stages",), ("conditions",)))
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
    yield from _trends(spec)
    yield from _repeated_pairs([*family, *extra])
    yield from _repeated_pairs(same)  # equivalence is another question than difference: a pair may have both
    known = [name for name in readouts if name in spec.readout] if set(readouts) <= set(spec.readout) else []
    columns = [
        column for name in known or spec.readout for column in READOUT_COLUMNS[spec.readout[name].kind]
    ]
    if contrasts.primary not in columns:
        message = (
            f"expected a column of the readouts ({listed(columns)}), got '{contrasts.primary}'"
            f"{suggestion(contrasts.primary, columns)}"
        )
        yield Inconsistency(("contrasts", "primary"), message)


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


def _readouts(spec: Spec) -> Iterator[Inconsistency]:
    stage, _, readouts = spec.stage
    inside: Key = ("readouts",)
    if stage in spec.stages and spec.stages[stage].readouts is not None:
        inside = ("stages", stage, "readouts")
    if not readouts:
        yield Inconsistency(
            inside, f"expected at least one readout ({listed(spec.readout)}), got an empty list"
        )
    for index, name in enumerate(readouts):
        if name in readouts[:index]:
            yield Inconsistency((*inside, index), f"readout '{name}' is listed twice; remove one")
        if name not in spec.readout:
            message = (
                f"expected a readout ({listed(spec.readout)}), got '{name}'{suggestion(name, spec.readout)}"
            )
            yield Inconsistency((*inside, index), message)
