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


@dataclass(frozen=True)
class Written:
    """The writes of a row as keys have them. text: their canonical forms as JSON; roles: those of the prompts
    that they read; drawn: whether one takes random values; draws: of each that does, itself or below another,
    how many draws its repeats go through."""

    text: str
    roles: tuple[str, ...]
    drawn: bool
    draws: tuple[int, ...]

    @staticmethod
    def of(writes: Sequence[Write]) -> Written:
        """Of the writes of a row."""
        return Written(
            compact(sorted(canonical(write) for write in writes)),
            tuple(sorted(roles_read(writes))),
            any(write.drawn for write in writes),
            tuple(write.value.draws for write in every_write(writes) if write.drawn),
        )


@dataclass(frozen=True, slots=True)
class KeyText:
    """The text that the keys of a trial's repeats are hashes of, but for what the repeat decides: the draws,
    its number and its stream, which stand between these four parts. draws: as in Written."""

    parts: tuple[str, str, str, str]
    draws: tuple[int, ...]

    def digest(self, stream: int, draw: int, repeat: int) -> bytes:
        """The 16 bytes of a key."""
        before, between, after, last = self.parts
        draws = ",".join(map(str, sorted({draw % each for each in self.draws})))
        text = f"{before}[{draws}]{between}{repeat}{after}{stream}{last}"
        return hashlib.sha256(text.encode()).digest()[:16]


def compact(value: object) -> str:
    """JSON without spaces, its keys in order: the form in which everything enters a key."""
    return _COMPACT.encode(value)


_COMPACT = json.JSONEncoder(sort_keys=True, separators=(",", ":"))


@lru_cache(maxsize=64)
def setting_text(setting: Setting) -> str:
    """What all trials of a stage share, as keys have it."""
    return compact({name: part for name, part in asdict(setting).items() if name != "texts"})


@dataclass(frozen=True)
class Read:
    """What a row reads, as keys have it: all of it JSON. sources: by role, of every source that the row has;
    tokens, continuations, positions: the token sets, the fixed texts and the named positions (empty where
    there are none) that the probes read."""

    ids: str
    sources: Mapping[str, str]
    spans: str
    tokens: str
    continuations: str
    positions: str

    @staticmethod
    def of(
        ids: Sequence[int],
        sources: Mapping[str, Sequence[int]],
        spans: Mapping[str, Sequence[int]],
        tokens: Mapping[str, Sequence[int]],
        continuations: Mapping[str, Sequence[int]],
        positions: Mapping[str, int],
    ) -> Read:
        """Of token ids and places."""
        return Read(
            compact(ids),
            {role: compact(each) for role, each in sources.items()},
            compact({name: list(span) for name, span in spans.items()}),
            compact({name: sorted(each) for name, each in tokens.items()}),
            compact(dict(continuations)),
            compact(dict(positions)) if positions else "",
        )


def key_text(
    setting: Setting, read: Read, written: Written, row: Row, sampling: str, occurrence: int
) -> KeyText:
    """The text of a row's keys, whatever its stream and draw. sampling: that of the row as JSON."""
    used = ",".join(f"{compact(role)}:{read.sources[role]}" for role in written.roles if role in read.sources)
    positions = f',"positions":{read.positions}' if read.positions else ""
    texts = "" if setting.texts else ',"texts":false'
    weights = "" if row.weights is None else f',"weights":{compact(row.weights.digest)}'
    value_stream = row.value_stream if written.drawn else "null"
    before = f'{{"continuations":{read.continuations},"draws":'
    recompute, replay = ("true" if each else "false" for each in (row.recompute, row.replay_last_token))
    between = f',"ids":{read.ids},"occurrence":{occurrence}{positions},"recompute":{recompute},"repeat":'
    after = (
        f',"replay":{replay},"sampling":{sampling},'
        f'"semantics":{compact(SEMANTICS_VERSION)},"setting":{setting_text(setting)},"sources":{{{used}}},'
        f'"spans":{read.spans},"stream":'
    )
    last = f'{texts},"tokens":{read.tokens},"value_stream":{value_stream}{weights},"writes":{written.text}}}'
    return KeyText((before, between, after, last), written.draws)


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
    read in this trial. A plan puts the same text together of parts that its trials share.
    """
    read = Read.of(row.ids, row.sources, row.spans, tokens, continuations, positions)
    written = Written.of(row.writes)
    text = key_text(setting, read, written, row, compact(asdict(row.sampling)), occurrence)
    return text.digest(row.stream, row.draw, repeat).hex()


def nth_key(key: str, nth: int) -> str:
    """The key of the n-th result of one and the same computation, counting from 0: the first has its own."""
    return key if nth == 0 else hashlib.sha256(f"{key}/{nth}".encode()).hexdigest()[:32]
