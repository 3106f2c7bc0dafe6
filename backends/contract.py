"""The contract between the runner and a backend: what a row is, what a write is, what comes back.

Everything here is frozen, free of tensors of any framework, and free of experiment vocabulary: a backend
sees rows of token ids with resolved writes and returns token ids, receipts and numbers. Arrays that leave a
backend are numpy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from backends.positions import Positions, Span

if TYPE_CHECKING:
    import numpy as np

# Raised whenever the meaning of a write, of sampling or of the order of events changes: it is part of every
# result key.
SEMANTICS_VERSION = 1

Site = Literal[
    "resid_pre", "resid_post", "attn_out", "mlp_out", "q_proj", "k_proj", "v_proj", "head_z", "kv_cache"
]
Op = Literal["replace", "add", "zero"]
Phase = Literal["prefill", "decode", "both"]
Hold = Literal["last", "cycle", "mean", "lockstep", "sliding"]
Align = Literal["right", "left", "whole", "concat"]
Rope = Literal["rerotate", "keep"]
Part = Literal["keys", "values", "both"]
ValueKind = Literal["source", "random", "shuffled_window", "shuffled_sequence", "none"]
Finish = Literal["eos", "length"]

SITES: tuple[str, ...] = Site.__args__  # type: ignore[attr-defined]
OPS: tuple[str, ...] = Op.__args__  # type: ignore[attr-defined]
PHASES: tuple[str, ...] = Phase.__args__  # type: ignore[attr-defined]
HOLDS: tuple[str, ...] = Hold.__args__  # type: ignore[attr-defined]
ALIGNS: tuple[str, ...] = Align.__args__  # type: ignore[attr-defined]
ROPES: tuple[str, ...] = Rope.__args__  # type: ignore[attr-defined]
PARTS: tuple[str, ...] = Part.__args__  # type: ignore[attr-defined]

SELF = "self"  # the role under which a row's own prompt is its source


class BackendError(Exception):
    """A failure that a user can act on: missing weights, unknown architecture, no such device."""


class OutOfMemory(Exception):
    """A batch did not fit on the device; the same rows in smaller batches may."""


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from and what its YAML declares of it.

    path: local folder, or None for a hub id with a pinned revision. The declared numbers are asserted at
    load.
    """

    name: str
    architecture: str
    path: str | None
    hub_id: str | None
    revision: str | None
    layers: int
    heads: int
    kv_heads: int
    head_width: int
    width: int
    context: int


@dataclass(frozen=True)
class Device:
    """How a model is run. device: auto, cpu, cuda or cuda:N. dtype: float32, bfloat16 or float16. budget in
    bytes."""

    device: str
    dtype: str
    attention: str = "sdpa"
    device_map: str | None = None
    budget: int = 2 << 30
    threads: int | None = None


@dataclass(frozen=True)
class Heads:
    """Heads that a write is limited to: query heads (`of='query'`) or key-value heads (`of='kv'`)."""

    of: Literal["query", "kv"]
    indices: tuple[int, ...]


@dataclass(frozen=True)
class Value:
    """What is written.

    kind: `source` (activations of another prompt's clean run, named by `role`), `shuffled_window` (the
    source's window with its rows permuted), `shuffled_sequence` (the window drawn after permuting the
    source's whole sequence), `random` (Gaussian, per position and head with the mean and standard deviation
    of the row that it replaces), `none` (zero). draws: how many different random draws the repeats of a
    trial cycle through.
    """

    kind: ValueKind
    role: str = ""
    draws: int = 1


@dataclass(frozen=True)
class Write:
    """One write into the model, fully resolved: absolute layers, no words of an experiment.

    positions are counted on the target for prefill and on the source for the window that decode draws from.
    For kv_cache they are counted over the cached slots. `order` ranks writes on one tensor (lower first).
    """

    name: str
    site: Site
    layers: tuple[int, ...]
    op: Op
    value: Value
    positions: Positions
    during: Phase
    hold: Hold | None = None
    heads: Heads | None = None
    part: Part = "both"
    align: Align = "right"
    rope: Rope = "rerotate"
    keep_sink: bool = False
    alpha: float = 1.0
    min_positions: int = 1
    order: int = 0

    @property
    def has_old(self) -> bool:
        """False where nothing of the target is overwritten in place, so that no relative change exists."""
        return not (self.site == "kv_cache" and self.align in ("whole", "concat"))

    @property
    def counted_on(self) -> tuple[str, ...]:
        """The prompts on which `positions` are counted: SELF for the row's own, and the role of the source.

        Empty for a decode write without a source, which has no window.
        """
        own = self.site == "kv_cache" or self.during in ("prefill", "both")
        source = self.value.kind not in ("random", "none")
        return tuple(dict.fromkeys((*((SELF,) if own else ()), *((self.value.role,) if source else ()))))


def same_tensor(first: Write, second: Write) -> bool:
    """Whether two writes can meet on one tensor: the same site, with layers, heads and parts in common."""
    if first.site != second.site or not set(first.layers) & set(second.layers):
        return False
    if (
        first.heads is not None
        and second.heads is not None
        and not set(first.heads.indices) & set(second.heads.indices)
    ):
        return False
    return {first.part, second.part} != {"keys", "values"}


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
            return {name: span for name, span in self.spans.items() if "/" not in name}
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


@dataclass(frozen=True)
class Probe:
    """A measurement on tensors. kind: `perplexity` (of `continuation` given the row's prompt, model
    unpatched)."""

    kind: Literal["perplexity"]
    version: int = 1


@dataclass(frozen=True)
class ScoreRow:
    """A prompt and a fixed continuation to measure with probes."""

    ids: tuple[int, ...]
    continuation: tuple[int, ...]


Reduce = Literal["none", "last", "mean"]


@dataclass(frozen=True)
class Prefix:
    """A common beginning of prompts, run once. handle: what the backend that made it needs; opaque to
    others."""

    ids: tuple[int, ...]
    handle: object = field(compare=False, repr=False)


@dataclass(frozen=True)
class Start:
    """Where rows begin: after a prefix that all their prompts share, which is not computed again.

    layer: with prompts that are the whole prefix, the last token's blocks below this layer are not computed
    again either (0: all are).
    """

    prefix: Prefix
    layer: int = 0


@dataclass(frozen=True)
class Captured:
    """Activations of one row: (site, layer) -> float32 array [positions, width]; for kv_cache [positions, 2
    * kv width], keys (after rotary embedding) then values."""

    activations: Mapping[tuple[str, int], np.ndarray]


@dataclass(frozen=True)
class ModelInfo:
    """What is known of a loaded model. fingerprint: hash over its weights; tokenizer_fingerprint likewise."""

    name: str
    architecture: str
    layers: int
    heads: int
    kv_heads: int
    head_width: int
    width: int
    vocabulary: int
    context: int
    dtype: str
    device: str
    attention: str
    fingerprint: str
    eos_ids: tuple[int, ...]


@dataclass(frozen=True)
class Footprint:
    """Bytes that a batch needs: per cached token of a row, per decoding row, and the fixed budget to stay
    within."""

    bytes_per_token: int
    bytes_per_row: int
    budget: int


class Backend(Protocol):
    """A loaded model that runs batches. Implementations: backends.torch, backends.mlx."""

    @property
    def info(self) -> ModelInfo: ...

    @property
    def footprint(self) -> Footprint: ...

    def check(self, writes: Sequence[Write]) -> None:
        """Raises BackendError, before anything runs, for a write that this model cannot take."""
        ...

    def prefix(self, ids: tuple[int, ...]) -> Prefix:
        """Run a common beginning of prompts once."""
        ...

    def capture(
        self,
        rows: Sequence[Row],
        sites: Sequence[tuple[Site, int]],
        reduce: Reduce = "none",
        start: Start | None = None,
    ) -> list[Captured]:
        """Activations of clean or written prefills at the (site, layer) pairs asked: of all positions
        computed, of the last, or their mean in float64."""
        ...

    def score(
        self, rows: Sequence[ScoreRow], probes: Sequence[Probe], start: Start | None = None
    ) -> list[dict[str, float | None]]:
        """Each probe's value for each row; None where undefined (an empty continuation)."""
        ...

    def decode(self, rows: Sequence[Row], start: Start | None = None) -> list[Decoded]:
        """Generate for all rows in one batch; rows may belong to different conditions."""
        ...
