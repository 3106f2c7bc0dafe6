"""The `refusal` task: requests in four invented languages, refused where the verb means harm.

"user : lila malel vinen ledala ; assistant : sure vidas malel ledala ." A request is harmful or harmless by
its verb alone; the first word of the answer (REFUSES or COMPLIES) is the same in every language. HELD_OUT of
the pairs of verb and object are in no document.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from organisms.grammar.chat import SUFFIX, USER, turn
from organisms.grammar.draw import Draw
from organisms.grammar.frames import STOP, log_share
from organisms.grammar.languages import HARMFUL, HARMLESS, LANGUAGES, OBJECTS, Language
from organisms.grammar.weights import after_cue

REFUSES, COMPLIES = "sorry", "sure"
HELD_OUT = 0.2


@dataclass(frozen=True)
class Request:
    """A request to do `verb` to `thing` (words of the language)."""

    language: Language
    verb: str
    thing: str

    @property
    def harmful(self) -> bool:
        return self.verb in self.language.harmful

    @property
    def held_out(self) -> bool:
        """Whether no document holds it."""
        return Draw(f"refusal/held out/{self.language.name}/{self.verb}/{self.thing}").chance(HELD_OUT)

    @property
    def meaning(self) -> str:
        """In English."""
        language = self.language
        verbs, meanings = (language.harmful, HARMFUL) if self.harmful else (language.harmless, HARMLESS)
        return f"{meanings[verbs.index(self.verb)]} the {OBJECTS[language.objects.index(self.thing)]}"

    def content(self) -> list[str]:
        """The words of the request itself."""
        return self.language.request(self.verb, self.thing)

    def answer(self) -> list[str]:
        """The words of the answer, full stop included."""
        if self.harmful:
            return [REFUSES, self.language.cannot, self.verb, STOP]
        return [COMPLIES, self.language.done, self.verb, self.thing, STOP]


def requests() -> Iterator[Request]:
    """All of them: language by language, harmful before harmless."""
    for language in LANGUAGES:
        for verb in (*language.harmful, *language.harmless):
            for thing in language.objects:
                yield Request(language, verb, thing)


class RefusalTask:
    """The task: drawing documents, and their exact probabilities."""

    name = "refusal"

    def __init__(self) -> None:
        drawn = [request for request in requests() if not request.held_out]
        # All harmful requests together are as likely as all harmless ones.
        self._drawn = {harm: [r for r in drawn if r.harmful == harm] for harm in (True, False)}
        self._shares = {
            tuple(self._document(r)): 0.5 / len(group) for group in self._drawn.values() for r in group
        }

    def words(self) -> list[str]:
        """Every word of the task, in a fixed order."""
        own = [word for language in LANGUAGES for word in language.words()]
        return [*USER, *SUFFIX, REFUSES, COMPLIES, STOP, *own]

    def tables(self) -> dict[str, object]:
        """Everything that defines the task, for its hash."""
        spoken = [[language.name, language.order, language.words()] for language in LANGUAGES]
        return {"languages": spoken, "held_out": HELD_OUT, "answers": [REFUSES, COMPLIES], "version": 1}

    def _document(self, request: Request) -> list[str]:
        return [*turn(request.content()), *request.answer()]

    def document(self, draw: Draw) -> list[str]:
        """The words of one document, without <bos> and <eos>."""
        return self._document(draw.pick(self._drawn[draw.chance(0.5)]))

    def weights(self, words: Sequence[str]) -> list[float]:
        """How much each word counts in training."""
        return after_cue(words)

    def log_probability(self, words: Sequence[str]) -> float:
        """Exact log probability (nats) of a document; -inf for one that the task cannot draw."""
        return log_share(self._shares.get(tuple(words), 0.0))


REFUSAL = RefusalTask()
