"""Whether the writes of a condition fit the model, each other and the prompts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import combinations

from backends.positions import FORMS, PositionError, Positions
from backends.writes import SELF, Write, same_tensor
from runner.config.errors import nearest
from runner.config.inconsistency import Inconsistency, Key
from runner.config.layers import LayerError
from runner.config.model_faults import model_faults
from runner.config.resolve import (
    UnderError,
    layers_of,
    resolve_heads,
    resolve_under,
    resolve_write,
)
from runner.config.spec import ConditionSpec, Spec, WriteSpec
from runner.config.writes.features import FeatureError, SaeFeatures, resolve_features, unreached_values
from runner.config.writes.rules import broken_rules
from runner.config.writes.values import (
    OTHER_DONOR,
    WordError,
    has_source,
    layer_named,
    reads_artefact,
    resolve_value,
    value_word,
)
from runner.prompts.marks import counted_prompts, overlapping, spans_read, unmarked
from runner.prompts.pairing import Banks
from runner.prompts.sets import set_faults

# What resolving a word that means nothing raises.
WRONG = (WordError, LayerError, PositionError, FeatureError)
_REPEATS: Key = ("experiment", "repeats")
_QUOTES = "'\""


def write_faults(
    key: Key, name: str, body: ConditionSpec, spec: Spec, damaged: frozenset[Key]
) -> Iterator[Inconsistency]:
    """What is wrong with the writes of the condition `name`, found under `key`. damaged: writes (condition,
    write) from which a wrong key was removed, so that what they were to be is unknown."""
    writes: list[tuple[WriteSpec, Write]] = []
    for write_name, write in body.writes.items():
        hurt = (name, write_name) in damaged
        wrong = list(_write((*key, write_name), name, write, spec, hurt=hurt))
        yield from wrong
        if hurt:
            continue
        broken = [Inconsistency((*key, write_name, field), text) for field, text in broken_rules(write, body)]
        yield from broken
        if write.draws > spec.experiment.repeats:
            message = (
                f"{write.draws} draws need at least {write.draws} repeats, got {spec.experiment.repeats}"
            )
            yield Inconsistency((*key, write_name, "draws"), message, (_REPEATS,))
        resolved = None if wrong or broken else _resolved(write_name, write, name, spec)
        if resolved is None:
            continue
        writes.append((write, resolved))
        for field, message in model_faults(resolved, spec.model):
            yield Inconsistency((*key, write_name, field), message, (("model", "architecture"),))
        try:
            unreached_values(resolved)  # which reads the weights of its features
        except FeatureError as error:
            yield Inconsistency((*key, write_name, error.field), str(error))
    for (first_spec, first), (second_spec, second) in combinations(writes, 2):
        yield from _together(key, (first_spec, first), (second_spec, second))


def prompt_faults(name: str, body: ConditionSpec, spec: Spec, banks: Banks) -> Iterator[Inconsistency]:
    """Whether the prompts have what the writes of the condition `name` name of them - spans, texts, groups,
    another donor - and writes at two spans keep apart."""
    key = ("conditions", name)
    chat = spec.model.chat_template
    writes: list[tuple[WriteSpec, Write]] = []
    for write_name, words in body.writes.items():
        where = (*key, write_name)
        value = words.value if isinstance(words.value, str) else ""
        if len(banks.donors) < 2 and value.endswith(OTHER_DONOR):
            message = f"expected two donors at least, to take another one; got {len(banks.donors)}"
            yield Inconsistency((*where, "value"), message)
        write = _resolved(write_name, words, name, spec)
        if write is None:
            continue  # told already
        missing = set_faults(write, banks, chat)
        if missing is not None:
            yield Inconsistency((*where, "value"), missing)
        yield from _spans(where, write, words, body, spec, banks)
        if write.positions.span:
            writes.append((words, write))
    own = counted_prompts(SELF, body.prompt, banks)
    for (first_spec, first), (second_spec, second) in combinations(writes, 2):
        if not _same_rank(first_spec, second_spec) or not same_tensor(first, second):
            continue
        shared = overlapping(first, second, own)
        if shared is not None:
            message = (
                f"writes '{first.name}' and '{second.name}' change the same {first.tensor} where "
                f"'{_called(first.positions)}' and '{_called(second.positions)}' overlap, as in prompt "
                f"'{shared.id}'; expected a different order: for each (the lower one first)"
            )
            yield Inconsistency((*key, second.name, "order"), message)


def draws_of(body: ConditionSpec, conditions: Mapping[str, ConditionSpec], seen: tuple[str, ...] = ()) -> int:
    """The most random draws among the writes of a condition, and of those that sources are read under."""
    most = 1
    for write in body.writes.values():
        most = max(most, write.draws)
        under = write.under
        if under is not None and under in conditions and under not in seen:
            most = max(most, draws_of(conditions[under], conditions, (*seen, under)))
    return most


def _write(key: Key, name: str, write: WriteSpec, spec: Spec, *, hurt: bool) -> Iterator[Inconsistency]:
    """What is wrong with single words of a write. hurt: whether a wrong key was removed from it."""
    features: SaeFeatures | None = None
    try:
        features = resolve_features(write, spec.model)
    except FeatureError as error:
        yield Inconsistency((*key, error.field), str(error))
    try:
        if not hurt or write.layers is not None:  # whether there are to be any depends on the site
            layers_of(write, spec, features)
    except LayerError as error:
        yield Inconsistency((*key, "layers"), str(error))
    misread = False  # what is read of an artefact is told where it is said
    for field, positions in (
        ("positions", write.positions),
        ("keys", write.keys),
        ("from_positions", write.from_positions),
    ):
        try:  # whether the prompts have a span is checked with the banks
            if positions is not None:
                Positions.parse(positions)
        except PositionError as error:
            misread = misread or field == "from_positions"
            yield Inconsistency((*key, field), f"{error}{_nearest_positions(positions or '')}")
    try:
        if write.from_layer is not None:
            layer_named(write.from_layer, spec)
    except LayerError as error:
        misread = True
        yield Inconsistency((*key, "from_layer"), str(error))
    try:
        if (not hurt or _plain_value(write)) and not (misread and reads_artefact(write)):
            resolve_value(write, spec)
    except WordError as error:
        yield Inconsistency((*key, "value"), str(error))
    try:
        if not hurt:  # which heads there are depends on the site, which may be what is wrong
            resolve_heads(write, spec.model)
    except WordError as error:
        yield Inconsistency((*key, "heads"), str(error))
    try:
        if write.under is not None and has_source(write):
            resolve_under(write.under, spec, (name,))
    except UnderError as error:
        yield Inconsistency((*key, "under"), str(error))
    except WRONG:
        pass  # told of that condition


def _nearest_positions(word: str) -> str:
    """The word for positions that one which names none comes near, to be put behind what is wrong."""
    head, colon, rest = word.partition(":")
    if head == "token":
        candidate = f"token:'{rest.strip(_QUOTES)}'"
    elif re.fullmatch(r"-?\d+", word):
        candidate = f"index:{word}"
    else:
        known = nearest(head, dict.fromkeys(form.partition(":")[0] for form in FORMS))
        candidate = f"{known}{colon}{rest.lower()}"
    try:
        Positions.parse(candidate)
    except PositionError:
        return ""
    return f"; did you mean {candidate}?"


def _plain_value(write: WriteSpec) -> bool:
    """Whether what its value means rests on nothing but the prompts: a number belongs to an operation, and
    the width of a vector to a site."""
    return isinstance(write.value, str | None) and not any(
        part in ("file", "artefact") for part in (write.value or "").split(":")
    )


def _resolved(write_name: str, write: WriteSpec, name: str, spec: Spec) -> Write | None:
    try:
        return resolve_write(write_name, write, spec, (name,))
    except WRONG:
        return None


def _together(
    key: Key, one: tuple[WriteSpec, Write], other: tuple[WriteSpec, Write]
) -> Iterator[Inconsistency]:
    """Whether two writes of one condition can be there together."""
    (first_spec, first), (second_spec, second) = one, other
    entire = [write for write in (first, second) if write.align in ("whole", "concat")]
    sites = {first.site, second.site}
    if sites == {"kv_cache"} and entire:
        message = (
            f"kv_cache writes '{first.name}' and '{second.name}': after align {entire[0].align} of "
            f"'{entire[0].name}' the slots are those of another cache; expected no other kv_cache write"
        )
        yield Inconsistency((*key, second.name, "site"), message)
    elif sites == {"kv_cache", "attention_edge"} and entire:
        message = (
            f"writes '{first.name}' and '{second.name}': edges are between positions of the prompt, which "
            f"align {entire[0].align} of '{entire[0].name}' moves or takes away; expected one or the other"
        )
        yield Inconsistency((*key, second.name, "site"), message)
    elif _overlap(first, second) and _same_rank(first_spec, second_spec):
        message = (
            f"writes '{first.name}' and '{second.name}' change the same {first.tensor} at the same layers, "
            f"phase and positions; expected a different order: for each (the lower one first)"
        )
        yield Inconsistency((*key, second.name, "order"), message)


def _spans(
    key: Key, write: Write, words: WriteSpec, body: ConditionSpec, spec: Spec, banks: Banks
) -> Iterator[Inconsistency]:
    """Whether the prompts have the parts that a write rests on."""
    if write.positions.span and not write.counted_on and write.value.kind != "mean":
        message = (
            f"a decode write of {value_word(words) or 'zeros'} has no window, so that nothing reads "
            f"{words.positions}; remove it"
        )
        yield Inconsistency((*key, "positions"), message)
    missing: dict[str, dict[str, None]] = {}
    own = [(write.positions, side) for side in write.counted_on if write.positions.span]
    for positions, side in spans_read(write):
        field = "positions" if (positions, side) in own else "under"
        if positions is write.keys:
            field = "keys"
        elif positions is write.source_positions:
            field = "from_positions"
        sentence = unmarked(positions, side, body.prompt, spec.prompts, banks, chat=spec.model.chat_template)
        if sentence is not None:
            missing.setdefault(field, {})[sentence] = None
    for field, sentences in missing.items():
        yield Inconsistency((*key, field), "; ".join(sentences))


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
    """Whether two words never name one position, whatever the length of the prompt. Of two different spans
    that is for the banks to say (`prompt_faults`)."""
    if first.kind == second.kind == "index":
        return first.count != second.count and (first.count < 0) == (second.count < 0)
    if first.span and second.span:
        return first.span != second.span
    if (
        {first.kind, second.kind} == {"first", "last"}
        and first.percent is not None
        and second.percent is not None
    ):
        return first.percent + second.percent < 100
    return False


def _called(positions: Positions) -> str:
    return positions.role or positions.word
