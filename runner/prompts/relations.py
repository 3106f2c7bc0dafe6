"""Which prompts go with which, by their facts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from runner.config.prompts.spec import DonorsSpec, RoleSpec
from runner.prompts.banks import Fact, Prompt

GROUP = "group"  # what a prompt's group is called among its facts


@dataclass(frozen=True)
class Relation:
    """Facts in which a prompt and a target agree, and in which they differ. False where there are none."""

    agree: tuple[str, ...] = ()
    differ: tuple[str, ...] = ()

    @staticmethod
    def of(choice: DonorsSpec | RoleSpec) -> Relation:
        """That of donors or of a role."""
        return Relation(choice.agree, choice.differ)

    def __bool__(self) -> bool:
        return bool(self.agree or self.differ)

    def holds(self, prompt: Prompt, target: Prompt) -> bool:
        """Whether it holds of two prompts that are not one. A fact that one of them does not state neither
        agrees nor differs, so that no relation in it holds."""
        return not same(prompt, target) and (
            all(_agree(prompt, target, name) is True for name in self.agree)
            and all(_agree(prompt, target, name) is False for name in self.differ)
        )

    def among(self, prompts: Iterable[Prompt], target: Prompt) -> list[Prompt]:
        """Those of the prompts of which it holds, with this target."""
        return [prompt for prompt in prompts if self.holds(prompt, target)]

    @property
    def words(self) -> str:
        """`agrees in bridge and differs in e1, answer`."""
        parts = (("agrees", self.agree), ("differs", self.differ))
        return " and ".join(f"{verb} in {', '.join(names)}" for verb, names in parts if names)


def fact_of(prompt: Prompt, name: str) -> Fact | None:
    """A fact of a prompt, its group among them; None where it states none of that name."""
    return prompt.group if name == GROUP else prompt.facts.get(name)


def same(one: Prompt, other: Prompt) -> bool:
    """Whether two prompts are one in their bank, however each is written."""
    return one.source == other.source


def _agree(one: Prompt, other: Prompt, name: str) -> bool | None:
    """Whether two prompts state the same fact, lists of texts where any text is in both; None where one of
    them does not state it."""
    facts = fact_of(one, name), fact_of(other, name)
    if None in facts:
        return None
    first, second = map(_readings, facts)
    return bool(first & second)


@lru_cache(maxsize=4096, typed=True)
def _readings(fact: Fact | None) -> frozenset[object]:
    """What counts as a fact: texts whatever their capitals; true and false apart from 1 and 0."""
    texts = fact if isinstance(fact, tuple) else (fact,)
    return frozenset(
        text.casefold() if isinstance(text, str) else (isinstance(text, bool), text) for text in texts
    )
