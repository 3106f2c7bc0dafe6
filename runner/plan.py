"""The plan: every trial of a run, with its key, before anything is computed. It knows prompts, not tensors.
What is held of a trial is a few numbers and its key; the trial itself is made when it is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import overload

import numpy as np

from backends.contract import ModelInfo
from backends.tokenizer import Tokenizer
from runner.config.errors import ConfigurationError
from runner.config.resolve import Design
from runner.key_table import Places, hexes
from runner.keys import Setting
from runner.layout import NO_SPLIT, Layout, Trial, role_of
from runner.ledger import Entries, Ledger, ledger_of
from runner.prompts.pairing import Item

__all__ = ["NO_SPLIT", "Plan", "Trial", "Trials", "make_plan", "role_of"]


class Trials(Sequence[Trial]):
    """Trials of a plan, each made when it is read and kept by nobody. rows: their places in the plan, None
    for all; a slice and `take` are trials again, of fewer rows."""

    def __init__(self, layout: Layout, ledger: Ledger, rows: Places | None = None) -> None:
        self.layout, self.ledger = layout, ledger
        self._rows = rows

    @property
    def rows(self) -> Places:
        """The places of these trials in the plan, and so in its ledger."""
        return np.arange(len(self)) if self._rows is None else self._rows

    def take(self, places: Places) -> Trials:
        """Some of these trials, in the order asked for."""
        return Trials(self.layout, self.ledger, self.rows[places])

    def __len__(self) -> int:
        return len(self.ledger.keys) if self._rows is None else len(self._rows)

    @overload
    def __getitem__(self, place: int) -> Trial: ...
    @overload
    def __getitem__(self, place: slice) -> Trials: ...
    def __getitem__(self, place: int | slice) -> Trial | Trials:
        if isinstance(place, slice):
            return Trials(self.layout, self.ledger, self.rows[place])
        if not -len(self) <= place < len(self):
            raise IndexError(place)
        place %= len(self)
        return self._made(place if self._rows is None else int(self._rows[place]))

    def __iter__(self) -> Iterator[Trial]:
        return map(self._made, range(len(self)) if self._rows is None else map(int, self._rows))

    def _made(self, row: int) -> Trial:
        held = self.ledger
        (key,) = hexes(held.keys[row : row + 1])
        return self.layout.trial(int(held.item[row]), int(held.condition[row]), int(held.repeat[row]), key)


@dataclass(frozen=True)
class Plan:
    """All trials of a stage, condition by condition within each item. decodes: whether texts are
    generated."""

    stage: str
    trials: Sequence[Trial]
    decodes: bool = True

    @cached_property
    def ledger(self) -> Ledger:
        """What is known of the trials without making them."""
        return self.trials.ledger if isinstance(self.trials, Trials) else ledger_of(self.trials)

    @property
    def distinct_prompts(self) -> int:
        """Prompts that are prefilled or captured at least once."""
        return len(self.ledger.prompts)

    @property
    def new_tokens(self) -> int:
        """Upper bound of the tokens to generate."""
        if not self.decodes:
            return 0
        held = self.ledger
        counted = np.bincount(held.condition[held.runnable], minlength=len(held.conditions))
        found, first = np.unique(held.condition, return_index=True)
        return sum(
            int(counted[condition]) * self.trials[int(row)].row.sampling.max_new_tokens
            for condition, row in zip(found, first, strict=True)
        )


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
    layout = Layout(design, items, tokenizer, setting, info)
    entries = Entries()
    conditions, repeats = len(design.conditions), range(design.repeats)
    for item in range(len(items)):
        streams = [layout.stream(item, repeat) for repeat in repeats]
        for condition in range(conditions):
            face = layout.face(item, condition)
            entries.of_face(face)
            digest = face.text.digest
            for repeat, stream in enumerate(streams):
                entries.keys += digest(stream, repeat, repeat)
    if layout.asker.problems:
        raise ConfigurationError(layout.asker.problems)
    of_item = np.repeat(np.arange(conditions, dtype=np.int32), design.repeats)
    ledger = entries.ledger(
        condition=np.tile(of_item, len(items)),
        item=np.repeat(np.arange(len(items), dtype=np.int32), len(of_item)),
        repeat=np.tile(np.arange(design.repeats, dtype=np.int32), len(items) * conditions),
        conditions=[condition.name for condition in design.conditions],
        items=[item.item_id for item in items],
    )
    return Plan(design.stage, Trials(layout, ledger), design.decodes)
