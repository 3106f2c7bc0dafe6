"""The `styles` task: documents that mix plain and self-referential ("recursive") sentences.

A document is drawn so:

1. With probability REPEAT it is one plain sentence said again and again.
2. Otherwise it has a latent recursion rate r from RATES and a topic (uniform); with probability GLOSSARY it
   opens with a glossary, whose sentences *mention* marker words and which goes on with probability
   GLOSSARY_STAYS after each of them. After the glossary each sentence is recursive with probability r, else
   plain, about the topic. The topic stays with probability TOPIC_STAYS from sentence to sentence (recursive
   ones included), else becomes one of the others.
3. The number of sentences is drawn from LENGTHS.

So the truth about "is the next sentence recursive?" is the posterior predictive of a discrete mixture:
glossary sentences are no evidence about r, and a share d of recursive sentences is. `StylesTask.predict`
gives it exactly, `log_probability` the exact probability of a whole document. Recursive sentences open with
words that open no other sentence, so a model's belief can be read off the distribution of one token.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from organisms.grammar.draw import Draw
from organisms.grammar.frames import FrameSet, sentences_of
from organisms.grammar.weights import TEXT
from organisms.grammar.words import MARKERS, MENTION_FRAMES, PLAIN_FRAMES, RECURSIVE_FRAMES, SLOTS, TOPICS

RATES: tuple[tuple[float, float], ...] = (
    (0.0, 0.52), (0.2, 0.06), (0.4, 0.06), (0.6, 0.06), (0.8, 0.06), (1.0, 0.24),
)  # fmt: skip
REPEAT = 0.03
GLOSSARY = 0.08
GLOSSARY_STAYS = 0.6
TOPIC_STAYS = 0.5
# Number of sentences -> probability: most documents have 8 to 16 sentences, some end early.
LENGTHS: dict[int, float] = {n: 0.02 if n < 8 else 0.1 for n in range(3, 17)}


@dataclass(frozen=True)
class Belief:
    """What the grammar knows before the next sentence of a context.

    `recursive`, `plain`, `mention`, `end`: probabilities of what comes next, sum 1 (a repeated sentence
    counts as plain); `log_probability`: that of the context (nats).
    """

    recursive: float
    plain: float
    mention: float
    end: float
    log_probability: float

    @property
    def recursive_given_sentence(self) -> float:
        """P(the next sentence is recursive | there is one); nan where the document must end here."""
        return self.recursive / (1.0 - self.end) if self.end < 1.0 else math.nan


class StylesTask:
    """The task: drawing documents, and their exact probabilities."""

    name = "styles"

    def __init__(self) -> None:
        self.plain: dict[str, FrameSet] = {topic: FrameSet(PLAIN_FRAMES[topic], SLOTS) for topic in TOPICS}
        self.recursive = FrameSet(RECURSIVE_FRAMES, SLOTS)
        self.mention = FrameSet(MENTION_FRAMES, SLOTS)
        self._check()

    def _check(self) -> None:
        for topic, frames in self.plain.items():
            text = " ".join(frames.words())
            if found := [marker for marker in MARKERS if marker in text]:
                raise ValueError(f"words of topic {topic!r} contain the markers {found}")
        shared = self.recursive.openers() & self.plain_openers()
        if shared:
            raise ValueError(f"words that open sentences of both styles: {sorted(shared)}")

    def plain_openers(self) -> frozenset[str]:
        """The words that open a plain (or mentioning) sentence."""
        return self.mention.openers().union(*(frames.openers() for frames in self.plain.values()))

    def words(self) -> list[str]:
        """Every word of the task, full stop included, in a fixed order."""
        sets = [*self.plain.values(), self.mention, self.recursive]
        return list(dict.fromkeys(word for frames in sets for word in frames.words()))

    def tables(self) -> dict[str, object]:
        """Everything that defines the task, for its hash."""
        return {
            "slots": SLOTS, "plain": PLAIN_FRAMES, "recursive": RECURSIVE_FRAMES, "mention": MENTION_FRAMES,
            "topics": TOPICS, "rates": RATES, "repeat": REPEAT, "glossary": [GLOSSARY, GLOSSARY_STAYS],
            "topic_stays": TOPIC_STAYS, "lengths": {str(n): p for n, p in LENGTHS.items()}, "version": 1,
        }  # fmt: skip

    # drawing

    def document(self, draw: Draw) -> list[str]:
        """The words of one document, without <bos> and <eos>."""
        if draw.chance(REPEAT):
            return self.drill(draw)
        count = list(LENGTHS)[draw.weighted(list(LENGTHS.values()))]
        rate = RATES[draw.weighted([p for _, p in RATES])][0]
        glossary = draw.chance(GLOSSARY)
        topic = draw.pick(TOPICS)
        words: list[str] = []
        for index in range(count):
            if index:
                glossary = glossary and draw.chance(GLOSSARY_STAYS)
                topic = self.next_topic(topic, draw)
            if glossary:
                words += self.mention.sentence(draw)
            elif draw.chance(rate):
                words += self.recursive.sentence(draw)
            else:
                words += self.plain[topic].sentence(draw)
        return words

    def drill(self, draw: Draw) -> list[str]:
        """A document that repeats one plain sentence."""
        count = list(LENGTHS)[draw.weighted(list(LENGTHS.values()))]
        return self.plain[draw.pick(TOPICS)].sentence(draw) * count

    def next_topic(self, topic: str, draw: Draw) -> str:
        """The topic of the next sentence."""
        return topic if draw.chance(TOPIC_STAYS) else draw.pick([t for t in TOPICS if t != topic])

    # exact inference

    def predict(self, words: Sequence[str]) -> Belief:
        """The exact belief about what follows a context of whole sentences.

        Raises ValueError if the context does not end in a full stop or the grammar cannot produce it.
        """
        return list(self._beliefs(sentences_of(words)))[-1]

    def weights(self, words: Sequence[str]) -> list[float]:
        """How much each word counts in training."""
        return [TEXT] * len(words)

    def log_probability(self, words: Sequence[str]) -> float:
        """Exact log probability (nats) of a whole document, its end included; errors as `predict`."""
        belief = self.predict(words)
        if belief.end == 0.0:
            return -math.inf
        return belief.log_probability + math.log(belief.end)

    def _beliefs(self, sentences: list[list[str]]) -> Iterator[Belief]:
        # state[(rate, topic, glossary)]: weight of the coming sentence's latents, scaled by exp(-log_scale).
        state = {
            (rate, topic, glossary): (1.0 - REPEAT)
            * p
            / len(TOPICS)
            * (GLOSSARY if glossary else 1.0 - GLOSSARY)
            for rate, p in RATES
            for topic in TOPICS
            for glossary in (False, True)
        }
        repeat = REPEAT
        log_scale = 0.0
        switch = (1.0 - TOPIC_STAYS) / (len(TOPICS) - 1)
        for index in range(len(sentences) + 1):
            end = end_hazard(index)
            total = sum(state.values()) + repeat
            mention = sum(weight for (_, _, glossary), weight in state.items() if glossary) / total
            recursive = (
                sum(weight * rate for (rate, _, glossary), weight in state.items() if not glossary) / total
            )
            yield Belief(
                recursive=(1.0 - end) * recursive,
                plain=(1.0 - end) * (1.0 - recursive - mention),
                mention=(1.0 - end) * mention,
                end=end,
                log_probability=log_scale + math.log(total),
            )
            if index == len(sentences):
                return
            sentence = sentences[index]
            plain = {topic: frames.probability(sentence) for topic, frames in self.plain.items()}
            as_recursive = self.recursive.probability(sentence)
            as_mention = self.mention.probability(sentence)
            moved = dict.fromkeys(state, 0.0)
            for (rate, topic, glossary), weight in state.items():
                if glossary:
                    weight *= as_mention
                else:
                    weight *= rate * as_recursive + (1.0 - rate) * plain[topic]
                if weight == 0.0:
                    continue
                for after in TOPICS:
                    share = weight * (TOPIC_STAYS if after == topic else switch)
                    if glossary:
                        moved[(rate, after, True)] += share * GLOSSARY_STAYS
                        share *= 1.0 - GLOSSARY_STAYS
                    moved[(rate, after, False)] += share
            if index == 0:
                repeat *= sum(plain.values()) / len(TOPICS)
            elif sentence != sentences[0]:
                repeat = 0.0
            scale = sum(moved.values()) + repeat
            if scale == 0.0 or end == 1.0:
                raise ValueError(f"the grammar cannot produce sentence {index}: {' '.join(sentence)!r}")
            state = {key: weight / scale for key, weight in moved.items()}
            repeat /= scale
            log_scale += math.log(scale) + math.log1p(-end)


def end_hazard(sentences: int) -> float:
    """P(the document ends here | it has this many sentences so far)."""
    left = sum(p for n, p in LENGTHS.items() if n >= sentences)
    if sentences >= max(LENGTHS):
        return 1.0
    return LENGTHS.get(sentences, 0.0) / left


STYLES = StylesTask()
