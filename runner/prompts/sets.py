"""Sets of prompts, as `value: mean:SET` names them: read from the banks, then as token ids."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from backends.positions import PositionError, Positions, Span
from backends.tokenizer import Tokenizer
from backends.writes import PromptSet, Write
from runner.config.errors import ConfigurationError, Problem, listed, suggestion
from runner.config.resolve import Design
from runner.config.writes.values import DONORS, TARGETS, NamedSet
from runner.prompts.banks import Prompt
from runner.prompts.marks import has_part, lacks
from runner.prompts.pools import Banks
from runner.prompts.spans import SpanFinder

_SHOWN = 3  # prompts that a sentence names


def prompts_of(named: NamedSet, banks: Banks) -> tuple[Prompt, ...]:
    """The prompts of a set; none where it has no such group."""
    whose, _, group = named.name.partition("/")
    pools: Mapping[str, tuple[Prompt, ...]] = {**banks.roles, DONORS: banks.donors, TARGETS: banks.targets}
    return tuple(prompt for prompt in pools[whose] if group in ("", prompt.group))


def set_faults(write: Write, banks: Banks, chat: bool) -> str | None:
    """Why no mean can be taken over the set of a write: a group that is not there, or prompts without the
    part that its positions name; None where it can."""
    named = write.value.prompts
    if not isinstance(named, NamedSet):
        return None
    found = prompts_of(named, banks)
    whose, _, group = named.name.partition("/")
    if not found:
        groups = sorted({prompt.group for prompt in prompts_of(replace(named, name=whose), banks)})
        return (
            f"expected a group of the {whose} taken from '{named.choice.bank}' ({listed(groups)}), got "
            f"'{group}'{suggestion(group, groups)}; a role of the prompts may take any group of a bank"
        )
    without = [
        prompt for prompt in found if write.positions.span and not has_part(write.positions, prompt, chat)
    ]
    if not without:
        return None
    return (
        f"a mean over {named.name} at {write.positions.word} would leave out {len(without)} of its "
        f"{len(found)} prompts: '{without[0].id}' {lacks(write.positions, without[0])}"
    )


@dataclass(frozen=True)
class _SetReader:
    """Puts token ids in the place of named sets. problems: what cannot be tokenised, or has no such
    positions, each said once."""

    banks: Banks
    tokenizer: Tokenizer
    finder: SpanFinder
    problems: list[Problem] = field(default_factory=list)

    def write(self, write: Write, condition: str) -> Write:
        """The write with its set as token ids, and those of the condition that its source is captured under.
        condition: where it is from."""
        value = write.value
        if value.under is not None:
            inner = tuple(self.write(one, value.under.name) for one in value.under.writes)
            value = replace(value, under=replace(value.under, writes=inner))
        if isinstance(value.prompts, NamedSet):
            where = f"conditions.{condition}.{write.name}.value"
            value = replace(value, prompts=self._read(value.prompts, write.positions, where))
        return write if value is write.value else replace(write, value=value)

    def _read(self, named: NamedSet, positions: Positions, where: str) -> PromptSet:
        read: dict[tuple[tuple[int, ...], tuple[tuple[str, Span], ...]], None] = {}
        faults: list[str] = []
        for prompt in prompts_of(named, self.banks):
            ids = self.tokenizer.encode(prompt.text)
            unknown = self.tokenizer.unknown_words(prompt.text)
            try:
                if unknown:
                    raise PositionError(f"words that the tokenizer does not know: {listed(unknown[:3])}")
                spans = {positions.span: self.finder.find(positions, prompt)} if positions.span else {}
                positions.resolve(len(ids), spans)
            except PositionError as error:
                faults.append(f"'{prompt.id}': {error}")
                continue
            read[ids, tuple(spans.items())] = None
        if faults:
            more = f" (and {len(faults) - _SHOWN} more)" if len(faults) > _SHOWN else ""
            message = f"a mean over {named.name} cannot take in {'; '.join(faults[:_SHOWN])}{more}"
            problem = Problem("prompts", where, message)
            if problem not in self.problems:
                self.problems.append(problem)
        marked = tuple(spans for _, spans in read) if positions.span else ()
        return PromptSet(tuple(ids for ids, _ in read), marked, named.name)


def with_sets(design: Design, banks: Banks, tokenizer: Tokenizer) -> Design:
    """A design with the prompts of every mean as token ids: distinct prompts, in the bank's order.

    Raises ConfigurationError for prompts of a set that are shorter than a window or have words that the
    tokenizer does not know: a mean never leaves a prompt out.
    """
    reader = _SetReader(banks, tokenizer, SpanFinder(tokenizer))
    conditions = tuple(
        replace(one, writes=tuple(reader.write(write, one.name) for write in one.writes))
        for one in design.conditions
    )
    if reader.problems:
        raise ConfigurationError(reader.problems)
    return replace(design, conditions=conditions)
