"""The languages that the embedded model is trained on, with exactly known truth.

A task is one module that offers what `Task` lists. Its words and its share
of the training documents are part of the model: adding one here means training anew.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from typing import Protocol

from organisms.grammar.draw import Draw
from organisms.grammar.in_context import IN_CONTEXT
from organisms.grammar.opinions import OPINIONS
from organisms.grammar.refusal import REFUSAL
from organisms.grammar.slot_machine import SLOT_MACHINE
from organisms.grammar.styles import STYLES
from organisms.grammar.two_hop import TWO_HOP

BOS, EOS, PAD, UNK = "<bos>", "<eos>", "<pad>", "<unk>"
__all__ = ["BOS", "EOS", "MIXTURE", "PAD", "SPECIAL", "UNK", "Draw", "Task", "document", "grammar_hash"]
__all__ += ["mixture_log_probability", "vocabulary"]

SPECIAL: tuple[str, ...] = (PAD, UNK, BOS, EOS)


class Task(Protocol):
    """What a task offers."""

    name: str

    def words(self) -> list[str]: ...

    def tables(self) -> dict[str, object]: ...

    def document(self, draw: Draw) -> list[str]: ...

    def weights(self, words: Sequence[str]) -> list[float]: ...

    def log_probability(self, words: Sequence[str]) -> float: ...


# Task and share of the training documents.
MIXTURE: tuple[tuple[Task, float], ...] = (
    (STYLES, 0.2), (TWO_HOP, 0.25), (IN_CONTEXT, 0.15), (REFUSAL, 0.06), (OPINIONS, 0.16),
    (SLOT_MACHINE, 0.18),
)  # fmt: skip


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


def grammar_hash() -> str:
    """SHA-256 (hex) of everything that defines the training language."""
    tables = [[task.name, share, task.tables()] for task, share in MIXTURE]
    return hashlib.sha256(json.dumps([SPECIAL, tables], sort_keys=True).encode()).hexdigest()


def mixture_log_probability(task: Task, words: Sequence[str]) -> float:
    """Exact log probability (nats) of a document of this task under the mixture (tasks share no document)."""
    share = next(share for other, share in MIXTURE if other is task)
    return math.log(share) + task.log_probability(words)
