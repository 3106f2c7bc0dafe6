"""What a plan holds of each of its trials: a few numbers, so that hundreds of thousands are megabytes."""

from __future__ import annotations

from array import array
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backends.rows import Row
from runner.key_table import Keys, KeyTable, Places, hexes, keys_named, keys_of, packed
from runner.keys import nth_key
from runner.layout import Face, Ids, Trial

Numbers = NDArray[Any]  # whole numbers, no wider than they need to be
Words = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Ledger:
    """Every trial of a plan as numbers, in the plan's order.

    keys: uint64 [trials, 2]. The rest are whole numbers [trials]: places in `conditions`, `items`, `prompts`
    (of the row's own), `reasons` (-1: it can be run) and `told` (what its text is searched for); the number
    of the repeat; pattern, equal for trials of a condition that read and write the same positions; kind, a
    place in `kinds`, which tell trials apart that run in no batch together (the digest of the direction that
    the weights are without, "" for none; whether there is no cache); context, the tokens of its longest
    context, and more, the most that come after its prompt. prompts: every prompt that is run or read from, in
    the order in which trials come to it.
    """

    keys: Keys
    condition: Numbers
    item: Numbers
    repeat: Numbers
    prompt: Numbers
    reason: Numbers
    words: Numbers
    pattern: Numbers
    kind: Numbers
    context: Numbers
    more: Numbers
    conditions: tuple[str, ...]
    items: tuple[str, ...]
    prompts: tuple[Ids, ...]
    reasons: tuple[str, ...]
    told: tuple[Words, ...]
    kinds: tuple[tuple[str, bool], ...]

    @cached_property
    def runnable(self) -> NDArray[np.bool_]:
        """Which trials can be run."""
        return np.asarray(self.reason < 0)

    @cached_property
    def table(self) -> KeyTable:
        """The keys of all trials, each with the first that has it."""
        return KeyTable.of(self.keys)

    def wanted(self) -> Places:
        """Of each key of a trial that can be run, the first such trial."""
        rows = np.flatnonzero(self.runnable)
        return np.sort(rows[KeyTable.of(self.keys[rows]).rows])

    def invalid(self, row: int) -> str | None:
        """Why a trial cannot be run."""
        place = int(self.reason[row])
        return None if place < 0 else self.reasons[place]

    def words_of(self, row: int) -> Words:
        """What the text of a trial is searched for, by readout."""
        return self.told[int(self.words[row])]


@dataclass
class Entries:
    """A ledger in the making: the keys of the trials, and the numbers that the repeats of each share."""

    keys: bytearray = field(default_factory=bytearray)
    _prompt: array[int] = field(default_factory=lambda: array("i"))
    _reason: array[int] = field(default_factory=lambda: array("i"))
    _words: array[int] = field(default_factory=lambda: array("i"))
    _pattern: array[int] = field(default_factory=lambda: array("i"))
    _kind: array[int] = field(default_factory=lambda: array("i"))
    _context: array[int] = field(default_factory=lambda: array("i"))
    _more: array[int] = field(default_factory=lambda: array("i"))
    _prompts: dict[Ids, int] = field(default_factory=dict)
    _reasons: dict[str, int] = field(default_factory=dict)
    _told: dict[Hashable, int] = field(default_factory=dict)
    _texts: list[Words] = field(default_factory=list)
    _patterns: dict[Hashable, int] = field(default_factory=dict)
    _kinds: dict[tuple[str, bool], int] = field(default_factory=dict)

    def add(
        self,
        row: Row,
        donors: Iterable[Ids],
        invalid: str | None,
        words: Words,
        pattern: Hashable,
        more: int,
    ) -> None:
        """The trials of an item in a condition."""
        self._prompt.append(_number(self._prompts, row.ids))
        for ids in donors:
            _number(self._prompts, ids)
        self._reason.append(-1 if invalid is None else _number(self._reasons, invalid))
        told = _number(self._told, tuple(sorted(words.items())))
        if told == len(self._texts):
            self._texts.append(words)
        self._words.append(told)
        self._pattern.append(_number(self._patterns, pattern))
        weights = "" if row.weights is None else row.weights.digest
        self._kind.append(_number(self._kinds, (weights, row.recompute)))
        self._context.append(context_of(row))
        self._more.append(more)

    def of_face(self, face: Face) -> None:
        """The same, of a trial without its repeat."""
        held = face.reading
        self.add(face.row, held.donor_ids.values(), face.invalid, held.words, held.pattern, face.more)

    def ledger(
        self,
        condition: Numbers,
        item: Numbers,
        repeat: Numbers,
        conditions: Sequence[str],
        items: Sequence[str],
    ) -> Ledger:
        """The whole of it. condition, item, repeat: of each trial."""
        entries = len(self._prompt)
        repeats = len(condition) // entries if entries else 1

        def each(held: array[int]) -> Numbers:
            return np.repeat(narrow(np.frombuffer(held, dtype=np.int32)), repeats)

        words = each(self._words)
        return Ledger(
            keys=_told_apart(keys_of(self.keys), words),
            condition=narrow(condition),
            item=narrow(item),
            repeat=narrow(repeat),
            prompt=each(self._prompt),
            reason=each(self._reason),
            words=words,
            pattern=each(self._pattern),
            kind=each(self._kind),
            context=each(self._context),
            more=each(self._more),
            conditions=tuple(conditions),
            items=tuple(items),
            prompts=tuple(self._prompts),
            reasons=tuple(self._reasons),
            told=tuple(self._texts),
            kinds=tuple(self._kinds),
        )


def ledger_of(trials: Iterable[Trial]) -> Ledger:
    """The ledger of trials that are there, whatever plan they are of."""
    entries = Entries()
    conditions: dict[str, int] = {}
    items: dict[str, int] = {}
    places: list[tuple[int, int, int]] = []
    for trial in trials:
        entries.keys += packed(trial.key)
        places.append((_number(conditions, trial.condition), _number(items, trial.item), trial.repeat))
        pattern = (
            len(trial.row.ids),
            tuple((role, len(ids)) for role, ids in sorted(trial.row.sources.items())),
            tuple(sorted(trial.row.spans.items())),
            tuple(sorted((name, len(ids)) for name, ids in trial.continuations.items())),
            tuple(sorted(trial.positions.items())),
        )
        entries.add(trial.row, trial.donor_ids.values(), trial.invalid, trial.words, pattern, trial.more)
    held = np.array(places, dtype=np.int64).reshape(-1, 3)
    return entries.ledger(held[:, 0], held[:, 1], held[:, 2], tuple(conditions), tuple(items))


def context_of(row: Row) -> int:
    """Tokens of a row's longest context: concat puts a source in front of the prompt."""
    sources = max(map(len, row.sources.values()), default=0)
    joined = sources > 0 and any(write.align == "concat" for write in row.writes)
    return len(row.ids) + sources if joined else max(len(row.ids), sources)


def narrow(numbers: Numbers) -> Numbers:
    """The same whole numbers in the narrowest signed type that holds them all."""
    if not len(numbers):
        return numbers.astype(np.int8)
    ends = (numbers.min(), numbers.max())
    for kind in (np.int8, np.int16, np.int32):
        if np.iinfo(kind).min <= ends[0] and ends[1] <= np.iinfo(kind).max:
            return numbers.astype(kind)
    return numbers.astype(np.int64)


def _number(known: dict[Any, int], thing: Hashable) -> int:
    return known.setdefault(thing, len(known))


def _told_apart(keys: Keys, words: Numbers) -> Keys:
    """Trials of one key whose texts are searched for different words - one prompt in two items with different
    answers - as results of their own, since a result holds its scores. The first keeps the key."""
    if not len(words) or words.max() == words.min():
        return keys
    table = KeyTable.of(keys)
    first = table.rows[table.find(keys)]
    differing = np.unique(first[words != words[first]])
    if not len(differing):
        return keys
    keys = keys.copy()
    met: dict[int, list[int]] = {}
    for row in np.flatnonzero(np.isin(first, differing)).tolist():
        told = met.setdefault(int(first[row]), [])
        if int(words[row]) not in told:
            told.append(int(words[row]))
        nth = told.index(int(words[row]))
        if nth:
            own = hexes(keys[int(first[row])][None])[0]
            keys[row] = keys_named([nth_key(own, nth)])[0]
    return keys
