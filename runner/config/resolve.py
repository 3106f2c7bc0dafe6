"""From the words of a checked configuration to what a backend carries out: absolute layers, values, heads."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from backends.positions import Positions
from backends.rows import Sampling
from backends.writes import SELF, Heads, Value, Write
from runner.config.errors import listed, suggestion
from runner.config.layers import layer_notes, resolve_layers
from runner.config.spec import (
    BackendSpec,
    ConditionSpec,
    ContrastsSpec,
    ModelSpec,
    PromptsSpec,
    SamplingSpec,
    Spec,
    WriteSpec,
)
from runner.config.words import describe

DONOR = "donor"
OTHER_DONOR = "other_donor"
QUERY_SITES = ("q_proj", "head_z")
KV_SITES = ("k_proj", "v_proj", "kv_cache")
VALUE_FORMS = (
    DONOR,
    "donor:ROLE",
    OTHER_DONOR,
    SELF,
    "random",
    "shuffled_window",
    "shuffled_sequence",
)

# What may differ between two runs of one and the same experiment: where and how it is computed, not what.
NOT_HASHED = ("resume", "output_root", "launch", "profile", "quiet", "dry_run", "allow_inert")
NOT_HASHED_BACKEND = ("memory_budget", "max_rows", "threads")


class WordError(ValueError):
    """A word of a write that is not of the vocabulary, or that the model or prompts have nothing for."""


@dataclass(frozen=True)
class Condition:
    """A condition, resolved. prompt: the parts that make the prompt, in order. expects: write -> noop or
    inert. grid: axis -> value of the cell. words: the condition in sentences."""

    name: str
    label: str
    prompt: tuple[str, ...]
    writes: tuple[Write, ...]
    expects: Mapping[str, str]
    sampling: Sampling
    replay_last_token: bool = False
    recompute: bool = False
    same_as: str | None = None
    grid: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    words: tuple[str, ...] = ()

    @property
    def roles(self) -> tuple[str, ...]:
        """Roles of the prompts that the writes draw from (`donor`, `other_donor`, `self`, or a role's
        name)."""
        return tuple(dict.fromkeys(write.value.role for write in self.writes if write.value.role))


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
    contrasts: ContrastsSpec
    prompts: PromptsSpec
    sampling_seed: int
    model: ModelSpec
    backend: BackendSpec
    published: str | None
    layer_notes: tuple[str, ...]

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
        contrasts=spec.contrasts,
        prompts=spec.prompts,
        sampling_seed=spec.sampling.seed,
        model=spec.model,
        backend=spec.backend,
        published=spec.published,
        layer_notes=_notes(spec, conditions),
    )


def resolve_condition(name: str, body: ConditionSpec, spec: Spec) -> Condition:
    """One condition with its writes, its sampling and its description. Raises as `resolve` does."""
    writes = tuple(resolve_write(write_name, write, spec) for write_name, write in body.writes.items())
    bare = Condition(
        name=name,
        label=name if body.label is None else body.label,
        prompt=tuple(body.prompt.split("+")),
        writes=writes,
        expects={key: write.expect for key, write in body.writes.items() if write.expect is not None},
        sampling=resolve_sampling(body, spec.sampling),
        replay_last_token=body.replay_last_token,
        recompute=body.recompute,
        same_as=body.same_as,
        grid=body.grid,
    )
    usual = resolve_sampling(ConditionSpec(), spec.sampling)
    return replace(bare, words=describe(bare, spec.model.layers, usual))


def resolve_sampling(body: ConditionSpec, usual: SamplingSpec) -> Sampling:
    """The sampling of a condition: the experiment's, with the condition's changes."""
    changes = {key: value for key, value in body.sampling.model_dump().items() if value is not None}
    return Sampling(
        temperature=float(changes.get("temperature", usual.temperature)),
        max_new_tokens=changes.get("max_new_tokens", usual.max_new_tokens),
        top_k=changes.get("top_k", usual.top_k),
        top_p=float(changes.get("top_p", usual.top_p)),
    )


def resolve_write(name: str, write: WriteSpec, spec: Spec) -> Write:
    """One write with absolute layers, heads and value. Raises as `resolve` does."""
    return Write(
        name=name,
        site=write.site,
        layers=resolve_layers(write.layers, spec.model.layers, spec.reference_depth, spec.model.landmarks),
        op=write.op,
        value=resolve_value(write, spec.prompts),
        positions=Positions.parse(write.positions),
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
    )


def resolve_value(write: WriteSpec, prompts: PromptsSpec) -> Value:
    """What is written. Raises WordError for an unknown word, a role that the prompts do not have, or a value
    that is missing or has nothing to do."""
    if write.op == "zero":
        if write.value is not None:
            raise WordError(f"op zero writes zeros and takes no value, got '{write.value}'")
        return Value("none")
    if write.value is None:
        raise WordError(f"op {write.op} needs a value: {listed(VALUE_FORMS)}")
    word, _, role = write.value.partition(":")
    if word == "shuffled_window":
        return Value("shuffled_window", _source_role(role or DONOR, prompts), write.draws)
    if word == "shuffled_sequence":
        return Value("shuffled_sequence", _source_role(role or DONOR, prompts), write.draws)
    if write.value == "random":
        return Value("random", draws=write.draws)
    if write.value in (DONOR, OTHER_DONOR, SELF):
        return Value("source", write.value)
    if word == DONOR:
        return Value("source", _named_role(role, prompts))
    raise WordError(
        f"expected one of {listed(VALUE_FORMS)}, got '{write.value}'{suggestion(write.value, VALUE_FORMS)}"
    )


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


def _named_role(role: str, prompts: PromptsSpec) -> str:
    if role in prompts.roles:
        return role
    raise WordError(
        f"expected a role of the prompts '{prompts.name}' ({listed(prompts.roles)}), got '{role}'"
        f"{suggestion(role, prompts.roles)}"
    )


def _source_role(role: str, prompts: PromptsSpec) -> str:
    return role if role in (DONOR, OTHER_DONOR, SELF) else _named_role(role.removeprefix("donor:"), prompts)


def _notes(spec: Spec, conditions: Mapping[str, ConditionSpec]) -> tuple[str, ...]:
    depth, reference = spec.model.layers, spec.reference_depth
    pairs = {
        pair
        for body in conditions.values()
        for write in body.writes.values()
        for pair in layer_notes(write.layers, depth, reference)
    }
    return tuple(
        f"layer {index} of {reference} is layer {layer} of {depth}" for index, layer in sorted(pairs)
    )
