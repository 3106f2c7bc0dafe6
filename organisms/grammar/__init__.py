"""The languages that the embedded model is trained on, with exactly known truth.

A task is one module that offers `words`, `tables`, `document` and `log_probability`; adding one here adds
its words to the end of the vocabulary and its documents to the training mixture.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from typing import Protocol

from organisms.grammar.draw import Draw
from organisms.grammar.styles import STYLES

BOS, EOS, PAD, UNK = "<bos>", "<eos>", "<pad>", "<unk>"
__all__ = [
    "BOS",
    "EOS",
    "MIXTURE",
    "PAD",
    "SPECIAL",
    "UNK",
    "Draw",
    "Task",
    "document",
    "drill",
    "grammar_hash",
]
__all__ += ["mixture_log_probability", "vocabulary"]

SPECIAL: tuple[str, ...] = (PAD, UNK, BOS, EOS)


class Task(Protocol):
    """What a task offers."""

    name: str

    def words(self) -> list[str]: ...

    def tables(self) -> dict[str, object]: ...

    def document(self, draw: Draw) -> list[str]: ...

    def drill(self, draw: Draw) -> list[str]: ...

    def log_probability(self, words: Sequence[str]) -> float: ...


# Task and share of the training documents.
MIXTURE: tuple[tuple[Task, float], ...] = ((STYLES, 1.0),)


def vocabulary() -> dict[str, int]:
    """Every token and its id: the special ones, then the words of each task in order."""
    words = dict.fromkeys(SPECIAL)
    for task, _ in MIXTURE:
        words.update(dict.fromkeys(task.words()))
    return {word: index for index, word in enumerate(words)}


def document(name: str) -> tuple[Task, list[str]]:
    """The document of this name (any text): its task and its words, without <bos> and <eos>."""
    draw = Draw(name)
    task = MIXTURE[draw.weighted([share for _, share in MIXTURE])][0]
    return task, task.document(draw)


def drill(name: str) -> list[str]:
    """A document of a kind that is rare but has to be learned early (here: repetition); named likewise."""
    draw = Draw(name)
    return MIXTURE[draw.weighted([share for _, share in MIXTURE])][0].drill(draw)


def grammar_hash() -> str:
    """SHA-256 (hex) of everything that defines the training language."""
    tables = [[task.name, share, task.tables()] for task, share in MIXTURE]
    return hashlib.sha256(json.dumps([SPECIAL, tables], sort_keys=True).encode()).hexdigest()


def mixture_log_probability(task: Task, words: Sequence[str]) -> float:
    """Exact log probability (nats) of a document of this task under the mixture (tasks share no document)."""
    share = next(share for other, share in MIXTURE if other is task)
    return math.log(share) + task.log_probability(words)
