"""What a row is - a prompt with its writes - and what comes back of it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from backends.positions import Span
from backends.writes import SELF, Constant, Value, Write

Finish = Literal["eos", "length"]
_OF_SOURCE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*/")  # the front of a span's name where it is a source's


@dataclass(frozen=True)
class Sampling:
    """How new tokens are drawn. temperature 0 is greedy; top_k 0 and top_p 1 mean no truncation."""

    temperature: float
    max_new_tokens: int
    top_k: int = 0
    top_p: float = 1.0


GREEDY = Sampling(temperature=0.0, max_new_tokens=1)  # of runs whose tokens nobody reads


@dataclass(frozen=True)
class Row:
    """One prompt to run, with its writes.

    ids: token ids of the prompt, BOS included. sources: role -> token ids of the prompts that writes draw
    from. stream: 64-bit random stream of this trial (sampling). value_stream: 64-bit stream for random
    values, the same in every repeat; draw: which of the random draws this repeat takes. recompute: no
    cache, every step a whole forward. replay_last_token: all T slots prefilled, then the last token fed
    again at position T (published procedure). spans: (start, end) in tokens of the marked parts of the
    prompts: `NAME` of ids, `SOURCE/NAME` of the source in that role. One mapping, because all of them are
    part of what a trial is; `spans_of` takes it apart. weights: a direction [width] that is taken out of the
    model's weights while this row runs, its sources included; None: they stay as they stand.
    """

    ids: tuple[int, ...]
    sampling: Sampling
    writes: tuple[Write, ...] = ()
    sources: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    spans: Mapping[str, Span] = field(default_factory=dict)
    stream: int = 0
    value_stream: int = 0
    draw: int = 0
    recompute: bool = False
    replay_last_token: bool = False
    weights: Constant | None = None

    def spans_of(self, role: str) -> dict[str, Span]:
        """Marked parts by name: of the row's own prompt (SELF), or of the source in a role."""
        if role == SELF:
            return {name: span for name, span in self.spans.items() if not _OF_SOURCE.match(name)}
        front = f"{role}/"
        return {name.removeprefix(front): span for name, span in self.spans.items() if name.startswith(front)}


def by_weights(rows: Sequence[Row]) -> list[tuple[Constant | None, list[int]]]:
    """The rows (indices) that run in a model with the same weights, those as they stand first."""
    found: dict[Constant | None, list[int]] = {None: []}
    for index, row in enumerate(rows):
        found.setdefault(row.weights, []).append(index)
    return [(changed, chosen) for changed, chosen in found.items() if chosen]


@dataclass(frozen=True)
class SourceRun:
    """A run that writes draw from: a prompt, clean or under the writes of a condition. Equal runs are
    captured once. sources, spans: as in Row, sorted; value_stream, draw: 0 where nothing is drawn."""

    ids: tuple[int, ...]
    writes: tuple[Write, ...] = ()
    sources: tuple[tuple[str, tuple[int, ...]], ...] = ()
    spans: tuple[tuple[str, Span], ...] = ()
    value_stream: int = 0
    draw: int = 0

    def row(self, sampling: Sampling = GREEDY, stream: int = 0) -> Row:
        """The run as a row of its own."""
        return Row(
            self.ids,
            sampling,
            self.writes,
            dict(self.sources),
            dict(self.spans),
            stream,
            self.value_stream,
            self.draw,
        )


def source_run(row: Row, ids: tuple[int, ...], value: Value) -> SourceRun:
    """The run that a value of a row is read from; ids: the prompt in its role."""
    if value.under is None:
        return SourceRun(ids)
    writes = value.under.writes
    own = row.spans_of(value.role)
    others = {name: span for name, span in row.spans.items() if _OF_SOURCE.match(name)}
    drawn = any(write.drawn for write in writes)
    return SourceRun(
        ids,
        writes,
        tuple(sorted(row.sources.items())),
        tuple(sorted((own | others).items())),
        row.value_stream if drawn else 0,
        row.draw if drawn else 0,
    )


@dataclass(frozen=True)
class Receipt:
    """What one write really did in one row.

    positions are counted once per forward and position, whatever the number of layers (a write at 9 layers
    and 16 positions counts 16); cut edges count queries that had one at any layer. relative_change: mean over
    layers and written positions of |new - old| / |old|; None where nothing was written or no old tensor
    exists. shadowed, decode_shadowed: positions whose result a later write wholly overwrites (logits of a
    prompt whose last token is replayed: the replayed token's). keys_ahead: copied keys whose rotary position
    lies after that of the first query. logit_change: for writes without an old tensor (align whole and
    concat, cut edges), |new - old| / |old| of the first logits that they act on, against a twin on the same
    tokens that has the row's other writes and none of these.
    """

    asked_prefill: int = 0
    asked_decode: int = 0
    positions_prefill: int = 0
    positions_decode: int = 0
    relative_change: float | None = None
    shadowed: int = 0
    decode_shadowed: int = 0
    keys_ahead: int = 0
    logit_change: float | None = None


@dataclass(frozen=True)
class Decoded:
    """Outcome of one decoded row. `invalid` holds the reason where the row could not be run as asked.

    batch_rows: the rows of the widest batch that it ran in; batch_length: tokens of the longest prompt of the
    whole call.
    """

    output_ids: tuple[int, ...]
    finish: Finish
    receipts: Mapping[str, Receipt]
    min_margin: float
    batch_rows: int
    batch_length: int
    invalid: str | None = None
