"""Trial identity: what makes two trials the same result, and which random stream a trial draws from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache
from types import MappingProxyType

from backends.measures import Probe
from backends.noise import stream_of
from backends.positions import Positions
from backends.rows import Row
from backends.writes import (
    SEMANTICS_VERSION,
    Constant,
    Features,
    Heads,
    PromptSet,
    Under,
    Value,
    Write,
)

NOTHING: Mapping[str, tuple[int, ...]] = MappingProxyType({})
NOWHERE: Mapping[str, int] = MappingProxyType({})


@dataclass(frozen=True)
class Setting:
    """What is shared by all trials of a stage and enters each key. probes: everything that is measured on
    tensors, each as `canonical_probe` writes it, sorted. texts: whether texts are generated; a result without
    one is no result for a readout that reads it."""

    backend: str
    model: str
    tokenizer: str
    dtype: str
    attention: str
    probes: tuple[str, ...]
    seed: int
    texts: bool = True


def sampling_stream(
    seed: int, target: Sequence[int], donor: Sequence[int], occurrence: int, repeat: int
) -> int:
    """The stream of a trial's sampling noise: the same for every condition and backend."""
    return stream_of("sampling", seed, tuple(target), tuple(donor), occurrence, repeat)


def value_stream(seed: int, target: Sequence[int], donor: Sequence[int], occurrence: int) -> int:
    """The stream of random and shuffled values: the same in every repeat, which differ by their draw."""
    return stream_of("value", seed, tuple(target), tuple(donor), occurrence)


@lru_cache(maxsize=4096)
def canonical(write: Write) -> str:
    """A write as JSON, as it enters keys: fields that differ from their defaults, without what is a label and
    changes nothing. Names are, and so are paths and arrays, for which the hash of their content stands."""
    return json.dumps(_content(write), sort_keys=True)


def _content(part: object) -> object:
    """Plain data of a resolved part of a write: what equality looks at, but for the names of writes."""
    if isinstance(part, Write | Value | Positions | Heads | Constant | PromptSet | Under | Features):
        return {
            one.name: _content(getattr(part, one.name))
            for one in fields(part)
            if one.compare
            and not (isinstance(part, Write) and one.name == "name")
            and getattr(part, one.name) != one.default
        }
    if isinstance(part, tuple):
        if part and all(isinstance(one, Write) for one in part):  # told apart by their rank, not their place
            return sorted(canonical(one) for one in part)
        return [_content(one) for one in part]
    return part


def every_write(writes: Iterable[Write]) -> Iterator[Write]:
    """Writes, and those under which their sources are captured."""
    for write in writes:
        yield write
        if write.value.under is not None:
            yield from every_write(write.value.under.writes)


def canonical_probe(probe: Probe) -> str:
    """A probe as JSON: its kind, version and name - which is the front of its columns - and every parameter
    that is not at its default."""
    kept = {
        each.name: value
        for each in fields(probe)
        if (value := getattr(probe, each.name)) != each.default or each.name in ("kind", "name", "version")
    }
    if probe.scope is not None:
        kept["scope"] = asdict(probe.scope)
    return json.dumps(kept, sort_keys=True)


def roles_read(writes: Iterable[Write]) -> set[str]:
    """Roles of the prompts that writes draw from, in the conditions that they are captured under as well."""
    return {write.value.role for write in every_write(writes) if write.value.role}


def receipt_order(writes: Sequence[Write]) -> tuple[str, ...]:
    """Names of writes in the order in which a result stores their receipts: that of their canonical form,
    vectors last, so that it is the same for every group of items."""
    return tuple(
        write.name for write in sorted(writes, key=lambda one: (_without_vector(one), canonical(one)))
    )


@lru_cache(maxsize=4096)
def _without_vector(write: Write) -> str:
    return canonical(replace(write, value=replace(write.value, constant=None)))


def result_key(
    setting: Setting,
    row: Row,
    occurrence: int,
    repeat: int,
    tokens: Mapping[str, tuple[int, ...]] = NOTHING,
    continuations: Mapping[str, tuple[int, ...]] = NOTHING,
    positions: Mapping[str, int] = NOWHERE,
) -> str:
    """32 hex digits that name a result: equal keys mean the same tokens and measurements. Neither the names
    of conditions, writes and items nor order, batch, shard and machine enter.

    tokens, continuations, positions: the token sets, the fixed texts and the named positions that the probes
    read in this trial.
    """
    used = sorted(roles_read(row.writes) & set(row.sources))
    body: dict[str, object] = {
        "semantics": SEMANTICS_VERSION,
        "setting": {name: part for name, part in asdict(setting).items() if name != "texts"},
        "ids": row.ids,
        "sources": {role: row.sources[role] for role in used},
        "spans": {role: list(span) for role, span in sorted(row.spans.items())},
        "writes": sorted(canonical(write) for write in row.writes),
        "sampling": asdict(row.sampling),
        "stream": row.stream,
        "value_stream": row.value_stream if any(w.drawn for w in row.writes) else None,
        "draws": sorted({row.draw % w.value.draws for w in every_write(row.writes) if w.drawn}),
        "recompute": row.recompute,
        "replay": row.replay_last_token,
        "tokens": {name: sorted(ids) for name, ids in tokens.items()},
        "continuations": dict(continuations),
        "occurrence": occurrence,
        "repeat": repeat,
    }
    if positions:
        body["positions"] = dict(positions)
    if row.weights is not None:
        body["weights"] = row.weights.digest
    if not setting.texts:
        body["texts"] = False
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def nth_key(key: str, nth: int) -> str:
    """The key of the n-th result of one and the same computation, counting from 0: the first has its own."""
    return key if nth == 0 else hashlib.sha256(f"{key}/{nth}".encode()).hexdigest()[:32]
