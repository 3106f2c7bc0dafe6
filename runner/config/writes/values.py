"""What a write writes: the words of `value`, resolved."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from backends.writes import LAYERLESS, SELF, Constant, PromptSet, Value
from runner.config.errors import listed, suggestion
from runner.config.layers import LayerError, resolve_layer, resolve_layers
from runner.config.spec import BankChoice, LayerItem, PromptsSpec, Spec, WriteSpec
from runner.config.stages.artefact_files import ArtefactError
from runner.config.stages.artefact_values import artefact_constant
from runner.config.writes.vectors import VectorError, constant_of
from runner.config.writes.widths import width_of

DONOR = "donor"
OTHER_DONOR = "other_donor"
TARGETS = "targets"
DONORS = "donors"
NO_VALUE = {
    "zero": "writes zeros",
    "scale": "multiplies what is there by alpha",
    "mask": "cuts what `keys` and `positions` name",
}
SHUFFLED = ("shuffled_window", "shuffled_sequence")
RANDOM_FORMS = ("random", "random:artefact:NAME", "random:file:PATH")
RANDOM = ("random", "orthogonal", *SHUFFLED)  # words whose value differs by draw
VALUE_FORMS = (
    DONOR,
    "donor:ROLE",
    OTHER_DONOR,
    SELF,
    "layer:N",
    "random",
    "shuffled_window",
    "shuffled_sequence",
    "orthogonal",
    "mean:SET",
    "artefact:NAME",
    "file:PATH",
)
FEATURE_FORMS = (
    "a number",
    DONOR,
    "donor:ROLE",
    OTHER_DONOR,
    SELF,
    "mean:SET",
    "artefact:NAME",
    "file:PATH",
)


class WordError(ValueError):
    """A word of a write that is not of the vocabulary, or that the model or prompts have nothing for."""


@dataclass(frozen=True, kw_only=True)
class NamedSet(PromptSet):
    """A set of prompts before they are read: `name` says whose (`targets`, `donors` or a role, with /GROUP
    where one group is meant), choice which. Token ids take its place when prompts are tokenised."""

    prompts: tuple[tuple[int, ...], ...] = ()
    choice: BankChoice


def value_word(write: WriteSpec) -> str:
    """The word that a value begins with; `number` for a number, empty where there is none."""
    if write.value is None:
        return ""
    return write.value.partition(":")[0] if isinstance(write.value, str) else "number"


def has_source(write: WriteSpec) -> bool:
    """Whether the value is read from the run of a prompt, so that it has a window of positions."""
    word = value_word(write)
    if word == "orthogonal":
        return not stands_in_for(write)
    return write.op not in NO_VALUE and word in (DONOR, OTHER_DONOR, SELF, "layer", *SHUFFLED)


def stands_in_for(write: WriteSpec) -> str:
    """`file` or `artefact` where a value is noise in place of such a vector (`random:file:PATH`), else
    empty."""
    if value_word(write) not in ("random", "orthogonal"):
        return ""
    kind = str(write.value).split(":")[1:2]
    return kind[0] if kind in (["file"], ["artefact"]) else ""


def reads_artefact(write: WriteSpec) -> bool:
    """Whether the value is a vector of an artefact, or noise in place of one."""
    return "artefact" in (value_word(write), stands_in_for(write))


def shown(value: object) -> str:
    """A value for a sentence: a word in quotes, a number as it is."""
    return f"'{value}'" if isinstance(value, str) else str(value)


def resolve_value(write: WriteSpec, spec: Spec) -> Value:
    """What is written; `under` aside. Raises WordError for an unknown word, a role that the prompts do not
    have, a file that holds no such vector, or a value that is missing or has nothing to do."""
    if write.op in NO_VALUE:
        if write.value is not None:
            raise WordError(
                f"op {write.op} {NO_VALUE[write.op]} and takes no value, got {shown(write.value)}"
            )
        return Value("none")
    forms = FEATURE_FORMS if write.op == "set_feature" else VALUE_FORMS
    if write.value is None:
        raise WordError(f"op {write.op} needs a value: {listed(forms)}")
    if not isinstance(write.value, str):
        return _number(write, write.value)
    word, colon, rest = write.value.partition(":")
    prompts = spec.prompts
    if word in (*SHUFFLED, "orthogonal") and colon and not rest:
        raise WordError(f"expected what {word} is drawn from after the colon, or no colon (the donor)")
    if word == "shuffled_window":
        return Value("shuffled_window", _source_role(rest or DONOR, prompts), write.draws)
    if word == "shuffled_sequence":
        return Value("shuffled_sequence", _source_role(rest or DONOR, prompts), write.draws)
    if word == "orthogonal":
        kind, _, name = rest.partition(":")
        if kind in ("file", "artefact"):
            return Value("orthogonal", draws=write.draws, constant=_constant(kind, name, write, spec))
        return Value("orthogonal", _source_role(rest or DONOR, prompts, ("file:PATH",)), write.draws)
    if word == "random":
        kind, _, name = rest.partition(":")
        if kind in ("file", "artefact"):
            return Value("random", draws=write.draws, constant=_constant(kind, name, write, spec))
        if colon:
            known = ("artefact", "file")
            near = suggestion(kind, known)
            raise WordError(f"expected one of {listed(RANDOM_FORMS)}, got '{write.value}'{near}")
        return Value("random", draws=write.draws)
    if write.value in (DONOR, OTHER_DONOR, SELF):
        return Value("source", _source_role(write.value, prompts))
    if word == DONOR:
        return Value("source", _named_role(rest, prompts))
    if word == "layer":
        return Value("source", SELF, layer=_source_layer(rest, spec))
    if word == "mean":
        return Value("mean", prompts=_named_set(rest, prompts))
    if word in ("file", "artefact"):
        return Value("constant", constant=_constant(word, rest, write, spec))
    near = suggestion(word if rest else write.value, [form.partition(":")[0] for form in forms])
    if write.op == "set_feature" and re.fullmatch(r"\d+(\.\d*)?", write.value):
        near = "; in quotes it is a text, without them a number"
    raise WordError(f"expected one of {listed(forms)}, got '{write.value}'{near}")


def _number(write: WriteSpec, number: float) -> Value:
    if write.op != "set_feature":
        raise WordError(
            f"a number is the value of a feature (site sae, op set_feature); op {write.op} takes one of "
            f"{listed(VALUE_FORMS)}, got {number:g}"
        )
    if number < 0:
        raise WordError(f"expected a value that a feature can have, 0 or more, got {number:g}")
    return Value("number", number=float(number))


def _source_layer(word: str, spec: Spec) -> int:
    try:
        return layer_named(word, spec)
    except LayerError as error:
        raise WordError(str(error)) from error


def layer_named(word: LayerItem, spec: Spec) -> int:
    """The one absolute layer that a word or an index names. Raises LayerError."""
    return resolve_layer(str(word), spec.model.layers, spec.reference_depth, spec.model.landmarks)


def _named_set(word: str, prompts: PromptsSpec) -> NamedSet:
    whose, slash, group = word.partition("/")
    choices: dict[str, BankChoice] = {TARGETS: prompts.targets}
    if prompts.pairs and prompts.donors is not None:
        choices[DONORS] = prompts.donors
    roles = {name: prompts.choice(name) for name in prompts.roles if name not in (TARGETS, DONORS)}
    choices |= {name: choice for name, choice in roles.items() if choice is not None}
    if whose not in choices or (slash and not group):
        raise WordError(
            f"expected the set of a mean ({listed(choices)}; with /GROUP for one group of it), got '{word}'"
            f"{suggestion(whose, choices)}"
        )
    choice = choices[whose]
    groups = (group,) if group else choice.groups
    return NamedSet(
        name=word, choice=BankChoice(bank=choice.bank, groups=groups, split=choice.split)
    )  # of a role without its `match`, which says nothing about a set


def _constant(kind: str, name: str, write: WriteSpec, spec: Spec) -> Constant:
    """The vectors that `file:PATH` or `artefact:NAME` names, checked for the site and layers of a write."""
    if kind == "artefact":
        try:
            return artefact_constant(name, write, spec)
        except ArtefactError as error:
            raise WordError(str(error)) from error
    if write.site == "sae":
        values = _read(name, ((len(write.features or ()),),))
        if (values.array < 0).any():
            raise WordError(
                f"expected values that features can have, 0 or more, got {values.array.min():g} in '{name}'"
            )
        return values
    width = width_of(write.site, spec.model)
    per_layer = () if write.site in LAYERLESS else ((spec.model.layers, width),)
    constant = _read(name, ((width,), *per_layer))
    vectors = constant.array[None] if constant.array.ndim == 1 else constant.array[_layers(write, spec)]
    zero = np.flatnonzero(~vectors.any(axis=1))
    if len(zero):
        where = "" if constant.array.ndim == 1 else f" at layer {_layers(write, spec)[zero[0]]}"
        raise WordError(f"the vector in '{name}' is zero{where}, which is no direction; zeros are op: zero")
    return constant


def _read(path: str, shapes: tuple[tuple[int | None, ...], ...]) -> Constant:
    if not path:
        raise WordError("expected file:PATH, got no path")
    try:
        return constant_of(path, shapes)
    except VectorError as error:
        raise WordError(str(error)) from error


def _layers(write: WriteSpec, spec: Spec) -> list[int]:
    """Layers of a write, all of them where its own word is wrong, which is told by itself."""
    try:
        word = "all" if write.layers is None else write.layers
        return list(resolve_layers(word, spec.model.layers, spec.reference_depth, spec.model.landmarks))
    except LayerError:
        return list(range(spec.model.layers))


def _named_role(role: str, prompts: PromptsSpec) -> str:
    if role in prompts.roles:
        return role
    raise WordError(
        f"expected a role of the prompts '{prompts.name}' ({listed(prompts.roles)}), got '{role}'"
        f"{suggestion(role, prompts.roles)}"
    )


def _source_role(role: str, prompts: PromptsSpec, more: tuple[str, ...] = ()) -> str:
    """The role of a source that a word names after its colon. more: what else that word takes there."""
    if role in (DONOR, OTHER_DONOR) and not prompts.pairs:
        raise WordError(f"{prompts.no_donors(role)}; the row's own prompt is {SELF}")
    if role in (DONOR, OTHER_DONOR, SELF):
        return role
    name = role.removeprefix("donor:")
    if name not in prompts.roles:
        donors = (DONOR, OTHER_DONOR) if prompts.pairs else ()
        forms = (*donors, SELF, *(f"donor:{known}" for known in prompts.roles), *more)
        near = suggestion(role, (*forms, *prompts.roles))
        raise WordError(f"expected a source ({listed(forms)}), got '{role}'{near}")
    return name
