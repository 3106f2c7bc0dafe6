"""Marked parts of prompts as tokens."""

from __future__ import annotations

from dataclasses import dataclass, field

from backends.positions import POST_INSTRUCTION, PositionError, Positions, Span
from backends.tokenizer import Tokenizer
from runner.prompts.banks import Prompt
from runner.prompts.marks import lacks, marked_text


@dataclass(frozen=True)
class SpanFinder:
    """Token spans of prompts, each found once."""

    tokenizer: Tokenizer
    found: dict[tuple[str, Span], Span] = field(default_factory=dict)

    def find(self, positions: Positions, prompt: Prompt) -> Span:
        """Tokens of the marked part of a prompt that positions rest on, half-open: those of the role, of the
        last occurrence of the text, or all that come after the instruction.

        Raises PositionError, the reason as it goes on after the prompt's name, where the prompt has no such
        part or no token stands for it.
        """
        marked = marked_text(positions, prompt)
        if positions.span != POST_INSTRUCTION:
            if marked is None:
                raise PositionError(lacks(positions, prompt))
            return self._tokens(positions, prompt.text, marked)
        if marked is None:
            if not self.tokenizer.chat:
                raise PositionError(lacks(positions, prompt))
            # A template may trim the text, so that white space around it is no part of what is fed.
            text = prompt.text
            marked = len(text) - len(text.lstrip()), len(text.rstrip())
        start, end = self._tokens(positions, prompt.text, marked)[1], len(self.tokenizer.encode(prompt.text))
        if start == end:
            raise PositionError("has nothing after its instruction")
        return start, end

    def _tokens(self, positions: Positions, text: str, span: Span) -> Span:
        if (text, span) not in self.found:
            try:
                self.found[text, span] = self.tokenizer.token_span(text, span)
            except PositionError as error:
                raise PositionError(f"at {positions.word}: {error}") from error
        return self.found[text, span]
