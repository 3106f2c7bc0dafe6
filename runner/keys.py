"""Trial identity: what makes two trials the same result, and which random stream a trial draws from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from backends.noise import stream_of
from backends.rows import Row
from backends.writes import SEMANTICS_VERSION, Write


@dataclass(frozen=True)
class Setting:
    """What is shared by all trials of a run and enters each key."""

    backend: str
    model: str
    tokenizer: str
    dtype: str
    attention: str
    probes: tuple[tuple[str, int], ...]
    seed: int


def sampling_stream(
    seed: int, target: Sequence[int], donor: Sequence[int], occurrence: int, repeat: int
) -> int:
    """The stream of a trial's sampling noise: the same for every condition and backend."""
    return stream_of("sampling", seed, tuple(target), tuple(donor), occurrence, repeat)


def value_stream(seed: int, target: Sequence[int], donor: Sequence[int], occurrence: int) -> int:
    """The stream of random and shuffled values: the same in every repeat, which differ by their draw."""
    return stream_of("value", seed, tuple(target), tuple(donor), occurrence)


def canonical(write: Write) -> str:
    """A write as JSON without its name, which is a label and changes nothing."""
    body = asdict(write)
    del body["name"]
    return json.dumps(body, sort_keys=True)


def receipt_order(writes: Sequence[Write]) -> tuple[str, ...]:
    """Names of writes in the order in which a result stores their receipts: that of their canonical form."""
    return tuple(write.name for write in sorted(writes, key=canonical))


def result_key(setting: Setting, row: Row, occurrence: int, repeat: int) -> str:
    """32 hex digits that name a result: equal keys mean the same tokens. Neither the names of conditions,
    writes and items nor order, batch, shard and machine enter."""
    used = sorted({w.value.role for w in row.writes if w.value.role} & set(row.sources))
    body = {
        "semantics": SEMANTICS_VERSION,
        "setting": asdict(setting),
        "ids": row.ids,
        "sources": {role: row.sources[role] for role in used},
        "spans": {role: list(span) for role, span in sorted(row.spans.items())},
        "writes": sorted(canonical(write) for write in row.writes),
        "sampling": asdict(row.sampling),
        "stream": row.stream,
        "value_stream": row.value_stream if any(_drawn(w) for w in row.writes) else None,
        "draws": sorted({row.draw % w.value.draws for w in row.writes if _drawn(w)}),
        "recompute": row.recompute,
        "replay": row.replay_last_token,
        "occurrence": occurrence,
        "repeat": repeat,
    }
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _drawn(write: Write) -> bool:
    return write.value.kind in ("random", "shuffled_window", "shuffled_sequence")
