"""The plan: every trial of a run, with its key, before anything is computed. It knows prompts, not
tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from backends.contract import ModelInfo
from backends.measures import Probe
from backends.positions import PositionError, Positions, Span
from backends.rowplan import plan_for
from backends.rows import Row
from backends.tokenizer import Tokenizer
from backends.writes import SELF
from runner.config.errors import ConfigurationError
from runner.config.resolve import Condition, Design
from runner.config.writes.vectors import NoVector, for_group
from runner.config.writes.weights import weights_for
from runner.keys import Setting, nth_key, result_key, roles_read, sampling_stream, value_stream
from runner.prompts.asked import Asker
from runner.prompts.banks import Prompt
from runner.prompts.marks import spans_read
from runner.prompts.pairing import Item
from runner.prompts.spans import SpanFinder

NO_SPLIT = "all"  # what a trial's split is where the bank gives its target none


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
    donor_ids: Mapping[str, tuple[int, ...]]
    invalid: str | None
    split: str = NO_SPLIT
    tokens: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    continuations: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    positions: Mapping[str, int] = field(default_factory=dict)
    more: int = 0
    words: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """All trials of a stage, condition by condition within each item. decodes: whether texts are
    generated."""

    stage: str
    trials: tuple[Trial, ...]
    decodes: bool = True

    @property
    def distinct_prompts(self) -> int:
        """Prompts that are prefilled or captured at least once."""
        prompts = {trial.row.ids for trial in self.trials}
        for trial in self.trials:
            prompts.update(trial.donor_ids.values())
        return len(prompts)

    @property
    def new_tokens(self) -> int:
        """Upper bound of the tokens to generate."""
        if not self.decodes:
            return 0
        return sum(trial.row.sampling.max_new_tokens for trial in self.trials if trial.invalid is None)


def make_plan(
    design: Design, items: Sequence[Item], tokenizer: Tokenizer, setting: Setting, info: ModelInfo
) -> Plan:
    """Tokenise each prompt once and lay out every trial. info: of the model that runs it.

    A trial that cannot be run as asked (prompt empty, with words that the tokenizer does not know, longer
    than the context, shorter than a window, without a span that a write names, or with a token that cut edges
    leave nothing to attend to) is planned as invalid, with the reason; so is one whose prompts do not state a
    fact that a readout asks for, whose group an artefact has no vector for, or whose item has no prompt in a
    role that it reads. Raises BackendError where a
    write names a span and the tokenizer cannot find spans, ConfigurationError for words of a readout that are
    no tokens.
    """
    encoded: dict[str, tuple[int, ...]] = {}
    faults: dict[str, str | None] = {}

    def encode(text: str) -> tuple[int, ...]:
        if text not in encoded:
            encoded[text] = tokenizer.encode(text)
            unknown = tokenizer.unknown_words(text)
            faults[text] = (
                f"words that the tokenizer does not know: {', '.join(unknown[:3])}" if unknown else None
            )
        return encoded[text]

    finder = _Spans(SpanFinder(tokenizer))
    asker = Asker(tokenizer, design.measured)
    widest = max((max(probe.windows) for probe in design.probes if probe.kind == "geometry"), default=0)
    trials = []
    for item in items:
        target, donor = encode(item.target.text), encode(item.donor.text)
        donors = {"donor": item.donor, **item.roles}
        if item.other_donor is not None:
            donors["other_donor"] = item.other_donor
        roles = {name: encode(prompt.text) for name, prompt in donors.items()}
        for condition in design.conditions:
            used = sorted(roles_read(condition.writes) & roles.keys())
            sources = {role: roles[role] for role in used}
            wanted = [*map(role_of, condition.prompt), *roles_read(condition.writes)]
            missing = next((item.missing[role] for role in wanted if role in item.missing), None)
            # A prompt that is not there leaves the target's in its place, in a trial that is not run.
            read = [donors.get(role_of(part), item.target) for part in condition.prompt]
            prompt = _joined([encode(each.text) for each in read], tokenizer)
            marked = {**donors, SELF: read[-1]}  # of donor+target the target's spans, which come last
            before = len(prompt) - len(encode(read[-1].text))
            spans, unmarked = finder.of(condition, marked, before)
            places, unplaced = finder.places(design.probes, read[-1], before)
            texts = [p.text for p in (*read, *(donors[role] for role in used))]
            asked = asker.of(item, read[-1].text)
            unknown = next((faults[text] for text in texts if faults[text] is not None), None)
            fault = next((each for each in (missing, unknown, unmarked, unplaced, asked.fault) if each), None)
            writes, changed = condition.writes, condition.weights
            try:
                writes, changed = for_group(writes, item.group), weights_for(changed, item.group)
            except NoVector as error:
                fault = fault or str(error)
            if fault is None and len(prompt) < widest:
                fault = f"a window of {widest} positions does not fit in a prompt of {len(prompt)} tokens"
            fixed = max(map(len, asked.continuations.values()), default=0)
            more = max(fixed, condition.sampling.max_new_tokens if design.decodes else 0)
            seen = sorted({role_of(part) for part in condition.prompt} & roles.keys())
            for repeat in range(design.repeats):
                row = Row(
                    ids=prompt,
                    sampling=condition.sampling,
                    writes=writes,
                    sources=sources,
                    spans=spans,
                    stream=sampling_stream(design.sampling_seed, target, donor, item.occurrence, repeat),
                    value_stream=value_stream(design.sampling_seed, target, donor, item.occurrence),
                    draw=repeat,
                    recompute=condition.recompute,
                    replay_last_token=condition.replay_last_token,
                    weights=changed,
                )
                trials.append(
                    Trial(
                        key=result_key(
                            setting,
                            row,
                            item.occurrence,
                            repeat,
                            asked.tokens,
                            asked.continuations,
                            places,
                        ),
                        condition=condition.name,
                        item=item.item_id,
                        repeat=repeat,
                        donor=item.donor.id,
                        target=item.target.id,
                        group=item.group,
                        row=row,
                        donor_ids={"donor": donor, **{role: roles[role] for role in seen}, **sources},
                        invalid=_cannot_run(row, more, info) if fault is None else fault,
                        split=NO_SPLIT if item.target.split is None else item.target.split,
                        tokens=asked.tokens,
                        continuations=asked.continuations,
                        positions=places,
                        more=more,
                        words=asked.words,
                    )
                )
    if asker.problems:
        raise ConfigurationError(asker.problems)
    return Plan(design.stage, tuple(_told_apart(trials)), design.decodes)


def _told_apart(trials: Sequence[Trial]) -> Iterator[Trial]:
    """Trials of one key whose texts are searched for different words - one prompt in two items with different
    answers - as results of their own, since a result holds its scores. The first keeps the key."""
    met: dict[str, list[Mapping[str, tuple[str, ...]]]] = {}
    for trial in trials:
        words = met.setdefault(trial.key, [])
        if trial.words not in words:
            words.append(trial.words)
        yield replace(trial, key=nth_key(trial.key, words.index(trial.words)))


@dataclass(frozen=True)
class _Spans:
    """The marked parts of a row's prompts, as tokens."""

    finder: SpanFinder

    def of(
        self, condition: Condition, marked: Mapping[str, Prompt], before: int
    ) -> tuple[dict[str, Span], str | None]:
        """The spans that the writes of a condition name, as a row takes them, and why one is not there.

        marked: the prompts by role, the row's own under SELF. before: tokens in front of the row's own.
        """
        spans: dict[str, Span] = {}
        fault = None
        for positions, side in (each for write in condition.writes for each in spans_read(write)):
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


def role_of(part: str) -> str:
    """The role that a part of a condition's prompt names: `donor:pseudo_recursive` -> `pseudo_recursive`."""
    return part.removeprefix("donor:")


def _joined(parts: Sequence[tuple[int, ...]], tokenizer: Tokenizer) -> tuple[int, ...]:
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
