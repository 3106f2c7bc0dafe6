"""What a readout's name stands for: which fields its kind reads, which columns it gives, and what it asks of
tokens and layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

from analyses.columns import GRID, INTEGERS, NUMBER, NUMBERS, STRUCTURE
from backends.measures import Probe, ProbeKind, Scope
from backends.probes import kinds as probe_kinds
from runner.config.errors import listed, suggestion
from runner.config.layers import LayerError, LayerWord, resolve_layers
from runner.config.model_faults import lacking
from runner.config.spec import PromptsSpec, ReadoutSpec, Spec
from runner.prompts.banks import Prompt
from runner.prompts.pairing import Banks

Key = tuple[str | int, ...]
Fault = tuple[Key, str]

FACT = "fact:"
TARGET = "target"
BEHAVIOUR = ("score", "markers", "bonus", "strict")
OF_OUTPUT = ("behaviour", "perplexity")  # kinds that need a generated text
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
    "perplexity": _Kind(),
    "next_token": _Kind(("tokens",), _AT),
    "log_odds": _Kind(("tokens",), ("against", *_AT)),
    "rank": _Kind(("tokens",), _AT),
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
    backend measures, without the ids of a patchscope's prompt; None for a score of the text. tokens, against:
    where its token sets come from; continuation: where its fixed text does. scope: the patchscope's
    prompt."""

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
        probe, kind = self.probe, KINDS[self.kind]
        if probe is None:
            return found
        if "layers" in kind.reads:
            found["layers"] = list(probe.layers)
        if "position" in kind.reads:
            found["position"] = probe.position
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
    sets = "" if body.tokens is None else name
    probe = Probe(body.kind, name, tokens=sets, windows=_windows(body))
    return {column: _HELD.get(column.partition(".")[2], NUMBER) for column in probe_kinds.columns(probe)}


def resolve_readouts(spec: Spec) -> tuple[Readout, ...]:
    """The readouts that the stage measures, in their order. Raises ReadoutError or LayerError where a word
    means nothing."""
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
        tokens=sources.get("tokens"),
        against=sources.get("against"),
        continuation=sources.get("continuation"),
        first_token=body.first_token is True,
    )
    if body.kind == "behaviour":
        return bare
    scope = None if body.scope is None else read_source(body.scope.prompt, language).words[0]
    return replace(bare, probe=_probe(name, body, spec), scope=scope)


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
    scope = None
    if body.scope is not None:
        at = None if body.scope.layer is None else one_layer(body.scope.layer, spec)
        scope = Scope((), body.scope.position, at)
    return Probe(
        kind=cast("ProbeKind", body.kind),
        name=name,
        version=body.version,
        tokens="" if body.tokens is None else name,
        against="" if body.against is None else f"{name}.against",
        top=TOP if body.top is None else body.top,
        layers=layers_of(body, spec),
        position=-1 if body.position is None else body.position,
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


def readout_faults(spec: Spec) -> Iterator[Fault]:
    """Everything about the readouts that does not fit the model, the prompts or each other."""
    stage, _, names = spec.stage
    inside: Key = ("readouts",)
    if stage in spec.stages and spec.stages[stage].readouts is not None:
        inside = ("stages", stage, "readouts")
    if not names:
        yield inside, f"expected at least one readout ({listed(spec.readout)}), got an empty list"
    for index, name in enumerate(names):
        if name in names[:index]:
            yield (*inside, index), f"readout '{name}' is listed twice; remove one"
        if name not in spec.readout:
            message = (
                f"expected a readout ({listed(spec.readout)}), got '{name}'{suggestion(name, spec.readout)}"
            )
            yield (*inside, index), message
    for name, body in spec.readout.items():
        for key, message in _body_faults(name, body, spec):
            yield ("readout", name, *key), message
    taken: dict[str, str] = {}
    for name in dict.fromkeys(name for name in names if name in spec.readout):
        for column in columns_of(name, spec.readout[name]):
            other = taken.setdefault(column, name)
            if other != name:
                yield ("readout", name), f"its column {column} is one of readout '{other}' as well; rename it"


def _body_faults(name: str, body: ReadoutSpec, spec: Spec) -> Iterator[Fault]:
    kind = KINDS[body.kind]
    known = ("kind", "version", *kind.needs, *kind.reads)
    if name in (*STRUCTURE, GRID):
        yield (), f"'{name}' is a column of every table already; give the readout another name"
    for key in body.model_fields_set - set(known):
        if getattr(body, key) is not None:
            yield (key,), f"a readout of the kind {body.kind} reads {listed(known)}; nothing reads {key}"
    for key in kind.needs:
        if getattr(body, key) is None:
            yield (key,), f"missing: a readout of the kind {body.kind} needs {key}"
    if name in spec.stage[2]:  # of one that nothing measures, the model and the prompts need not fit
        yield from _unfit(body, known, spec)
    if body.windows is not None and "windows" in known:
        if not body.windows or len(set(body.windows)) < len(body.windows):
            yield ("windows",), f"expected different numbers of positions, got {list(body.windows)}"
        elif min(body.windows) < 2:
            yield ("windows",), "expected at least 2 positions: the ratio of one row is always 1"
    if body.site in probe_kinds.NO_ROWS and "site" in known:
        yield ("site",), f"expected a site with a row of activations for each position, got {body.site}"


def _unfit(body: ReadoutSpec, known: Sequence[str], spec: Spec) -> Iterator[Fault]:
    for key in ("tokens", "against", "continuation"):
        words = getattr(body, key)
        if words is not None and key in known:
            yield from _word_faults((key,), words, spec)
    if body.scope is not None and "scope" in known:
        yield from _word_faults(("scope", "prompt"), body.scope.prompt, spec, facts=False)
        if body.scope.layer is not None:
            try:
                one_layer(body.scope.layer, spec)
            except LayerError as error:
                yield ("scope", "layer"), str(error)
    if body.site is not None and "site" in known:
        sentence = lacking(body.site, spec.model)
        if sentence is not None:
            yield ("site",), sentence
    if "layers" in known:
        try:
            layers_of(body, spec)
        except LayerError as error:
            yield ("layers",), str(error)


def _word_faults(key: Key, words: object, spec: Spec, *, facts: bool = True) -> Iterator[Fault]:
    try:
        source = read_source(words, spec.model.language)
    except ReadoutError as error:
        yield key, str(error)
        return
    if source.fact and not facts:
        yield key, f"expected a text, the same for every item, got '{source.word}'"
    roles = _roles(spec.prompts)
    if source.fact and source.role not in roles:
        yield (
            key,
            (
                f"expected the fact of a prompt that items have ({listed(roles)}), got '{source.role}'"
                f"{suggestion(source.role, roles)}"
            ),
        )


def _roles(prompts: PromptsSpec) -> tuple[str, ...]:
    return (TARGET, "donor", "other_donor", *prompts.roles)


def fact_faults(spec: Spec, banks: Banks) -> Iterator[Fault]:
    """Facts that not one of the prompts states that they are asked of."""
    pools: Mapping[str, Sequence[Prompt]] = {
        TARGET: banks.targets,
        "donor": banks.donors,
        "other_donor": banks.donors,
        **banks.roles,
    }
    for name in spec.stage[2]:
        body = spec.readout.get(name)
        if body is None:
            continue  # told already
        for key in ("tokens", "against", "continuation"):
            if key not in KINDS[body.kind].needs + KINDS[body.kind].reads or getattr(body, key) is None:
                continue
            try:
                source = read_source(getattr(body, key), spec.model.language)
            except ReadoutError:
                continue  # told already
            pool = pools.get(source.role, ())
            known = sorted({fact for prompt in pool for fact in prompt.facts})
            if source.fact and pool and source.fact not in known:
                yield (
                    ("readout", name, key),
                    f"not one of the {len(pool)} prompts of the {source.role} states the fact "
                    f"'{source.fact}'; they state {listed(known)}{suggestion(source.fact, known)}",
                )


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
