"""From the words of a checked configuration to what a backend carries out: absolute layers, values, heads."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from backends.measures import Probe
from backends.positions import Positions
from backends.rows import Sampling
from backends.writes import LAYERLESS, Constant, Heads, Under, Value, Write
from runner.config.checks import Check, resolve_checks
from runner.config.errors import listed, suggestion
from runner.config.layers import LayerError, layer_notes, resolve_layers
from runner.config.readouts.readout import Readout, resolve_readouts
from runner.config.spec import (
    BackendSpec,
    ConditionSpec,
    ContrastsSpec,
    LayersWord,
    ModelSpec,
    PromptsSpec,
    SamplingSpec,
    Spec,
    WriteSpec,
)
from runner.config.words import describe
from runner.config.writes.features import SaeFeatures, resolve_features, unreached_values
from runner.config.writes.rules import unread_words
from runner.config.writes.values import (
    WordError,
    has_source,
    layer_named,
    resolve_value,
)
from runner.config.writes.weights import resolve_weights
from runner.config.writes.widths import KV_SITES, QUERY_SITES
from runner.keys import every_write

# What may differ between two runs of one and the same experiment: where and how it is computed, not what.
NOT_HASHED = ("resume", "output_root", "launch", "profile", "quiet", "report", "dry_run", "allow_inert")
NOT_HASHED_BACKEND = ("memory_budget", "max_rows", "threads", "workers")


class UnderError(WordError):
    """A condition under which no source can be captured."""


@dataclass(frozen=True)
class Condition:
    """A condition, resolved. prompt: the parts that make the prompt, in order. expects: write -> noop or
    inert. weights: a direction that the model's weights are without. grid: axis -> value of the cell. words:
    the condition in sentences."""

    name: str
    label: str
    prompt: tuple[str, ...]
    writes: tuple[Write, ...]
    expects: Mapping[str, str]
    sampling: Sampling
    replay_last_token: bool = False
    recompute: bool = False
    weights: Constant | None = None
    same_as: str | None = None
    grid: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    words: tuple[str, ...] = ()

    @property
    def roles(self) -> tuple[str, ...]:
        """Roles of the prompts that the writes draw from (`donor`, `other_donor`, `self`, or a role's
        name), also by way of the condition that a source is captured under."""
        roles = [write.value.role for write in every_write(self.writes)]
        return tuple(dict.fromkeys(role for role in roles if role))


@dataclass(frozen=True)
class Design:
    """A whole experiment, resolved. layer_notes: what reference_depth made of each layer that it moved."""

    name: str
    question: str
    n: int
    repeats: int
    stage: str
    conditions: tuple[Condition, ...]
    readouts: tuple[str, ...]
    measured: tuple[Readout, ...]
    contrasts: ContrastsSpec
    checks: tuple[Check, ...]
    prompts: PromptsSpec
    sampling_seed: int
    model: ModelSpec
    backend: BackendSpec
    published: str | None
    layer_notes: tuple[str, ...]

    @property
    def decodes(self) -> bool:
        """Whether any readout reads a generated text; without one, nothing is generated."""
        return any(readout.of_output for readout in self.measured)

    @property
    def probes(self) -> tuple[Probe, ...]:
        """What its readouts measure on tensors."""
        return tuple(readout.probe for readout in self.measured if readout.probe is not None)

    @property
    def columns(self) -> dict[str, str]:
        """The columns of its readouts, in their order, with what each holds."""
        return {column: kind for readout in self.measured for column, kind in readout.columns.items()}

    @property
    def dtype(self) -> str:
        """The number format that the model runs in."""
        return self.model.dtype if self.backend.dtype is None else self.backend.dtype

    def condition(self, name: str) -> Condition:
        """The condition of that name. Raises KeyError."""
        return {condition.name: condition for condition in self.conditions}[name]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(condition.name for condition in self.conditions)


def resolve(spec: Spec) -> Design:
    """Resolve a checked specification. n is the number of items asked, `limit` applied.

    Raises WordError, LayerError or PositionError where a word means nothing; `runner.config.check` reports
    those beforehand.
    """
    stage, conditions, readouts = spec.stage
    return Design(
        name=spec.experiment.name,
        question=spec.experiment.question,
        n=spec.n_asked,
        repeats=spec.experiment.repeats,
        stage=stage,
        conditions=tuple(resolve_condition(name, conditions[name], spec) for name in _baseline_first(spec)),
        readouts=readouts,
        measured=resolve_readouts(spec),
        contrasts=spec.contrasts,
        checks=resolve_checks(spec),
        prompts=spec.prompts,
        sampling_seed=spec.sampling.seed,
        model=spec.model,
        backend=spec.backend,
        published=spec.published,
        layer_notes=_notes(spec, conditions),
    )


def resolve_condition(name: str, body: ConditionSpec, spec: Spec) -> Condition:
    """One condition with its writes, its sampling and its description. Raises as `resolve` does."""
    writes = tuple(resolve_write(key, write, spec, (name,)) for key, write in body.writes.items())
    bare = Condition(
        name=name,
        label=name if body.label is None else body.label,
        prompt=tuple(body.prompt.split("+")),
        writes=writes,
        expects={key: write.expect for key, write in body.writes.items() if write.expect is not None},
        sampling=resolve_sampling(body, spec.sampling),
        replay_last_token=body.replay_last_token,
        recompute=body.recompute,
        weights=None if body.weights is None else resolve_weights(body.weights, spec),
        same_as=body.same_as,
        grid=body.grid,
    )
    usual = resolve_sampling(ConditionSpec(), spec.sampling)
    unreached = [sentence for write in writes for sentence in unreached_values(write)]
    return replace(bare, words=(*describe(bare, spec.model.layers, usual), *unreached))


def resolve_sampling(body: ConditionSpec, usual: SamplingSpec) -> Sampling:
    """The sampling of a condition: the experiment's, with the condition's changes."""
    changes = {key: value for key, value in body.sampling.model_dump().items() if value is not None}
    return Sampling(
        temperature=float(changes.get("temperature", usual.temperature)),
        max_new_tokens=changes.get("max_new_tokens", usual.max_new_tokens),
        top_k=changes.get("top_k", usual.top_k),
        top_p=float(changes.get("top_p", usual.top_p)),
    )


def resolve_write(name: str, write: WriteSpec, spec: Spec, within: tuple[str, ...] = ()) -> Write:
    """One write with absolute layers, heads and value. within: the conditions that are being resolved, the
    write's own last. Raises as `resolve` does."""
    features = resolve_features(write, spec.model)
    value = resolve_value(write, spec)
    write = _without_unread(write)
    if write.under is not None:
        value = replace(value, under=resolve_under(write.under, spec, within))
    layers = layers_of(write, spec, features)
    if value.has_source:
        value = _read_elsewhere(value, layers, write, spec)
    positions, source_positions = positions_of(write), source_positions_of(write)
    if source_positions is not None and write.during == "decode" and write.hold != "sliding":
        positions, source_positions = source_positions, None  # the window alone is counted
    return Write(
        name=name,
        site=write.site,
        layers=layers,
        op=write.op,
        value=value,
        positions=positions,
        during=write.during,
        hold=write.hold,
        heads=resolve_heads(write, spec.model),
        part=write.part,
        align=write.align,
        rope=write.rope,
        keep_sink=write.keep_sink,
        alpha=write.alpha,
        min_positions=write.min_positions,
        order=0 if write.order is None else write.order,
        unit=write.unit,
        keys=None if write.keys is None else Positions.parse(write.keys),
        features=None if features is None else features.chosen,
        round_trip=write.round_trip,
        source_positions=None if source_positions == positions else source_positions,
    )


def _read_elsewhere(value: Value, layers: tuple[int, ...], write: WriteSpec, spec: Spec) -> Value:
    """A value that is read from a run, with the layer that it is read at; None where that is the one written,
    so that two writes that are one computation are equal. Raises LayerError."""
    if write.from_layer is not None:
        value = replace(value, layer=layer_named(write.from_layer, spec))
    return replace(value, layer=None) if layers == (value.layer,) else value


def source_positions_of(write: WriteSpec) -> Positions | None:
    """Positions that are counted on the source instead of `positions`; None where there are none, or where
    they say which vector of an artefact is meant. Raises PositionError."""
    if write.from_positions is None or not has_source(write):
        return None
    return Positions.parse(write.from_positions)


def _without_unread(write: WriteSpec) -> WriteSpec:
    """A kv_cache write whose words that nothing reads say what they usually do, so that two writes that are
    one computation are equal."""
    if write.site != "kv_cache":
        return write
    usual = {field: WriteSpec.model_fields[field].default for field, _ in unread_words(write)}
    return write.model_copy(update=usual)


def positions_of(write: WriteSpec) -> Positions:
    """Positions of a write. Logits are read at the last prompt position alone, which therefore goes without
    saying. Raises PositionError."""
    if write.site == "logits" and not write.given("positions"):
        return Positions("index", count=-1)
    return Positions.parse(write.positions)


def layers_of(write: WriteSpec, spec: Spec, features: SaeFeatures | None) -> tuple[int, ...]:
    """Absolute layers: those of the word, that of the SAE, or what stands for a site of the whole model.
    Raises LayerError."""
    if write.site in LAYERLESS:
        if write.layers is not None:
            raise LayerError(f"{write.site} is a site of the whole model and has no layers; remove it")
        return (0,) if write.site == "embed" else (spec.model.layers - 1,)
    if write.site == "sae":
        if write.layers is not None:
            raise LayerError("the layer of an sae write is the one that its SAE is hooked at; remove it")
        return () if features is None else (features.layer,)
    if write.layers is None:
        raise LayerError(
            "missing: expected a layer index, a list, a range such as 5-8, 'all', a depth such as 84% or a "
            "landmark"
        )
    return resolve_layers(write.layers, spec.model.layers, spec.reference_depth, spec.model.landmarks)


def resolve_under(name: str, spec: Spec, within: tuple[str, ...] = ()) -> Under:
    """The condition under which a source is captured: its writes in prefill.

    Raises UnderError for a condition that does not exist, leads back to itself, or has not only writes that
    act on a prompt; as `resolve` does where one of its writes is wrong itself.
    """
    _, conditions, _ = spec.stage
    if name not in conditions or name in within[-1:]:
        others = {other: body for other, body in conditions.items() if other not in within[-1:]}
        known = [other for other, body in others.items() if _acts_on_a_prompt(body)]
        raise UnderError(
            f"expected another condition that writes while a source is read ({listed(known)}), got "
            f"'{name}'{suggestion(name, others)}"
        )
    if name in within:
        way = " under ".join(f"'{step}'" for step in (*within[within.index(name) :], name))
        raise UnderError(f"expected conditions that do not lead back to themselves, got {way}")
    if conditions[name].weights is not None:
        raise UnderError(
            f"expected a condition that acts while the source is read by its writes alone; '{name}' changes "
            "the model's weights"
        )
    writes = []
    for key, write in conditions[name].writes.items():
        if write.site == "kv_cache":
            raise UnderError(
                f"expected a condition whose writes act while the source is read; '{key}' of '{name}' writes "
                "kv_cache, which is after that"
            )
        if write.during == "decode":
            raise UnderError(
                f"expected a condition whose writes act while the source is read; '{key}' of '{name}' acts "
                "in decode only"
            )
        resolved = resolve_write(key, write, spec, (*within, name))
        writes.append(replace(resolved, during="prefill", hold=None))
    if not writes:
        raise UnderError(f"'{name}' writes nothing; a source from a clean run goes without under")
    return Under(tuple(writes), name)


def _acts_on_a_prompt(condition: ConditionSpec) -> bool:
    writes = condition.writes.values()
    acting = all(one.site != "kv_cache" and one.during != "decode" for one in writes)
    return condition.weights is None and bool(writes) and acting


def resolve_heads(write: WriteSpec, model: ModelSpec) -> Heads | None:
    """The heads that a write is limited to, None for all. Raises WordError for a head that the site or model
    lacks."""
    if write.heads is None:
        return None
    if write.site in QUERY_SITES:
        of, prefix, count, noun = "query", "q", model.heads, "query heads"
    elif write.site in KV_SITES:
        of, prefix, count, noun = "kv", "kv", model.kv_heads, "key-value heads"
    else:
        raise WordError(
            f"{write.site} is not divided into heads; heads exist at {listed((*QUERY_SITES, *KV_SITES))}"
        )
    if not write.heads:
        raise WordError(
            f"expected at least one of the {noun} {prefix}0 to {prefix}{count - 1}, got an empty list"
        )
    indices = []
    for word in write.heads:
        digits = word.removeprefix(prefix) if word.startswith(prefix) else ""
        if not digits.isdecimal() or int(digits) >= count:
            raise WordError(
                f"expected {noun} {prefix}0 to {prefix}{count - 1} ({write.site} of {model.name} has "
                f"{count}), got '{word}'"
            )
        indices.append(int(digits))
    return Heads("query" if of == "query" else "kv", tuple(sorted(set(indices))))


def config_hash(mapping: Mapping[str, Any]) -> str:
    """Identity of an experiment: SHA-256 over its resolved configuration without the keys that only say where
    results go, how loud the run is, and how much memory it may use."""
    kept = {key: value for key, value in mapping.items() if key not in NOT_HASHED}
    backend = kept.get("backend")
    if isinstance(backend, Mapping):
        kept["backend"] = {key: value for key, value in backend.items() if key not in NOT_HASHED_BACKEND}
    text = json.dumps(kept, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _baseline_first(spec: Spec) -> list[str]:
    _, conditions, _ = spec.stage
    return sorted(conditions, key=lambda name: name != spec.contrasts.baseline)


def _notes(spec: Spec, conditions: Mapping[str, ConditionSpec]) -> tuple[str, ...]:
    depth, reference = spec.model.layers, spec.reference_depth
    writes = [write for body in conditions.values() for write in body.writes.values()]
    words = [word for write in writes for word in layer_words(write)]
    changed = [body.weights.from_layer for body in conditions.values() if body.weights is not None]
    words += [layer for layer in changed if layer is not None]
    words += [word for name in spec.stage[2] if (word := spec.readout[name].layers) is not None]
    pairs = {pair for word in words for pair in layer_notes(word, depth, reference)}
    return tuple(
        f"layer {index} of {reference} is layer {layer} of {depth}" for index, layer in sorted(pairs)
    )


def layer_words(write: WriteSpec) -> tuple[LayersWord, ...]:
    """The words of a write that name layers, integers as such: those written, and the one read."""
    words: list[LayersWord] = [] if write.layers is None else [write.layers]
    read = [] if write.from_layer is None else [str(write.from_layer)]
    if isinstance(write.value, str) and write.value.startswith("layer:"):
        read.append(write.value.removeprefix("layer:"))
    words += [int(word) if word.isdecimal() else word for word in read]
    return tuple(words)
