"""The one place where text becomes token ids: BOS once, no padding, chat template only where asked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backends.contract import BackendError, ModelSource
from backends.fingerprint import of_tokenizer


@dataclass(frozen=True)
class Tokenizer:
    """A model's tokenizer. `inner` is transformers' object."""

    inner: Any
    fingerprint: str
    chat: bool
    bos_id: int | None

    @staticmethod
    def load(source: ModelSource, chat: bool) -> Tokenizer:
        """Raises BackendError in a sentence when it cannot be had, or a chat template is asked for and
        missing."""
        from transformers import AutoTokenizer
        from transformers.utils import logging

        from backends.broken import explain_broken

        logging.set_verbosity_error()  # type: ignore[no-untyped-call] # a prompt longer than the context is our own sentence
        assert source.path is not None, "backends.hub.fetch gives every source its folder"
        try:
            inner = AutoTokenizer.from_pretrained(source.path)
        except (OSError, ValueError, RuntimeError, ImportError) as error:
            raise BackendError(explain_broken(source, "tokenizer files", error)) from error
        if chat and not inner.chat_template:
            raise BackendError(f"model '{source.name}': chat_template is true, but its tokenizer has none")
        return Tokenizer(inner, of_tokenizer(Path(source.path)), chat, inner.bos_token_id)

    def encode(self, text: str) -> tuple[int, ...]:
        """Token ids with exactly one BOS at the front where the model has one."""
        if self.chat:
            message = [{"role": "user", "content": text}]
            text = self.inner.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
        ids = list(self.inner(text, add_special_tokens=False)["input_ids"])
        if self.bos_id is not None and ids[:1] != [self.bos_id]:
            ids.insert(0, self.bos_id)
        return tuple(ids)

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
