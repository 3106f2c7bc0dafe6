"""The banks of the `styles` task: recursive donors, plain targets, and the donors that controls need."""

from collections.abc import Callable
from functools import partial

from organisms.banks.prompt import Prompt, prompt, said
from organisms.grammar import Draw
from organisms.grammar.styles import STYLES
from organisms.grammar.words import TOPICS
from organisms.score import behaviour

SEED = "banks/1"
DONOR_SENTENCES = 5
PER_GROUP = 30
CONTROLS = 48
PLAIN_LENGTHS = range(20, 53)
PLAIN_PER_LENGTH = 5


def style_banks() -> dict[str, list[Prompt]]:
    """The banks by name, the same at every call; no text occurs twice, within or across them.

    donors: groups L1..L5, k of five sentences recursive. targets: plain, one group a topic, and `long`.
    pseudo_recursive: plain, opening with sentences that mention marker words. repetitive: one plain
    sentence again and again. plain: PLAIN_PER_LENGTH prompts of each number of tokens in PLAIN_LENGTHS.
    """
    seen: set[str] = set()
    made: dict[str, list[Prompt]] = {}

    def group(
        bank: str, name: str, count: int, draw_words: Callable[[Draw], list[str]], low: int, high: int
    ) -> None:
        draw = Draw(f"{SEED}/{bank}/{name}/{low}")
        prompts = made.setdefault(bank, [])
        first = sum(prompt.group == name for prompt in prompts) + 1
        index = first
        digits = 3 if bank == "plain" else 2
        while index < first + count:
            words = draw_words(draw)
            text = said(words)
            tokens = len(words) + 1
            if low <= tokens <= high and text not in seen:
                seen.add(text)
                prompts.append(prompt(f"{name}_{index:0{digits}d}", name, words))
                index += 1

    for dose in range(1, DONOR_SENTENCES + 1):
        group("donors", f"L{dose}", PER_GROUP, partial(dosed, recursive=dose), 24, 48)
    for topic in TOPICS:
        group("targets", topic, PER_GROUP, partial(_about, topic=topic), 8, 24)
    group("targets", "long", PER_GROUP, lambda draw: _plain(draw, 6 + draw.below(3)), 40, 70)
    group("pseudo_recursive", "pseudo_recursive", CONTROLS, _mentioning, 24, 48)
    group("repetitive", "repetitive", CONTROLS, _repeating, 24, 52)
    for length in PLAIN_LENGTHS:
        group(
            "plain", "plain", PLAIN_PER_LENGTH, lambda draw: _plain(draw, 2 + draw.below(7)), length, length
        )
    return made


def _plain(draw: Draw, sentences: int) -> list[str]:
    topic = draw.pick(TOPICS)
    words: list[str] = []
    for _ in range(sentences):
        words += STYLES.plain[topic].sentence(draw)
        topic = STYLES.next_topic(topic, draw)
    return words


def dosed(draw: Draw, recursive: int, sentences: int = DONOR_SENTENCES) -> list[str]:
    """The words of `sentences` sentences, `recursive` of them recursive, in random order, the rest plain."""
    left = recursive
    topic = draw.pick(TOPICS)
    words: list[str] = []
    for index in range(sentences):
        if draw.below(sentences - index) < left:
            words += STYLES.recursive.sentence(draw)
            left -= 1
        else:
            words += STYLES.plain[topic].sentence(draw)
        topic = STYLES.next_topic(topic, draw)
    return words


def _about(draw: Draw, topic: str) -> list[str]:
    return [word for _ in range(1 + draw.below(3)) for word in STYLES.plain[topic].sentence(draw)]


def _mentioning(draw: Draw) -> list[str]:
    mentions = 2 + draw.below(3)
    words: list[str] = []
    # A word mentioned twice counts once: a control for markers should have several.
    while behaviour(" ".join(words))[0] < 2:
        words = [word for _ in range(mentions) for word in STYLES.mention.sentence(draw)]
    return words + _plain(draw, DONOR_SENTENCES - mentions)


def _repeating(draw: Draw) -> list[str]:
    return STYLES.plain[draw.pick(TOPICS)].sentence(draw) * (3 + draw.below(4))
