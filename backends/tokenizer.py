"""The one place where text becomes token ids: BOS once, no padding, chat template only where asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backends.broken import explain_broken
from backends.contract import BackendError, ModelSource
from backends.fingerprint import of_tokenizer
from backends.positions import PositionError, Span

_STAND_IN = "\ue000"  # of the private use area: in no chat template
# Variables of chat templates that would otherwise be the day's date, and a model's thinking aloud. A template
# that has no use for one ignores it; the date is the one that Llama's templates fall back on.
_DATE = "26 Jul 2024"
_THINKS_ALOUD = False
# Text on which a tokenizer is held against its own files, next to words of its vocabulary.
_LINES = ("the rain falls on the old harbour", "Two ships, one of 1842, left at dawn.")
_LOOKED_AT = 400  # tokens of the vocabulary among which words are looked for
_WORDS = 8


@dataclass(frozen=True)
class Tokenizer:
    """A model's tokenizer. `inner` is transformers' object."""

    inner: Any
    fingerprint: str
    chat: bool
    bos_id: int | None

    @staticmethod
    def load(source: ModelSource, chat: bool) -> Tokenizer:
        """Raises BackendError in a sentence when it cannot be had, mangles text that its own files keep, or a
        chat template is asked for and missing."""
        from transformers import AutoTokenizer
        from transformers.utils import logging

        logging.set_verbosity_error()  # type: ignore[no-untyped-call] # a prompt longer than the context is our own sentence
        assert source.path is not None, "backends.hub.fetch gives every source its folder"
        try:
            inner = AutoTokenizer.from_pretrained(source.path)
        except (OSError, ValueError, RuntimeError, ImportError) as error:
            raise BackendError(explain_broken(source, "tokenizer files", error)) from error
        _check_reading(inner, source)
        if chat and not inner.chat_template:
            raise BackendError(f"model '{source.name}': chat_template is true, but its tokenizer has none")
        return Tokenizer(inner, of_tokenizer(Path(source.path)), chat, inner.bos_token_id)

    def encode(self, text: str) -> tuple[int, ...]:
        """Token ids with exactly one BOS at the front where the model has one."""
        return self._with_bos(self.inner(self._as_fed(text), add_special_tokens=False)["input_ids"])

    def token_span(self, text: str, span: Span) -> Span:
        """Tokens of `encode(text)` that hold a part of it. span: (start, end) in characters of the text.

        These are all tokens that share a character with the span; one that reaches over its end counts
        whole. Raises PositionError where no token does or the chat template does not keep the text,
        BackendError where the tokenizer does not tell which characters its tokens stand for.
        """
        if not self.inner.is_fast:
            raise BackendError(
                f"role: positions need a tokenizer that tells which characters a token stands for (a fast "
                f"one); {type(self.inner).__name__} does not"
            )
        fed = self._as_fed(text)
        shift = self._start_of(text, fed)
        found = self.inner(fed, add_special_tokens=False, return_offsets_mapping=True)
        added = len(self._with_bos(found["input_ids"])) - len(found["input_ids"])
        start, end = span[0] + shift, span[1] + shift
        sharing = [
            index
            for index, (first, last) in enumerate(found["offset_mapping"], start=added)
            if max(first, start) < min(last, end)
        ]
        if not sharing:
            raise PositionError(f"no token stands for the marked '{text[slice(*span)]}'")
        return sharing[0], sharing[-1] + 1

    def _with_bos(self, ids: Sequence[int]) -> tuple[int, ...]:
        if self.bos_id is None or list(ids[:1]) == [self.bos_id]:
            return tuple(ids)
        return (self.bos_id, *ids)

    def _as_fed(self, text: str) -> str:
        if not self.chat:
            return text
        return str(
            self.inner.apply_chat_template(
                [{"role": "user", "content": text}],
                tokenize=False,
                add_generation_prompt=True,
                date_string=_DATE,
                enable_thinking=_THINKS_ALOUD,
            )
        )

    def _start_of(self, text: str, fed: str) -> int:
        """Where the text begins in what is fed, its own leading white space counted even if it was cut."""
        if not self.chat:
            return 0
        before, found, after = self._as_fed(_STAND_IN).partition(_STAND_IN)
        for kept in (text, text.strip(), text.lstrip(), text.rstrip()):
            if found and _STAND_IN not in after and fed == before + kept + after:
                return len(before) - (0 if kept[:1] == text[:1] else len(text) - len(text.lstrip()))
        raise PositionError("the chat template changes the text, so that its marked spans cannot be found")

    def continued(self, text: str, more: str) -> tuple[int, ...]:
        """Ids of `more` as what comes after the prompt `text`: after a space, or at once where what is fed
        ends in white space (as many chat templates do) or `more` begins with it.

        Raises PositionError where the two run together into one token, or `more` has words that the tokenizer
        does not know.
        """
        unknown = self.unknown_words(more)
        if unknown:
            raise PositionError(f"words that the tokenizer does not know: {', '.join(unknown[:3])}")
        fed = self._as_fed(text)
        gap = "" if not fed or fed[-1].isspace() or more[:1].isspace() else " "
        before = tuple(self.inner(fed, add_special_tokens=False)["input_ids"])
        whole = tuple(self.inner(fed + gap + more, add_special_tokens=False)["input_ids"])
        if whole[: len(before)] != before or len(whole) == len(before):
            raise PositionError(f"the prompt's last token and the beginning of '{more}' run together")
        return whole[len(before) :]

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """The tokens as the tokenizer writes them."""
        return [str(token) for token in self.inner.convert_ids_to_tokens(list(ids))]

    def unknown_words(self, text: str) -> list[str]:
        """Words of a text that the tokenizer maps to its unknown token; empty where it has none."""
        unknown = self.inner.unk_token_id
        if unknown is None:
            return []
        return [
            word
            for word in text.split()
            if unknown in self.inner(word, add_special_tokens=False)["input_ids"]
        ]

    def join(self, first: tuple[int, ...], second: tuple[int, ...]) -> tuple[int, ...]:
        """Two prompts as one: the BOS of the second is dropped."""
        return first + (second[1:] if second[:1] == (self.bos_id,) else second)

    def decode(self, ids: tuple[int, ...]) -> str:
        """Text of generated ids, special tokens left out."""
        return str(self.inner.decode(list(ids), skip_special_tokens=True))


def _check_reading(inner: Any, source: ModelSource) -> None:
    """Raises BackendError where transformers' tokenizer loses text that the folder's tokenizer.json keeps.

    transformers chooses a class by the architecture, and some classes take no more than the vocabulary from
    the file: a tokenizer of another kind then cuts every prompt into the wrong tokens, without a word.
    """
    from tokenizers import Tokenizer as FileTokenizer

    file = Path(str(source.path)) / "tokenizer.json"
    if not file.is_file():
        return
    try:
        own = FileTokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing narrower
        raise BackendError(explain_broken(source, "tokenizer files", error)) from error
    for line in (*_LINES, _known_words(own)):
        told = own.encode(line, add_special_tokens=False).ids
        ids = inner(line, add_special_tokens=False)["input_ids"]
        if list(ids) == told:
            continue
        kept = own.decode(told, skip_special_tokens=False)
        read = inner.decode(ids, clean_up_tokenization_spaces=False)
        if _bare(kept) == _bare(line) != _bare(read):
            raise BackendError(
                f"model '{source.name}': its tokenizer mangles text: '{line}' becomes {_shown(ids)}, which "
                f"is '{read}', as {type(inner).__name__} reads it, the class that transformers takes for "
                f"architecture '{source.architecture}'; by {file} it becomes {_shown(told)}, which "
                f"is '{kept}'. Expected a tokenizer of the kind that this class can read"
            )


def _known_words(own: Any) -> str:
    """A line of words that are tokens of a vocabulary, spread over it; empty where there are none."""
    size = own.get_vocab_size()
    tried = (own.decode([token]).strip() for token in range(0, size, max(1, size // _LOOKED_AT)))
    words = [word for word in tried if len(word) > 1 and word.isascii() and word.isalpha()]
    return " ".join(words[:: max(1, len(words) // _WORDS)][:_WORDS])


def _bare(text: str) -> str:
    return "".join(text.split())


def _shown(ids: Sequence[int]) -> str:
    return f"{' '.join(map(str, ids[:8]))}{' ...' if len(ids) > 8 else ''}"
