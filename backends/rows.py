"""What a row is - a prompt with its writes - and what comes back of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from backends.positions import Span
from backends.writes import SELF, Write

Finish = Literal["eos", "length"]
_OF_SOURCE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*/")  # the front of a span's name where it is a source's


@dataclass(frozen=True)
class Sampling:
    """How new tokens are drawn. temperature 0 is greedy; top_k 0 and top_p 1 mean no truncation."""

    temperature: float
    max_new_tokens: int
    top_k: int = 0
    top_p: float = 1.0


@dataclass(frozen=True)
class Row:
    """One prompt to run, with its writes.

    ids: token ids of the prompt, BOS included. sources: role -> token ids of the prompts that writes draw
    from. stream: 64-bit random stream of this trial (sampling). value_stream: 64-bit stream for random
    values, the same in every repeat; draw: which of the random draws this repeat takes. recompute: no
    cache, every step a whole forward. replay_last_token: all T slots prefilled, then the last token fed
    again at position T (published procedure). spans: (start, end) in tokens of the marked parts of the
    prompts: `NAME` of ids, `SOURCE/NAME` of the source in that role. One mapping, because all of them are
    part of what a trial is; `spans_of` takes it apart.
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

    def spans_of(self, role: str) -> dict[str, Span]:
        """Marked parts by name: of the row's own prompt (SELF), or of the source in a role."""
        if role == SELF:
            return {name: span for name, span in self.spans.items() if not _OF_SOURCE.match(name)}
        front = f"{role}/"
        return {name.removeprefix(front): span for name, span in self.spans.items() if name.startswith(front)}


@dataclass(frozen=True)
class Receipt:
    """What one write really did in one row.

    positions are counted once per forward and position, whatever the number of layers (a write at 9 layers
    and 16 positions counts 16). relative_change: mean over layers and written positions of |new - old| /
    |old|; None where nothing was written or no old tensor exists. shadowed, decode_shadowed: positions whose
    result a later write wholly overwrites. keys_ahead: copied keys whose rotary position lies after that of
    the first query. logit_change: for writes without an old tensor, |new - old| / |old| of the first new
    token's logits against the same tokens, other writes included, without the kv write.
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
    """Outcome of one decoded row. `invalid` holds the reason where the row could not be run as asked."""

    output_ids: tuple[int, ...]
    finish: Finish
    receipts: Mapping[str, Receipt]
    min_margin: float
    batch_rows: int
    batch_length: int
    invalid: str | None = None
