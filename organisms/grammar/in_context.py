"""The `in_context` task: four maps of the same words, told by demonstrations.

A document has one map and some pairs of it, "input day output night . input war output peace ." Of each word
the images under the four maps all differ, so the first pair fixes the map, and without one the best guess is
right in a quarter of the cases.
"""

import math
from collections.abc import Mapping, Sequence

from organisms.grammar.draw import Draw
from organisms.grammar.frames import STOP, sentences_of
from organisms.grammar.weights import ANSWER, DRAWN

# word, its opposite, and its Latin word; no opposite is itself among the words
_WORDS: tuple[tuple[str, str, str], ...] = (
    ("ally", "enemy", "socius"), ("arrival", "departure", "adventus"), ("boy", "girl", "puer"),
    ("buyer", "seller", "emptor"), ("day", "night", "dies"), ("east", "west", "oriens"),
    ("father", "mother", "pater"), ("floor", "ceiling", "solum"), ("gain", "loss", "lucrum"),
    ("head", "tail", "caput"), ("heat", "cold", "calor"), ("hero", "villain", "heros"),
    ("hill", "dale", "collis"), ("hope", "despair", "spes"), ("host", "guest", "hospes"),
    ("husband", "wife", "maritus"), ("life", "death", "vita"), ("light", "shade", "lux"),
    ("love", "hate", "amor"), ("man", "woman", "vir"), ("master", "servant", "dominus"),
    ("north", "south", "septentrio"), ("saint", "sinner", "sanctus"), ("sky", "ground", "caelum"),
    ("start", "end", "initium"), ("top", "bottom", "culmen"), ("truth", "falsehood", "veritas"),
    ("victory", "defeat", "victoria"), ("war", "peace", "bellum"), ("youth", "age", "iuventus"),
)  # fmt: skip
_IRREGULAR: Mapping[str, str] = {
    "man": "men", "ally": "allies", "life": "lives", "victory": "victories", "sky": "skies", "hero": "heroes",
}  # fmt: skip

INPUTS: tuple[str, ...] = tuple(word for word, _, _ in _WORDS)
# Opposite, next in the alphabetical list (the first after the last), plural, Latin word.
MAPS: Mapping[str, Mapping[str, str]] = {
    "antonym": {word: opposite for word, opposite, _ in _WORDS},
    "successor": dict(zip(INPUTS, (*INPUTS[1:], INPUTS[0]), strict=True)),
    "plural": {word: _IRREGULAR.get(word, f"{word}s") for word in INPUTS},
    "translation": {word: latin for word, _, latin in _WORDS},
}
PAIRS = range(1, 12)


def query(word: str) -> list[str]:
    """The words of a query, up to its answer: `input day output`."""
    return ["input", word, "output"]


def shots(name: str, words: Sequence[str]) -> list[str]:
    """Demonstrations of a map, one for each word: `input day output night .`"""
    return [part for word in words for part in (*query(word), MAPS[name][word], STOP)]


class InContextTask:
    """The task: drawing documents, and their exact probabilities."""

    name = "in_context"

    def __init__(self) -> None:
        for word in INPUTS:
            images = [table[word] for table in MAPS.values()]
            if len({word, *images}) < len(MAPS) + 1:
                raise ValueError(f"the images of {word!r} must all differ: {images}")

    def words(self) -> list[str]:
        """Every word of the task, in a fixed order."""
        images = [table[word] for table in MAPS.values() for word in INPUTS]
        return list(dict.fromkeys(["input", "output", STOP, *INPUTS, *images]))

    def tables(self) -> dict[str, object]:
        """Everything that defines the task, for its hash."""
        return {"maps": MAPS, "pairs": list(PAIRS), "version": 1}

    def document(self, draw: Draw) -> list[str]:
        """The words of one document, without <bos> and <eos>; no word is asked twice in one."""
        name = draw.pick(list(MAPS))
        return shots(name, draw.shuffled(INPUTS)[: draw.pick(PAIRS)])

    def weights(self, words: Sequence[str]) -> list[float]:
        """How much each word counts in training."""
        return [ANSWER if before == "output" else DRAWN for before in ("", *words[:-1])]

    def log_probability(self, words: Sequence[str]) -> float:
        """Exact log probability (nats) of a document; -inf for one that the task cannot draw."""
        asked = [sentence[1] for sentence in sentences_of(words) if len(sentence) == 5]
        fits = sum(
            set(asked) <= table.keys() and shots(name, asked) == list(words) for name, table in MAPS.items()
        )
        if fits == 0 or len(set(asked)) < len(asked) or len(asked) not in PAIRS:
            return -math.inf
        orders = sum(math.log(len(INPUTS) - index) for index in range(len(asked)))
        return math.log(fits / len(MAPS)) - math.log(len(PAIRS)) - orders


IN_CONTEXT = InContextTask()
