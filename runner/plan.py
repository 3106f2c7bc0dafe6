"""The plan: every trial of a run, with its key, before anything is computed. It knows prompts, not
tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from backends.positions import PositionError, Span
from backends.rowplan import plan_row
from backends.rows import Row
from backends.tokenizer import Tokenizer
from backends.writes import SELF
from runner.config.errors import listed
from runner.config.resolve import Condition, Design
from runner.keys import Setting, result_key, sampling_stream, value_stream
from runner.prompts.banks import Prompt
from runner.prompts.pairing import Item

NO_SPLIT = "all"  # what a trial's split is where the bank gives its target none


@dataclass(frozen=True)
class Trial:
    """One (condition, item, repeat). row: what the backend runs; invalid: why it cannot be run, else None.
    split: the target's."""

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


@dataclass(frozen=True)
class Plan:
    """All trials of a stage, condition by condition within each item."""

    stage: str
    trials: tuple[Trial, ...]

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
        return sum(trial.row.sampling.max_new_tokens for trial in self.trials if trial.invalid is None)


def make_plan(
    design: Design, items: Sequence[Item], tokenizer: Tokenizer, setting: Setting, context: int
) -> Plan:
    """Tokenise each prompt once and lay out every trial.

    A trial that cannot be run as asked (prompt empty, with words that the tokenizer does not know, longer
    than the context, shorter than a window, or without a span that a write names) is planned as invalid, with
    the reason. Raises BackendError where a write names a span and the tokenizer cannot find spans.
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

    finder = _Spans(tokenizer)
    trials = []
    for item in items:
        target, donor = encode(item.target.text), encode(item.donor.text)
        donors = {"donor": item.donor, **item.roles}
        if item.other_donor is not None:
            donors["other_donor"] = item.other_donor
        roles = {name: encode(prompt.text) for name, prompt in donors.items()}
        for condition in design.conditions:
            used = sorted({w.value.role for w in condition.writes if w.value.role in roles})
            sources = {role: roles[role] for role in used}
            prompt = _prompt(condition, target, donor, tokenizer)
            read = [item.target if part == "target" else donors[part] for part in condition.prompt]
            marked = {**donors, SELF: read[-1]}  # of donor+target the target's spans, which come last
            spans, unmarked = finder.of(condition, marked, len(prompt) - len(encode(read[-1].text)))
            texts = [p.text for p in (*read, *(donors[role] for role in used))]
            fault = next((faults[text] for text in texts if faults[text] is not None), unmarked)
            for repeat in range(design.repeats):
                row = Row(
                    ids=prompt,
                    sampling=condition.sampling,
                    writes=condition.writes,
                    sources=sources,
                    spans=spans,
                    stream=sampling_stream(design.sampling_seed, target, donor, item.occurrence, repeat),
                    value_stream=value_stream(design.sampling_seed, target, donor, item.occurrence),
                    draw=repeat,
                    recompute=condition.recompute,
                    replay_last_token=condition.replay_last_token,
                )
                trials.append(
                    Trial(
                        key=result_key(setting, row, item.occurrence, repeat),
                        condition=condition.name,
                        item=item.item_id,
                        repeat=repeat,
                        donor=item.donor.id,
                        target=item.target.id,
                        group=item.group,
                        row=row,
                        donor_ids={"donor": donor, **sources},
                        invalid=_cannot_run(row, context) if fault is None else fault,
                        split=NO_SPLIT if item.target.split is None else item.target.split,
                    )
                )
    return Plan(design.stage, tuple(trials))


@dataclass(frozen=True)
class _Spans:
    """Token spans of prompts, each found once."""

    tokenizer: Tokenizer
    found: dict[tuple[str, Span], Span] = field(default_factory=dict)

    def of(
        self, condition: Condition, marked: Mapping[str, Prompt], before: int
    ) -> tuple[dict[str, Span], str | None]:
        """The spans that the writes of a condition name, as a row takes them, and why one is not there.

        marked: the prompts by role, the row's own under SELF. before: tokens in front of the row's own.
        """
        spans: dict[str, Span] = {}
        fault = None
        for write in condition.writes:
            name = write.positions.role
            for side in write.counted_on if name else ():
                prompt = marked.get(side)
                if prompt is None:
                    continue  # an item without that donor, which the plan of its row says
                whose = "the prompt" if side == SELF else f"the {side} prompt"
                if name not in prompt.spans:
                    fault = fault or (
                        f"{whose} has no role '{name}' (its roles: {listed(sorted(prompt.spans))})"
                    )
                    continue
                try:
                    start, end = self._find(prompt.text, prompt.spans[name])
                except PositionError as error:
                    fault = fault or f"{whose}, role '{name}': {error}"
                    continue
                if side == SELF:
                    spans[name] = (start + before, end + before)
                else:
                    spans[f"{side}/{name}"] = (start, end)
        return spans, fault

    def _find(self, text: str, span: Span) -> Span:
        if (text, span) not in self.found:
            self.found[text, span] = self.tokenizer.token_span(text, span)
        return self.found[text, span]


def _prompt(
    condition: Condition, target: tuple[int, ...], donor: tuple[int, ...], tokenizer: Tokenizer
) -> tuple[int, ...]:
    if condition.prompt == ("target",):
        return target
    if condition.prompt == ("donor",):
        return donor
    return tokenizer.join(donor, target)


def _cannot_run(row: Row, context: int) -> str | None:
    try:
        plan = plan_row(row)
    except PositionError as error:
        return str(error)
    longest = max(plan.slots + 1, *(len(ids) for ids in row.sources.values()), 0)
    if longest + row.sampling.max_new_tokens > context:
        return (
            f"a context of {longest} tokens and {row.sampling.max_new_tokens} new ones do not fit in the "
            f"model's {context}"
        )
    return None
