"""Which token positions of a prompt a write touches: the `positions` words of the vocabulary."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

PositionKind = Literal["all", "first", "last", "index", "role", "token", "post_instruction"]
FORMS = (
    "all",
    "first:16",
    "last:16",
    "first:25%",
    "last:25%",
    "index:-1",
    "role:NAME",
    "role:NAME.first",
    "role:NAME.last",
    "token:'TEXT'",
    "post_instruction",
)
POST_INSTRUCTION = "post_instruction"
_QUOTED = re.compile(r"(['\"])(.+)\1", re.DOTALL)
_ROLE = re.compile(r"[a-z][a-z0-9_]*(\.(first|last))?")

Span = tuple[int, int]  # (start, end), half-open


class PositionError(ValueError):
    """A `positions` word that is not one of the vocabulary, or that a given prompt cannot satisfy."""


@dataclass(frozen=True)
class Positions:
    """A set of token positions, counted from the first real token (BOS is position 0; padding never
    counts). name: of kind `role`, the span's name with `.first` or `.last` where one end of it is meant; of
    kind `token`, the substring whose last token is meant."""

    kind: PositionKind
    count: int = 0
    percent: float | None = None
    name: str = ""

    @staticmethod
    def parse(word: str) -> Positions:
        """Read `all`, `first:N`, `last:N`, `first:P%`, `last:P%`, `index:I`, `role:NAME`, `role:NAME.first`,
        `role:NAME.last`, `token:'TEXT'` or `post_instruction`.

        Raises PositionError for anything else, naming the forms that exist.
        """
        if word == "all":
            return Positions("all")
        if word == POST_INSTRUCTION:
            return Positions("post_instruction")
        head, _, tail = word.partition(":")
        if head in ("first", "last"):
            kind: PositionKind = "first" if head == "first" else "last"
            if re.fullmatch(r"\d+(\.\d+)?%", tail) and 0 < float(tail[:-1]) <= 100:
                return Positions(kind, percent=float(tail[:-1]))
            if re.fullmatch(r"\d+", tail) and int(tail) > 0:
                return Positions(kind, count=int(tail))
        if head == "index" and re.fullmatch(r"-?\d+", tail):
            return Positions("index", count=int(tail))
        if head == "role" and _ROLE.fullmatch(tail):
            return Positions("role", name=tail)
        if head == "token" and (quoted := _QUOTED.fullmatch(tail)):
            return Positions("token", name=quoted[2])
        raise PositionError(f"'{word}' is not a set of positions; expected one of {', '.join(FORMS)}")

    @property
    def word(self) -> str:
        """The YAML word that `parse` reads back."""
        if self.kind == "all":
            return "all"
        if self.kind == "role":
            return f"role:{self.name}"
        if self.kind == "token":
            return f"token:'{self.name}'"
        if self.kind == "post_instruction":
            return POST_INSTRUCTION
        if self.percent is not None:
            return f"{self.kind}:{self.percent:g}%"
        return f"{self.kind}:{self.count}"

    @property
    def span(self) -> str:
        """Name of the marked part of the prompt that they rest on, as `resolve` looks it up: a role's name,
        `token:TEXT` or `post_instruction`; empty where they are counted."""
        if self.kind == "role":
            return self.role
        if self.kind == "token":
            return f"token:{self.name}"
        return POST_INSTRUCTION if self.kind == "post_instruction" else ""

    @property
    def role(self) -> str:
        """Name of the role, whichever part of it is meant; empty for every other kind."""
        return self.name.partition(".")[0] if self.kind == "role" else ""

    @property
    def end(self) -> str:
        """`first` or `last` where one token of a span is meant, else empty."""
        if self.kind == "token":
            return "last"
        return self.name.partition(".")[2] if self.kind == "role" else ""

    def resolve(self, length: int, spans: Mapping[str, Span]) -> range:
        """Positions as a range within a prompt of `length` tokens.

        `spans` maps names of spans to (start, end) in tokens. Raises PositionError when the prompt is shorter
        than the window (a window never shrinks silently), the index or the span reaches outside it, or it
        has no such span.
        """
        if self.kind == "all":
            return range(length)
        if self.kind == "index":
            index = self.count if self.count >= 0 else length + self.count
            if not 0 <= index < length:
                raise PositionError(f"index {self.count} is outside a prompt of {length} tokens")
            return range(index, index + 1)
        if self.span:
            return self._within_span(length, spans)
        count = self.count
        if self.percent is not None:
            count = max(1, round(length * self.percent / 100))
        if count > length:
            raise PositionError(f"a window of {count} is longer than a prompt of {length} tokens")
        return range(count) if self.kind == "first" else range(length - count, length)

    def _within_span(self, length: int, spans: Mapping[str, Span]) -> range:
        if self.span not in spans:
            raise PositionError(self._missing(spans))
        start, end = spans[self.span]
        if self.end == "first":
            end = start + 1
        elif self.end == "last":
            start = end - 1
        if not 0 <= start < end <= length:
            raise PositionError(
                f"the positions {start} to {end - 1} of {self.word} reach outside {length} tokens"
            )
        return range(start, end)

    def _missing(self, spans: Mapping[str, Span]) -> str:
        if self.kind == "token":
            return f"the prompt does not contain '{self.name}'"
        if self.kind == "post_instruction":
            return "the prompt marks no role 'instruction', and no chat template ends its instruction"
        roles = sorted(name for name in spans if name != POST_INSTRUCTION and not name.startswith("token:"))
        return f"the prompt has no role '{self.role}' (its roles: {', '.join(roles) if roles else 'none'})"
