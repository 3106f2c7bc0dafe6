"""What readouts ask for in an item, from words or from the facts of its prompts: token sets and fixed
continuations as ids, and the words that texts are searched for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from backends.positions import PositionError
from backends.tokenizer import Tokenizer
from runner.config.errors import Problem, listed, suggestion
from runner.config.readouts.readout import TARGET, Readout, Source
from runner.prompts.banks import Prompt
from runner.prompts.pairing import Item
from runner.scores.contains import labels_that_count

Ids = tuple[int, ...]


@dataclass(frozen=True)
class Asked:
    """Of one item and prompt: token sets by the names that probes use, continuations by readout, words that
    its text is searched for by readout, and why these cannot be had (None: they can)."""

    tokens: Mapping[str, Ids]
    continuations: Mapping[str, Ids]
    fault: str | None = None
    words: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass
class Asker:
    """Turns the words of readouts into ids, each combination of text and word once. problems: what is wrong
    with words that are the same for every item."""

    tokenizer: Tokenizer
    readouts: Sequence[Readout]
    problems: list[Problem] = field(default_factory=list)
    _known: dict[tuple[str, str], Ids | PositionError] = field(default_factory=dict)

    def of(self, item: Item, read: str) -> Asked:
        """What the readouts ask for after the prompt `read` of an item.

        Facts that the item's prompt does not state, that are not one token where one is needed, or too short
        to search a text for, are its fault; words that stand in the configuration are a problem of that.
        """
        tokens: dict[str, Ids] = {}
        continuations: dict[str, Ids] = {}
        labels: dict[str, tuple[str, ...]] = {}
        fault: str | None = None
        for readout in self.readouts:
            if readout.labels is not None:
                found_words, why = _labels(readout.labels, item)
                labels[readout.name] = found_words
                if why is not None:
                    fault = fault or f"readout {readout.name}, tokens: {why}"
            for key, source in readout.sources:
                words, why = _words(source, item)
                found: list[int] = []
                if key == "continuation" and len(words) > 1:
                    why = why or f"{source.word} is {len(words)} texts, and a continuation is one"
                for word in words if why is None else ():
                    ids, why = self._ids(read, word, key, readout)
                    if why is not None:
                        break
                    found += ids
                if why is not None:
                    self._told(readout, key, source, why)
                    fault = fault or f"readout {readout.name}, {key}: {why}"
                elif key == "continuation":
                    continuations[readout.name] = tuple(found)
                else:
                    name = readout.name if key == "tokens" else f"{readout.name}.against"
                    tokens[name] = tuple(dict.fromkeys(found))
        return Asked(tokens, continuations, fault or _shared(tokens), labels)

    def _told(self, readout: Readout, key: str, source: Source, why: str) -> None:
        problem = Problem("readouts", f"readout.{readout.name}.{key}", why)
        if not source.fact and problem not in self.problems:
            self.problems.append(problem)

    def _ids(self, read: str, word: str, key: str, readout: Readout) -> tuple[Ids, str | None]:
        if (read, word) not in self._known:
            try:
                self._known[read, word] = self.tokenizer.continued(read, word)
            except PositionError as error:
                self._known[read, word] = error
        ids = self._known[read, word]
        if isinstance(ids, PositionError):
            return (), str(ids)
        if key == "continuation":
            return ids, None
        if len(ids) > 1 and not readout.first_token:
            parts = " ".join(self.tokenizer.tokens(ids))
            return (), (
                f"'{word}' is {len(ids)} tokens ({parts}), and a {readout.kind} readout reads one; "
                "first_token: true takes the first"
            )
        return ids[:1], None


def _labels(source: Source, item: Item) -> tuple[tuple[str, ...], str | None]:
    words, why = _words(source, item)
    labels = labels_that_count(words)
    if why is None and not labels:
        why = f"{source.word} is {listed(map(repr, words))}, of one character, which is in most texts"
    return labels, why


def _words(source: Source, item: Item) -> tuple[tuple[str, ...], str | None]:
    if not source.fact:
        return source.words, None
    prompts: dict[str, Prompt | None] = {
        TARGET: item.target,
        "donor": item.donor,
        "other_donor": item.other_donor,
        **item.roles,
    }
    prompt = prompts.get(source.role)
    if prompt is None:
        return (), item.missing.get(source.role, f"the item has no {source.role}")
    if source.fact not in prompt.facts:
        known = sorted(prompt.facts)
        near = suggestion(source.fact, known)
        return (), f"prompt '{prompt.id}' states no fact '{source.fact}' ({listed(known)}){near}"
    fact = prompt.facts[source.fact]
    if isinstance(fact, bool):
        return (), f"the fact '{source.fact}' of prompt '{prompt.id}' is true or false, not a word"
    return (fact if isinstance(fact, tuple) else (str(fact),)), None


def _shared(tokens: Mapping[str, Ids]) -> str | None:
    """A token on both sides of a log-odds, which says nothing about either."""
    for name, against in _against(tokens):
        both = set(tokens[name]) & set(against)
        if both:
            return f"readout {name}: token {min(both)} is in tokens and in against"
    return None


def _against(tokens: Mapping[str, Ids]) -> Iterator[tuple[str, Ids]]:
    for name, ids in tokens.items():
        if name.endswith(".against") and name.removesuffix(".against") in tokens:
            yield name.removesuffix(".against"), ids
