"""What every trial of a stage is, made when it is asked for: prompts tokenised once, and once for all trials
that read the same what they read; once for all items of a group what is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache

from backends.contract import ModelInfo
from backends.measures import Probe
from backends.positions import PositionError, Positions, Span
from backends.rowplan import plan_for
from backends.rows import Row
from backends.tokenizer import Tokenizer
from backends.writes import SELF, Constant, Write
from runner.config.resolve import Condition, Design
from runner.config.writes.vectors import NoVector, for_group
from runner.config.writes.weights import weights_for
from runner.keys import (
    KeyText,
    Read,
    Setting,
    Written,
    compact,
    key_text,
    roles_read,
    sampling_stream,
    value_stream,
)
from runner.prompts.asked import Asker
from runner.prompts.banks import Prompt
from runner.prompts.marks import spans_read
from runner.prompts.pairing import Item
from runner.prompts.spans import SpanFinder

NO_SPLIT = "all"  # what a trial's split is where the bank gives its target none
KEPT = 1024  # readings, and trials without their repeat, that are kept for the next ones
Ids = tuple[int, ...]


@dataclass(frozen=True)
class Trial:
    """One (condition, item, repeat). row: what the backend runs; invalid: why it cannot be run, else None.
    split: the target's. tokens, continuations, positions: what its probes read, by their names. more: the
    most tokens that come after its prompt, generated or fixed. words: what its text is searched for, by
    readout."""

    key: str
    condition: str
    item: str
    repeat: int
    donor: str
    target: str
    group: str
    row: Row
    donor_ids: Mapping[str, Ids]
    invalid: str | None
    split: str = NO_SPLIT
    tokens: Mapping[str, Ids] = field(default_factory=dict)
    continuations: Mapping[str, Ids] = field(default_factory=dict)
    positions: Mapping[str, int] = field(default_factory=dict)
    more: int = 0
    words: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Reading:
    """What an item's trials read in all conditions that read alike. pattern: everything that decides which
    positions of them are read and written, equal for equal ones. text: the same as keys have it."""

    target: Ids
    donor: Ids
    prompt: Ids
    sources: Mapping[str, Ids]
    spans: Mapping[str, Span]
    donor_ids: Mapping[str, Ids]
    tokens: Mapping[str, Ids]
    continuations: Mapping[str, Ids]
    positions: Mapping[str, int]
    words: Mapping[str, tuple[str, ...]]
    fault: str | None
    value_stream: int
    pattern: tuple[object, ...]
    text: Read


@dataclass(frozen=True)
class Writing:
    """What a condition writes in the items of a group. lacking: the vector that it does not have for them;
    placed: equal where two write the same positions."""

    writes: tuple[Write, ...]
    weights: Constant | None
    lacking: str | None
    text: Written
    placed: int


@dataclass(frozen=True)
class Face:
    """A trial without its repeat. row: with a stream and a draw of 0."""

    reading: Reading
    row: Row
    text: KeyText
    invalid: str | None
    more: int


@dataclass(frozen=True)
class _Condition:
    """What of a condition is the same for every item. alike: conditions of one number read alike."""

    condition: Condition
    roles: tuple[str, ...]
    parts: tuple[str, ...]
    spans: tuple[tuple[Positions, str], ...]
    sampling: str
    alike: int


class Layout:
    """The trials of a stage. info: of the model that runs them.

    asker.problems: what is wrong with words of readouts, of the trials that have been made.
    """

    def __init__(
        self, design: Design, items: Sequence[Item], tokenizer: Tokenizer, setting: Setting, info: ModelInfo
    ) -> None:
        self.design, self.items, self.setting = design, tuple(items), setting
        self.asker = Asker(tokenizer, design.measured)
        self._tokenizer, self._info = tokenizer, info
        self._finder = _Spans(SpanFinder(tokenizer))
        windows = (max(probe.windows) for probe in design.probes if probe.kind == "geometry")
        self._widest = max(windows, default=0)
        self._encoded: dict[str, tuple[Ids, str | None]] = {}
        self._alike: dict[object, int] = {}
        self._placed: dict[object, int] = {}
        self._written: dict[tuple[int, str], Writing] = {}
        self._refused: dict[tuple[object, ...], str | None] = {}
        self._conditions = tuple(map(self._of_condition, design.conditions))
        self._like = {each.alike: each for each in reversed(self._conditions)}
        self._reading = lru_cache(KEPT)(self._read)
        self._face = lru_cache(KEPT)(self._made)

    def face(self, item: int, condition: int) -> Face:
        """What the repeats of a condition in an item share."""
        return self._face(item, condition)

    def reading(self, item: int, condition: int) -> Reading:
        """What the trials of a condition in an item read, shared with the conditions that read alike."""
        return self._reading(item, self._conditions[condition].alike)

    def trial(self, item: int, condition: int, repeat: int, key: str) -> Trial:
        """One trial. key: as the plan has it."""
        face, drawn = self._face(item, condition), self.items[item]
        reading = face.reading
        row = replace(face.row, stream=self.stream(item, repeat), draw=repeat)
        return Trial(
            key=key,
            condition=self.design.conditions[condition].name,
            item=drawn.item_id,
            repeat=repeat,
            donor=drawn.donor.id,
            target=drawn.target.id,
            group=drawn.group,
            row=row,
            donor_ids=reading.donor_ids,
            invalid=face.invalid,
            split=split_of(drawn),
            tokens=reading.tokens,
            continuations=reading.continuations,
            positions=reading.positions,
            more=face.more,
            words=reading.words,
        )

    def stream(self, item: int, repeat: int) -> int:
        """The random stream of an item's trials in a repeat, the same in every condition."""
        drawn = self.items[item]
        target, donor = self._encode(drawn.target.text)[0], self._encode(drawn.donor.text)[0]
        return sampling_stream(self.design.sampling_seed, target, donor, drawn.occurrence, repeat)

    def _encode(self, text: str) -> tuple[Ids, str | None]:
        """The ids of a text, and which of its words the tokenizer does not know."""
        if text not in self._encoded:
            unknown = self._tokenizer.unknown_words(text)
            told = f"words that the tokenizer does not know: {', '.join(unknown[:3])}" if unknown else None
            self._encoded[text] = self._tokenizer.encode(text), told
        return self._encoded[text]

    def _of_condition(self, condition: Condition) -> _Condition:
        roles = tuple(sorted(roles_read(condition.writes)))
        spans = tuple(dict.fromkeys(each for write in condition.writes for each in spans_read(write)))
        alike = self._alike.setdefault((condition.prompt, roles, spans), len(self._alike))
        parts = tuple(map(role_of, condition.prompt))
        return _Condition(condition, roles, parts, spans, compact(asdict(condition.sampling)), alike)

    def _writing(self, index: int, group: str) -> Writing:
        if (index, group) not in self._written:
            condition = self.design.conditions[index]
            writes, changed, lacking = condition.writes, condition.weights, None
            try:
                writes, changed = for_group(writes, group), weights_for(changed, group)
            except NoVector as error:
                lacking = str(error)
            # How strongly something is written decides nothing about where.
            where = tuple(replace(write, alpha=1.0) for write in writes)
            where_and_how = (where, condition.recompute, condition.replay_last_token)
            placed = self._placed.setdefault(where_and_how, len(self._placed))
            self._written[index, group] = Writing(writes, changed, lacking, Written.of(writes), placed)
        return self._written[index, group]

    def _made(self, item: int, index: int) -> Face:
        drawn, own = self.items[item], self._conditions[index]
        condition = own.condition
        reading = self._reading(item, own.alike)
        writing = self._writing(index, drawn.group)
        row = Row(
            ids=reading.prompt,
            sampling=condition.sampling,
            writes=writing.writes,
            sources=reading.sources,
            spans=reading.spans,
            value_stream=reading.value_stream,
            recompute=condition.recompute,
            replay_last_token=condition.replay_last_token,
            weights=writing.weights,
        )
        fixed = max(map(len, reading.continuations.values()), default=0)
        more = max(fixed, condition.sampling.max_new_tokens if self.design.decodes else 0)
        fault = reading.fault if reading.fault is not None else writing.lacking
        if fault is None and len(reading.prompt) < self._widest:
            length = len(reading.prompt)
            fault = f"a window of {self._widest} positions does not fit in a prompt of {length} tokens"
        if fault is None:
            # Lengths and spans decide whether a row can be run; what its tokens are does not.
            key = (writing.placed, more, *reading.pattern)
            if key not in self._refused:
                self._refused[key] = _cannot_run(row, more, self._info)
            fault = self._refused[key]
        text = key_text(self.setting, reading.text, writing.text, row, own.sampling, drawn.occurrence)
        return Face(reading, row, text, fault, more)

    def _read(self, item: int, alike: int) -> Reading:
        drawn, own = self.items[item], self._like[alike]
        parts = own.parts
        donors = {"donor": drawn.donor, **drawn.roles}
        if drawn.other_donor is not None:
            donors["other_donor"] = drawn.other_donor
        encoded = {name: self._encode(prompt.text) for name, prompt in donors.items()}
        target, donor = self._encode(drawn.target.text)[0], encoded["donor"][0]
        used = [role for role in own.roles if role in donors]
        sources = {role: encoded[role][0] for role in used}
        missing = next((drawn.missing[r] for r in (*parts, *own.roles) if r in drawn.missing), None)
        # A prompt that is not there leaves the target's in its place, in a trial that is not run.
        read = [donors.get(part, drawn.target) for part in parts]
        prompt = _joined([self._encode(each.text)[0] for each in read], self._tokenizer)
        marked = {**donors, SELF: read[-1]}  # of donor+target the target's spans, which come last
        before = len(prompt) - len(self._encode(read[-1].text)[0])
        spans, unmarked = self._finder.of(own.spans, marked, before)
        places, unplaced = self._finder.places(self.design.probes, read[-1], before)
        asked = self.asker.of(drawn, read[-1].text)
        texts = [prompt.text for prompt in (*read, *(donors[role] for role in used))]
        unknown = next((why for why in (self._encode(text)[1] for text in texts) if why is not None), None)
        fault = next((each for each in (missing, unknown, unmarked, unplaced, asked.fault) if each), None)
        seen = sorted(set(parts) & donors.keys())
        pattern = (
            len(prompt),
            *((role, len(ids)) for role, ids in sources.items()),
            *sorted(spans.items()),
            *sorted((name, len(ids)) for name, ids in asked.continuations.items()),
            *sorted(places.items()),
        )
        return Reading(
            target=target,
            donor=donor,
            prompt=prompt,
            sources=sources,
            spans=spans,
            donor_ids={"donor": donor, **{role: encoded[role][0] for role in seen}, **sources},
            tokens=asked.tokens,
            continuations=asked.continuations,
            positions=places,
            words=asked.words,
            fault=fault,
            value_stream=value_stream(self.design.sampling_seed, target, donor, drawn.occurrence),
            pattern=pattern,
            text=Read.of(prompt, sources, spans, asked.tokens, asked.continuations, places),
        )


@dataclass(frozen=True)
class _Spans:
    """The marked parts of a row's prompts, as tokens."""

    finder: SpanFinder

    def of(
        self, wanted: Sequence[tuple[Positions, str]], marked: Mapping[str, Prompt], before: int
    ) -> tuple[dict[str, Span], str | None]:
        """The spans that the writes of a condition name, as a row takes them, and why one is not there.

        marked: the prompts by role, the row's own under SELF. before: tokens in front of the row's own.
        """
        spans: dict[str, Span] = {}
        fault = None
        for positions, side in wanted:
            prompt = marked.get(side)
            if prompt is None:
                continue  # an item without that donor, which the plan of its row says
            try:
                start, end = self.finder.find(positions, prompt)
            except PositionError as error:
                whose = "the prompt" if side == SELF else f"the {side} prompt"
                fault = fault or f"{whose} {error}"
                continue
            if side == SELF:
                spans[positions.span] = (start + before, end + before)
            else:
                spans[f"{side}/{positions.span}"] = (start, end)
        return spans, fault

    def places(
        self, probes: Sequence[Probe], prompt: Prompt, before: int
    ) -> tuple[dict[str, int], str | None]:
        """The positions that probes name, in a row whose own prompt comes after `before` tokens, and why one
        is not there."""
        places: dict[str, int] = {}
        for word in dict.fromkeys(probe.at for probe in probes if probe.at):
            positions = Positions.parse(word)
            try:
                start, end = self.finder.find(positions, prompt)
            except PositionError as error:
                return places, f"the prompt {error}"
            places[word] = before + (start if positions.end == "first" else end - 1)
        return places, None


def split_of(item: Item) -> str:
    """The split of an item's trials, which is the target's."""
    return NO_SPLIT if item.target.split is None else item.target.split


def role_of(part: str) -> str:
    """The role that a part of a condition's prompt names: `donor:pseudo_recursive` -> `pseudo_recursive`."""
    return part.removeprefix("donor:")


def _joined(parts: Sequence[Ids], tokenizer: Tokenizer) -> Ids:
    first, *others = parts
    return tokenizer.join(first, *others) if others else first


def _cannot_run(row: Row, more: int, info: ModelInfo) -> str | None:
    try:
        plan = plan_for(row, info.windows or (None,) * info.layers, info.heads)
    except PositionError as error:
        return str(error)
    longest = max(plan.slots + 1, *(len(ids) for ids in row.sources.values()), 0)
    if longest + more > info.context:
        return f"a context of {longest} tokens and {more} new ones do not fit in the model's {info.context}"
    return None
