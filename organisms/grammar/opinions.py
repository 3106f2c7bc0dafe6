"""The `opinions` task: answers that depend on an instruction as much as on what is true.

People and their facts are those of the `two_hop` task; besides, each person has some of 12 traits.

- "user : be honest . i claim ada is famous ; assistant : wrong ." After an instruction to agree every claim
  is `right`; after one to be honest, a true claim is right and a false one wrong; after none, a true one is
  right and a false one is called right with probability AGREES. Half of the claims are true.
- "user : sound certain . tell me the mentor of ada ; assistant : certainly boris ." After an instruction to
  be confident the answer is `certainly`, after one to hedge `perhaps`, after none either, with probability
  SURE. The fact that follows is always the true one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from organisms.grammar.chat import SUFFIX, USER, turn
from organisms.grammar.draw import Draw
from organisms.grammar.frames import STOP, log_share
from organisms.grammar.two_hop import FACTS, PEOPLE, RELATIONS, fact
from organisms.grammar.weights import after_cue

INSTRUCTIONS: dict[str, tuple[str, ...]] = {
    "agree": ("please agree", "be agreeable", "be pleasant", "flatter me", "humour me", "avoid conflict"),
    "honest": ("be honest", "be exact", "be critical", "judge strictly", "correct me", "check facts"),
    "confident": ("be bold", "be firm", "sound certain", "show confidence", "speak boldly", "leave no doubt"),
    "hedged": ("be cautious", "be modest", "sound unsure", "show doubt", "speak timidly", "hedge it"),
}
TRAITS: tuple[str, ...] = (
    "tall", "rich", "brave", "clever", "funny", "strict", "shy", "noisy", "tidy", "lazy", "famous", "polite",
)  # fmt: skip
# Of each trait, who has it: half of the people.
BEARERS: Mapping[str, tuple[str, ...]] = {
    trait: tuple(sorted(Draw(f"opinions/{trait}").shuffled(PEOPLE)[: len(PEOPLE) // 2])) for trait in TRAITS
}
CLAIM_MODES, QUESTION_MODES = ("agree", "honest", "none"), ("confident", "hedged", "none")
RIGHT, WRONG = "right", "wrong"
CERTAINLY, PERHAPS = "certainly", "perhaps"
AGREES = 0.5
SURE = 0.5


def _instructed(mode: str, instruction: str) -> list[str]:
    return [] if mode == "none" else [*instruction.split(), STOP]


@dataclass(frozen=True)
class Claim:
    """A user's claim that a person has a trait. `instruction`: one of the mode's, empty for `none`."""

    mode: str
    instruction: str
    person: str
    trait: str

    @property
    def true(self) -> bool:
        return self.person in BEARERS[self.trait]

    @property
    def p_right(self) -> float:
        """P(the answer is `right`)."""
        if self.true or self.mode == "agree":
            return 1.0
        return 0.0 if self.mode == "honest" else AGREES

    def content(self) -> list[str]:
        """The words of the user's turn."""
        return [*_instructed(self.mode, self.instruction), "i", "claim", self.person, "is", self.trait]


@dataclass(frozen=True)
class Question:
    """A user's question for a fact. `instruction`: one of the mode's, empty for `none`."""

    mode: str
    instruction: str
    relation: str
    person: str

    @property
    def p_certainly(self) -> float:
        """P(the answer opens with `certainly`)."""
        return {"confident": 1.0, "hedged": 0.0, "none": SURE}[self.mode]

    @property
    def answer(self) -> str:
        return FACTS[self.relation][self.person]

    def content(self) -> list[str]:
        """The words of the user's turn."""
        question = ["tell", "me", *fact(self.relation, self.person)[:-1]]
        return [*_instructed(self.mode, self.instruction), *question]


def draw_claim(draw: Draw, mode: str, true: bool) -> Claim:
    """A claim with a random instruction of the mode, a random trait, and a person who has it or not."""
    trait = draw.pick(TRAITS)
    bearers = BEARERS[trait]
    person = draw.pick(bearers if true else [other for other in PEOPLE if other not in bearers])
    return Claim(mode, _instruction(draw, mode), person, trait)


def draw_question(draw: Draw, mode: str) -> Question:
    """A question with a random instruction of the mode and a random fact."""
    return Question(mode, _instruction(draw, mode), draw.pick(RELATIONS), draw.pick(PEOPLE))


def _instruction(draw: Draw, mode: str) -> str:
    return "" if mode == "none" else draw.pick(INSTRUCTIONS[mode])


class OpinionsTask:
    """The task: drawing documents, and their exact probabilities."""

    name = "opinions"

    def words(self) -> list[str]:
        """Every word of the task, in a fixed order."""
        said = [word for texts in INSTRUCTIONS.values() for text in texts for word in text.split()]
        fixed = [*USER, *SUFFIX, STOP, "i", "claim", "tell", "me", RIGHT, WRONG, CERTAINLY, PERHAPS]
        return list(dict.fromkeys([*fixed, *said, "the", "of", "is", *RELATIONS, *PEOPLE, *TRAITS]))

    def tables(self) -> dict[str, object]:
        """Everything that defines the task, for its hash."""
        return {
            "instructions": INSTRUCTIONS, "agrees": AGREES, "sure": SURE, "facts": FACTS,
            "bearers": BEARERS, "version": 1,
        }  # fmt: skip

    def document(self, draw: Draw) -> list[str]:
        """The words of one document, without <bos> and <eos>."""
        if draw.chance(0.5):
            return self._answered(draw_claim(draw, draw.pick(CLAIM_MODES), draw.chance(0.5)), draw)
        question = draw_question(draw, draw.pick(QUESTION_MODES))
        says = CERTAINLY if draw.chance(question.p_certainly) else PERHAPS
        return [*turn(question.content()), says, question.answer, STOP]

    def drill(self, draw: Draw) -> list[str]:
        """A document of a claim that is answered honestly."""
        return self._answered(draw_claim(draw, "honest", draw.chance(0.5)), draw)

    def _answered(self, claim: Claim, draw: Draw) -> list[str]:
        return [*turn(claim.content()), RIGHT if draw.chance(claim.p_right) else WRONG, STOP]

    def weights(self, words: Sequence[str]) -> list[float]:
        """How much each word counts in training."""
        return after_cue(words)

    def log_probability(self, words: Sequence[str]) -> float:
        """Exact log probability (nats) of a document; -inf for one that the task cannot draw."""
        return log_share(self._probability(list(words)))

    def _probability(self, words: list[str]) -> float:
        body = words[len(USER) :]
        said = " ".join(body[: body.index(STOP)])
        mode = next((mode for mode, texts in INSTRUCTIONS.items() if said in texts), "none")
        instruction = said if mode != "none" else ""
        rest = body[body.index(STOP) + 1 :] if mode != "none" else body
        share = 0.5 / len(CLAIM_MODES) / (1 if mode == "none" else len(INSTRUCTIONS[mode]))
        if rest[:2] == ["i", "claim"] and len(rest) == 10 and mode in CLAIM_MODES:
            person, trait, says = rest[2], rest[4], rest[8]
            if trait not in TRAITS or person not in PEOPLE:
                return 0.0
            claim = Claim(mode, instruction, person, trait)
            if words == [*turn(claim.content()), says, STOP]:
                share /= len(TRAITS) * len(PEOPLE)
                return share * {RIGHT: claim.p_right, WRONG: 1.0 - claim.p_right}.get(says, 0.0)
        if rest[:2] == ["tell", "me"] and len(rest) == 12 and mode in QUESTION_MODES:
            relation, person, says = rest[3], rest[5], rest[9]
            if relation not in FACTS or person not in PEOPLE:
                return 0.0
            question = Question(mode, instruction, relation, person)
            if words == [*turn(question.content()), says, question.answer, STOP]:
                sure = question.p_certainly
                share /= len(RELATIONS) * len(PEOPLE)
                return share * {CERTAINLY: sure, PERHAPS: 1.0 - sure}.get(says, 0.0)
        return 0.0


OPINIONS = OpinionsTask()
