"""The shape of `prompts`: where the prompts of an item come from, how they are written and paired."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, model_validator

from runner.config.errors import listed
from runner.config.strict import ByLanguage, Language, Name, Names, Strict

SplitWord = Literal["all", "extract", "validate", "test"]


class BankChoice(Strict):
    """A prompt bank (a name within the language, or the path of a JSONL file), the groups and the split taken
    from it, and the template that its prompts are written by."""

    bank: str
    groups: Literal["all"] | Names = "all"
    split: SplitWord = "all"
    template: Name | None = None


class DonorsSpec(BankChoice):
    """Donors. agree, differ: facts (`group` counts as one) in which a donor and its target do."""

    agree: Names = ()
    differ: Names = ()


class RoleSpec(Strict):
    """A further prompt of each item: the item's own target or donor otherwise written (`of`), or one drawn
    from a bank.

    split: `target` is that of the targets. match: `random`, or `length` (nearest in tokens to the item's
    donor; where items have no donors, to its target). agree, differ: facts in which it and the target do.
    """

    of: Literal["target", "donor"] | None = None
    bank: str | None = None
    groups: Literal["all"] | Names = "all"
    split: SplitWord | Literal["target"] = "all"
    match: Literal["random", "length"] = "random"
    agree: Names = ()
    differ: Names = ()
    template: Name | None = None


class TemplateSpec(Strict):
    """How a prompt is written: so many other prompts of its group as `shot`, then itself as `query`.

    `{text}` is a prompt's text, `{FACT}` one of its facts (of a list the first), `{{` and `}}` are braces.
    permute: the answers of the shots are dealt out anew. split: where shots are drawn from. groups: `all` for
    shots of every group of the bank instead of the prompt's own.
    """

    query: ByLanguage = "{text}"
    shot: ByLanguage = ""
    shots: Annotated[int, Field(ge=0)] = 0
    permute: bool = False
    split: SplitWord = "all"
    groups: Literal["same", "all"] = "same"


class PairingSpec(Strict):
    """replace: prompts may recur. length_matched: the donor is near the target in tokens."""

    replace: bool = True
    length_matched: bool = False


class PromptsSpec(Strict):
    """Where the prompts of items come from. kind `pairs`: a donor and a target; `items`: a target by itself,
    each once. `groups` can be a mapping by language: the list of `language` takes its place."""

    name: str
    kind: Literal["pairs", "items"]
    language: Language
    donors: DonorsSpec | None = None
    targets: BankChoice
    roles: dict[Name, RoleSpec] = Field(default_factory=dict)
    templates: dict[Name, TemplateSpec] = Field(default_factory=dict)
    pairing: PairingSpec = PairingSpec()
    seed: int = 42

    @model_validator(mode="before")
    @classmethod
    def _of_language(cls, given: object) -> object:
        if not isinstance(given, Mapping):
            return given
        chosen = dict(given)
        for key in ("donors", "targets"):
            chosen[key] = _groups_of(given.get("language"), given.get(key))
        if isinstance(given.get("roles"), Mapping):
            roles = given["roles"].items()
            chosen["roles"] = {name: _groups_of(given.get("language"), role) for name, role in roles}
        return {key: value for key, value in chosen.items() if key in given}

    @property
    def pairs(self) -> bool:
        """Whether items have donors."""
        return self.kind == "pairs"

    def choice(self, role: str) -> BankChoice | None:
        """Where the prompts of a role come from: of the target or donor otherwise written, where those do.
        None where nothing says."""
        spec = self.roles[role]
        if spec.of is not None:
            side = self.targets if spec.of == "target" else self.donors
            return None if side is None else _plain(side, side.bank, side.split, spec.template)
        if spec.bank is None:
            return None
        return _plain(
            spec, spec.bank, self.targets.split if spec.split == "target" else spec.split, spec.template
        )

    def no_donors(self, word: str) -> str:
        """The sentence for a word that names a donor where items have none."""
        roles = [f"donor:{name}" for name in self.roles]
        return f"prompts of kind items have no donors, only roles ({listed(roles)}), got '{word}'"


def _plain(choice: BankChoice | RoleSpec, bank: str, split: SplitWord, template: str | None) -> BankChoice:
    return BankChoice(bank=bank, groups=choice.groups, split=split, template=template)


def _groups_of(language: object, choice: object) -> object:
    groups = choice.get("groups") if isinstance(choice, Mapping) else None
    if isinstance(choice, Mapping) and isinstance(groups, Mapping) and language in groups:
        return {**choice, "groups": groups[language]}
    return choice
