"""The `two_hop` task: facts about 24 people, and compositions of two facts.

Each of 24 relations gives each person another one, drawn at random. A document states facts ("the
mentor of ada is boris .") and compositions ("the rival of the mentor of ada is clara ."). Every fact is
stated by itself; of the compositions

- HELD_OUT of them are in no document, though their second hop is composed with other first hops: a model that
  composes answers them;
- those whose second hop is one of the UNSEEN facts (one for each person) are in no document either: that fact
  is never a second hop, so a model that looks up second hops elsewhere than first ones must fail.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from organisms.grammar.draw import Draw
from organisms.grammar.frames import STOP, sentences_of
from organisms.grammar.weights import ANSWER, DRAWN

Kind = Literal["composed", "held_out", "unseen"]

PEOPLE: tuple[str, ...] = (
    "ada", "boris", "clara", "david", "elena", "felix", "greta", "hugo", "irene", "jonas", "karin", "leo",
    "maria", "nils", "olga", "pedro", "quinn", "rosa", "simon", "tanja", "ulla", "victor", "wanda", "yusuf",
)  # fmt: skip
RELATIONS: tuple[str, ...] = (
    "mentor", "rival", "landlord", "tutor", "patron", "banker", "barber", "editor", "partner", "lawyer",
    "doctor", "tailor", "baker", "coach", "agent", "dentist", "gardener", "butler", "driver", "trainer",
    "critic", "deputy", "guardian", "nanny",
)  # fmt: skip
HELD_OUT = 0.1
COMPOSED = 0.7
LENGTHS = range(4, 9)


def _images(relation: str) -> dict[str, str]:
    # Not a permutation: where relation and person each say something about the answer by themselves, the
    # table of both is learned far sooner.
    draw = Draw(f"two_hop/{relation}")
    return {person: draw.pick([other for other in PEOPLE if other != person]) for person in PEOPLE}


FACTS: Mapping[str, Mapping[str, str]] = {relation: _images(relation) for relation in RELATIONS}
UNSEEN: frozenset[tuple[str, str]] = frozenset(
    zip(PEOPLE, Draw("two_hop/unseen").shuffled(RELATIONS), strict=True)
)


def fact(relation: str, person: str) -> list[str]:
    """The words of a question for one fact, up to its answer: `the mentor of ada is`."""
    return ["the", relation, "of", person, "is"]


@dataclass(frozen=True)
class Composition:
    """The r2 of the r1 of e1."""

    e1: str
    r1: str
    r2: str

    @property
    def bridge(self) -> str:
        return FACTS[self.r1][self.e1]

    @property
    def answer(self) -> str:
        return FACTS[self.r2][self.bridge]

    @property
    def kind(self) -> Kind:
        """Whether documents hold it, and if not, why."""
        return _KINDS[self]

    def words(self) -> list[str]:
        """The question, up to its answer: `the rival of the mentor of ada is`."""
        return ["the", self.r2, "of", "the", self.r1, "of", self.e1, "is"]


def compositions() -> Iterable[Composition]:
    """All 24 x 24 x 24 of them, in a fixed order."""
    return _KINDS.keys()


def _kind(composition: Composition) -> Kind:
    if (composition.bridge, composition.r2) in UNSEEN:
        return "unseen"
    name = f"two_hop/held out/{composition.e1}/{composition.r1}/{composition.r2}"
    return "held_out" if Draw(name).chance(HELD_OUT) else "composed"


_KINDS: Mapping[Composition, Kind] = {
    composition: _kind(composition)
    for composition in itertools.starmap(Composition, itertools.product(PEOPLE, RELATIONS, RELATIONS))
}


class TwoHopTask:
    """The task: drawing documents, and their exact probabilities."""

    name = "two_hop"

    def __init__(self) -> None:
        seen: dict[tuple[str, str], list[str]] = {(e, r): [] for e in PEOPLE for r in RELATIONS}
        for composition in compositions():
            if composition.kind == "composed":
                seen[(composition.e1, composition.r1)].append(composition.r2)
        self._seen: Mapping[tuple[str, str], tuple[str, ...]] = {key: tuple(r) for key, r in seen.items()}

    def words(self) -> list[str]:
        """Every word of the task, in a fixed order."""
        return ["the", "of", "is", STOP, *PEOPLE, *RELATIONS]

    def tables(self) -> dict[str, object]:
        """Everything that defines the task, for its hash."""
        return {
            "facts": FACTS, "unseen": sorted(UNSEEN), "held_out": HELD_OUT, "composed": COMPOSED,
            "lengths": list(LENGTHS), "version": 1,
        }  # fmt: skip

    def document(self, draw: Draw) -> list[str]:
        """The words of one document, without <bos> and <eos>."""
        return self._statements(draw, COMPOSED)

    def drill(self, draw: Draw) -> list[str]:
        """A document of single facts."""
        return self._statements(draw, 0.0)

    def _statements(self, draw: Draw, composed: float) -> list[str]:
        words: list[str] = []
        for _ in range(draw.pick(LENGTHS)):
            e1, r1 = draw.pick(PEOPLE), draw.pick(RELATIONS)
            if draw.chance(composed):
                composition = Composition(e1, r1, draw.pick(self._seen[(e1, r1)]))
                words += [*composition.words(), composition.answer, STOP]
            else:
                words += [*fact(r1, e1), FACTS[r1][e1], STOP]
        return words

    def weights(self, words: Sequence[str]) -> list[float]:
        """How much each word counts in training: the answers, far more than what is drawn at random."""
        return [ANSWER if before == "is" else DRAWN for before in ("", *words[:-1])]

    def log_probability(self, words: Sequence[str]) -> float:
        """Exact log probability (nats) of a document; -inf for one that the task cannot draw."""
        sentences = sentences_of(words)
        if len(sentences) not in LENGTHS:
            return -math.inf
        total = -math.log(len(LENGTHS))
        for sentence in sentences:
            share = self._probability(sentence)
            if share == 0.0:
                return -math.inf
            total += math.log(share)
        return total

    def _probability(self, sentence: list[str]) -> float:
        share = 1.0 / (len(PEOPLE) * len(RELATIONS))
        if len(sentence) == 7:
            r1, e1 = sentence[1], sentence[3]
            if (e1, r1) in self._seen and sentence == [*fact(r1, e1), FACTS[r1][e1], STOP]:
                return share * (1.0 - COMPOSED)
        if len(sentence) == 10:
            r2, r1, e1 = sentence[1], sentence[4], sentence[6]
            if (e1, r1) in self._seen and r2 in self._seen[(e1, r1)]:
                composition = Composition(e1, r1, r2)
                if sentence == [*composition.words(), composition.answer, STOP]:
                    return share * COMPOSED / len(self._seen[(e1, r1)])
        return 0.0


TWO_HOP = TwoHopTask()
