"""The plan: every trial of a run, with its key, before anything is computed. It knows prompts, not
tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from backends.contract import Row
from backends.positions import PositionError
from backends.rowplan import plan_row
from backends.tokenizer import Tokenizer
from runner.config.resolve import Condition, Design
from runner.keys import Setting, result_key, sampling_stream, value_stream
from runner.prompts.pairing import Item


@dataclass(frozen=True)
class Trial:
    """One (condition, item, repeat). row: what the backend runs; invalid: why it cannot be run, else None."""

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
    than the context, or shorter than a window) is planned as invalid, with the reason.
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

    trials = []
    for item in items:
        target, donor = encode(item.target.text), encode(item.donor.text)
        roles = {"donor": donor, **{name: encode(p.text) for name, p in item.roles.items()}}
        if item.other_donor is not None:
            roles["other_donor"] = encode(item.other_donor.text)
        texts = {"donor": item.donor.text, **{name: p.text for name, p in item.roles.items()}}
        if item.other_donor is not None:
            texts["other_donor"] = item.other_donor.text
        for condition in design.conditions:
            used = sorted({w.value.role for w in condition.writes if w.value.role in roles})
            sources = {role: roles[role] for role in used}
            prompt = _prompt(condition, target, donor, tokenizer)
            read = [item.target.text if part == "target" else texts[part] for part in condition.prompt]
            read += [texts[role] for role in used]
            fault = next((faults[text] for text in read if faults[text] is not None), None)
            for repeat in range(design.repeats):
                row = Row(
                    ids=prompt,
                    sampling=condition.sampling,
                    writes=condition.writes,
                    sources=sources,
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
                        invalid=fault or _cannot_run(row, context),
                    )
                )
    return Plan(design.stage, tuple(trials))


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
