"""What a readout's name stands for: which fields its kind reads, which columns it gives, and what it asks of
tokens and layers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import cast, get_args

from analyses.tables.columns import INTEGERS, NUMBER, NUMBERS
from backends.measures import Probe, ProbeKind, Scope
from backends.probes import kinds as probe_kinds
from runner.config.errors import listed, suggestion
from runner.config.layers import LayerError, LayerWord, resolve_layers
from runner.config.readouts.derivation import Derivation, Entry
from runner.config.readouts.positions import one_position
from runner.config.spec import DerivedKind, ReadoutSpec, ScoreKind, Spec

Key = tuple[str | int, ...]
Fault = tuple[Key, str]

FACT = "fact:"
TARGET = "target"
BEHAVIOUR = ("score", "markers", "bonus", "strict")
SCORES: tuple[str, ...] = get_args(ScoreKind)  # kinds that need the generated text alone
DERIVED: tuple[str, ...] = get_args(DerivedKind)  # kinds that need other columns of the trial alone
OF_OUTPUT = (*SCORES, "perplexity")  # kinds that need a generated text
RANKS = ".rank"  # how the list columns of ranks by layer end
LAYERED = probe_kinds.PER_LAYER  # kinds whose lists have one entry for each layer asked
_INTEGERS, _NUMBERS = ("ids", "rank", "top"), ("probs", "prob", "tokens")  # ends of the names of list columns
_HELD = dict.fromkeys(_INTEGERS, INTEGERS) | dict.fromkeys(_NUMBERS, NUMBERS)
WINDOWS = (16,)
TOP = 5


@dataclass(frozen=True)
class _Kind:
    """Fields that a kind cannot do without, and those that it also reads."""

    needs: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()


_AT = ("position", "first_token")
KINDS: Mapping[str, _Kind] = {
    "behaviour": _Kind(),
    "contains": _Kind(("tokens",)),
    "degenerate": _Kind(),
    "onset": _Kind(("of", "within")),
    "difference": _Kind(("of", "minus")),
    "holds": _Kind(("of",), ("above", "below")),
    "perplexity": _Kind(),
    "next_token": _Kind(("tokens",), _AT),
    "log_odds": _Kind(("tokens",), ("against", *_AT)),
    "rank": _Kind(("tokens",), _AT),
    "accuracy": _Kind(("tokens",), _AT),
    "top_k": _Kind((), ("top", "position")),
    "kl": _Kind((), ("position",)),
    "lens": _Kind((), ("tokens", "layers", *_AT)),
    "patchscope": _Kind(("scope",), ("tokens", "layers", *_AT)),
    "cross_entropy": _Kind(),
    "logprob": _Kind(("continuation",)),
    "geometry": _Kind((), ("layers", "windows", "site")),
}


class ReadoutError(ValueError):
    """A word of a readout that means nothing for this model, or that its kind has no use for."""


@dataclass(frozen=True)
class Source:
    """Where words come from: `words` as they stand, or the fact of that name of the prompt in a role
    (`target`, `donor`, `other_donor` or a role of the prompts)."""

    words: tuple[str, ...] = ()
    fact: str = ""
    role: str = TARGET

    @property
    def word(self) -> str:
        """As it stands in YAML."""
        if not self.fact:
            return ", ".join(self.words)
        return FACT + (self.fact if self.role == TARGET else f"{self.role}/{self.fact}")


@dataclass(frozen=True)
class Readout:
    """A readout, resolved. columns: name -> number, numbers (a list) or integers (a list). probe: what the
    backend measures, without the ids of a patchscope's prompt; None for a score of the text and a derived
    one. tokens, against: where its token sets come from; continuation: where its fixed text does. scope: the
    patchscope's prompt. labels: where the words come from that a text is searched for. derivation: how it
    follows from other columns."""

    name: str
    kind: str
    version: int
    columns: Mapping[str, str] = field(hash=False)
    probe: Probe | None = None
    tokens: Source | None = None
    against: Source | None = None
    first_token: bool = False
    continuation: Source | None = None
    scope: str | None = None
    labels: Source | None = None
    derivation: Derivation | None = None

    @property
    def of_output(self) -> bool:
        """Whether it reads a generated text."""
        return self.kind in OF_OUTPUT

    @property
    def sources(self) -> tuple[tuple[str, Source], ...]:
        """(field, source) of everything that a tokenizer must turn into ids."""
        given = (("tokens", self.tokens), ("against", self.against), ("continuation", self.continuation))
        return tuple((name, source) for name, source in given if source is not None)

    def described(self) -> dict[str, object]:
        """The readout in plain data, for the manifest."""
        found: dict[str, object] = {
            "kind": self.kind,
            "version": self.version,
            "columns": dict(self.columns),
            **{name: source.word for name, source in self.sources},
        }
        if self.labels is not None:
            found["tokens"] = self.labels.word
        if self.derivation is not None:
            found |= self.derivation.described()
        probe, kind = self.probe, KINDS[self.kind]
        if probe is None:
            return found
        if "layers" in kind.reads:
            found["layers"] = list(probe.layers)
        if "position" in kind.reads:
            found["position"] = probe.at or probe.position
        if self.kind == "geometry":
            found |= {"site": probe.site, "windows": list(probe.windows)}
        if self.kind == "top_k":
            found["top"] = probe.top
        if self.scope is not None and probe.scope is not None:
            found["scope"] = {
                "prompt": self.scope,
                "position": probe.scope.position,
                "layer": probe.scope.layer,
            }
        return found


def columns_of(name: str, body: ReadoutSpec) -> dict[str, str]:
    """The columns that a readout gives, with what each holds; the first is its main one."""
    if body.kind == "behaviour":
        return dict.fromkeys(BEHAVIOUR, NUMBER)
    if body.kind == "degenerate":
        return dict.fromkeys((name, f"{name}.run"), NUMBER)
    if body.kind in (*SCORES, *DERIVED):
        return {name: NUMBER}
    sets = "" if body.tokens is None else name
    probe = Probe(cast("ProbeKind", body.kind), name, tokens=sets, windows=_windows(body))
    return {column: _HELD.get(column.partition(".")[2], NUMBER) for column in probe_kinds.columns(probe)}


def resolve_readouts(spec: Spec) -> tuple[Readout, ...]:
    """The readouts that the stage measures, in their order. Raises ReadoutError, LayerError or PositionError
    where a word means nothing."""
    _, _, names = spec.stage
    return tuple(resolve_readout(name, spec.readout[name], spec) for name in names)


def resolve_readout(name: str, body: ReadoutSpec, spec: Spec) -> Readout:
    """One readout on the model of a specification. Raises as `resolve_readouts` does."""
    language = spec.model.language
    sources = {
        key: read_source(words, language)
        for key in ("tokens", "against", "continuation")
        if (words := getattr(body, key)) is not None
    }
    bare = Readout(
        name,
        body.kind,
        body.version,
        columns_of(name, body),
        tokens=None if body.kind in SCORES else sources.get("tokens"),
        against=sources.get("against"),
        continuation=sources.get("continuation"),
        first_token=body.first_token is True,
        labels=sources.get("tokens") if body.kind in SCORES else None,
    )
    if body.kind in SCORES:
        return bare
    if body.kind in DERIVED:
        return replace(bare, derivation=_derivation(body, spec))
    scope = None if body.scope is None else read_source(body.scope.prompt, language).words[0]
    return replace(bare, probe=_probe(name, body, spec), scope=scope)


def _derivation(body: ReadoutSpec, spec: Spec) -> Derivation:
    assert body.of is not None
    if body.kind == "onset":
        base = spec.readout[body.of.removesuffix(RANKS)]
        return Derivation(Entry(body.of, body.of), within=body.within, layers=layers_of(base, spec))
    return Derivation(
        _entry(body.of, spec),
        None if body.minus is None else _entry(body.minus, spec),
        above=body.above,
        below=body.below,
    )


def _entry(word: str, spec: Spec) -> Entry:
    return Entry(word, *resolve_entry(word, spec))


def leaves(readout: Readout, measured: Sequence[Readout]) -> Iterator[tuple[Readout, int | None]]:
    """What a readout is of in the end: itself, or where it is derived those that it comes from, each with the
    layer that is read of it (None: all of it). measured: the readouts of the stage."""
    if readout.derivation is None:
        yield readout, None
        return
    for entry in readout.derivation.entries:
        base = next(each for each in measured if entry.column in each.columns)
        by_layer = () if base.probe is None or base.kind not in LAYERED else base.probe.layers
        asked = None if entry.at is None or not by_layer else by_layer[entry.at]
        for leaf, layer in leaves(base, measured):
            yield leaf, asked if layer is None else layer


def with_scope(readout: Readout, ids: Sequence[int]) -> Readout:
    """A patchscope with the ids of its prompt. Raises ReadoutError where the prompt has no such position."""
    assert readout.probe is not None and readout.probe.scope is not None
    scope = readout.probe.scope
    if not -len(ids) <= scope.position < len(ids):
        raise ReadoutError(
            f"expected a position from {-len(ids)} to {len(ids) - 1} of the scope's prompt, which has "
            f"{len(ids)} tokens, got {scope.position}"
        )
    return replace(readout, probe=replace(readout.probe, scope=replace(scope, ids=tuple(ids))))


def read_source(words: object, language: str) -> Source:
    """Words as given in YAML: a text, `fact:NAME`, `fact:ROLE/NAME`, a list, or one of these for each
    language. Raises ReadoutError for a language that is not given, and where nothing is said."""
    if isinstance(words, Mapping):
        if language not in words:
            raise ReadoutError(
                f"expected words for the language '{language}', got them for {listed(map(str, words))}"
            )
        words = words[language]
    if isinstance(words, str) and words.startswith(FACT):
        role, slash, fact = words.removeprefix(FACT).rpartition("/")
        if not fact or (slash and not role):
            raise ReadoutError(f"expected fact:NAME or fact:ROLE/NAME, got '{words}'")
        return Source(fact=fact, role=role or TARGET)
    found = (words,) if isinstance(words, str) else tuple(cast("Sequence[str]", words))
    if not found or not all(word.strip() for word in found):
        raise ReadoutError(f"expected texts that are not empty, got {list(found)!r}")
    return Source(words=found)


def _probe(name: str, body: ReadoutSpec, spec: Spec) -> Probe:
    position, at = one_position(body.position)
    scope = None
    if body.scope is not None:
        layer = None if body.scope.layer is None else one_layer(body.scope.layer, spec)
        scope = Scope((), body.scope.position, layer)
    return Probe(
        kind=cast("ProbeKind", body.kind),
        name=name,
        version=body.version,
        tokens="" if body.tokens is None else name,
        against="" if body.against is None else f"{name}.against",
        top=TOP if body.top is None else body.top,
        layers=layers_of(body, spec),
        position=position,
        at=at,
        windows=_windows(body),
        site="v_proj" if body.site is None else body.site,
        scope=scope,
    )


def _windows(body: ReadoutSpec) -> tuple[int, ...]:
    return WINDOWS if body.windows is None else body.windows


def layers_of(body: ReadoutSpec, spec: Spec) -> tuple[int, ...]:
    """Absolute layers that a readout reads: ascending, of geometry early and late as given; none for a kind
    that reads none. Raises LayerError."""
    if "layers" not in KINDS[body.kind].reads:
        return ()
    if body.kind != "geometry":
        word = "all" if body.layers is None else body.layers
        return resolve_layers(word, spec.model.layers, spec.reference_depth, spec.model.landmarks)
    pair = ("early", "late") if body.layers is None else body.layers
    if not isinstance(pair, tuple) or len(pair) != 2:
        raise LayerError(f"expected two layers, [early, late], got {pair!r}")
    early, late = (one_layer(word, spec) for word in pair)
    if early == late:
        raise LayerError(f"expected two different layers, got {early} for both")
    return early, late


def one_layer(word: LayerWord, spec: Spec) -> int:
    """The absolute layer of a word. Raises LayerError where it is none, or several."""
    found = resolve_layers(word, spec.model.layers, spec.reference_depth, spec.model.landmarks)
    if len(found) != 1:
        raise LayerError(f"expected one layer, got '{word}'")
    return found[0]


def decodes(spec: Spec) -> bool:
    """Whether the stage generates texts: one of its readouts reads them, or is not known."""
    _, _, names = spec.stage
    return any(name not in spec.readout or spec.readout[name].kind in OF_OUTPUT for name in names)


def scalar_columns(spec: Spec) -> list[str]:
    """Those of `all_columns` that hold one number."""
    return [name for name, kind in all_columns(spec).items() if kind == NUMBER]


def all_columns(spec: Spec) -> dict[str, str]:
    """Columns of the stage's readouts with what each holds, or of all readouts where one is unknown."""
    _, _, names = spec.stage
    known = names if set(names) <= set(spec.readout) else tuple(spec.readout)
    return {column: kind for name in known for column, kind in columns_of(name, spec.readout[name]).items()}


def resolve_entry(word: str, spec: Spec) -> tuple[str, int | None]:
    """The column that a check or a derived readout reads, and which entry of it where that is a list:
    `COLUMN[0]`, `COLUMN[last]`, or for a list by layer `COLUMN[LAYER]`.

    Raises ReadoutError where there is no such column or entry, LayerError for a layer that does not exist.
    """
    columns = all_columns(spec)
    found = re.fullmatch(r"([\w.]+)(?:\[([^\]]+)\])?", word)
    column, entry = (found[1], found[2]) if found else (word, None)
    if column not in columns:
        raise ReadoutError(
            f"expected a column of the readouts ({listed(columns)}), got '{column}'"
            f"{suggestion(column, columns)}"
        )
    if columns[column] == NUMBER:
        if entry is not None:
            raise ReadoutError(f"{column} holds one number, so that it has no entry [{entry}]")
        return column, None
    if entry is None:
        raise ReadoutError(f"{column} is a list; say which entry, such as {column}[last]")
    if entry in ("first", "last"):
        return column, 0 if entry == "first" else -1
    body = spec.readout[column.partition(".")[0]]
    if body.kind in LAYERED:
        layers = layers_of(body, spec)
        layer = one_layer(int(entry) if entry.isdecimal() else entry, spec)
        if layer not in layers:
            raise ReadoutError(f"{column} has the layers {listed(map(str, layers))}, got {layer}")
        return column, layers.index(layer)
    if not entry.isdecimal() or (body.kind == "top_k" and int(entry) >= (body.top or TOP)):
        raise ReadoutError(f"expected an entry of {column} from [0], [first] or [last], got [{entry}]")
    return column, int(entry)
