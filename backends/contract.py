"""The contract between the runner and a backend: what a row is, what a write is, what comes back.

Everything here is frozen, free of tensors of any framework, and free of experiment vocabulary: a backend
sees rows of token ids with resolved writes and returns token ids, receipts and numbers. Arrays that leave a
backend are numpy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from threading import Event
from typing import TYPE_CHECKING, Literal, Protocol

from backends.clock import Clock
from backends.measures import Probe, Scored, ScoreRow
from backends.rows import Decoded, Row
from backends.writes import Site, Write

if TYPE_CHECKING:
    import numpy as np


class BackendError(Exception):
    """A failure that a user can act on: missing weights, unknown architecture, no such device."""


class OutOfMemory(Exception):
    """A batch did not fit on the device; the same rows in smaller batches may."""


class Stopped(Exception):
    """What a backend was running was given up, because another thread asked for it."""


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
    bytes, None for a share of what is free. workers: how many threads run batches at the same time, threads:
    those of each; None: what is best there."""

    device: str
    dtype: str
    attention: str = "sdpa"
    device_map: str | None = None
    budget: int | None = None
    threads: int | None = None
    workers: int | None = None


Reduce = Literal["none", "last", "mean"]
Weight = Literal["o_proj", "o_proj_bias", "embed", "unembed"]


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
    """What is known of a loaded model. fingerprint: hash over its weights. sites: those that its architecture
    has. windows: per layer, how many latest tokens it sees, or None for all. rotary: whether positions are
    rotary, so that keys can be moved. parameters: how many numbers its weights hold, tied ones once."""

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
    sites: tuple[Site, ...] = ()
    windows: tuple[int | None, ...] = ()
    rotary: bool = True
    parameters: int = 0


@dataclass(frozen=True)
class Footprint:
    """Bytes that a batch needs, as measured on the loaded model, and the budget of all batches that run at
    the same time.

    While it decodes, a row needs bytes_per_row (logits, noise, sorting) and bytes_per_token for each token
    that its cache has room for. Until then it needs bytes_per_prompt, bytes_per_prompt_token for each token
    of its prompt (activations, and the cache twice while the batch's own is put together) and bytes_per_pair
    for each pair of them (masks, scores of attention). bytes_per_scored_token and
    bytes_per_scored_pair are the same of texts whose perplexity is measured.
    """

    bytes_per_token: int
    bytes_per_row: int
    budget: int
    bytes_per_prompt: int = 0
    bytes_per_prompt_token: int = 0
    bytes_per_pair: int = 0
    bytes_per_scored_token: int = 0
    bytes_per_scored_pair: int = 0

    def of_batch(self, rows: int, prompt: int, new: int) -> int:
        """The most that a batch needs at any time, with prompts (or donors, where those are longer) of up to
        `prompt` tokens and up to `new` tokens generated. Where rows share a prompt it is less."""
        decoding = self.bytes_per_row + (prompt + new) * self.bytes_per_token
        before = self.bytes_per_prompt + new * self.bytes_per_token + self.of_prompt(prompt)
        return rows * max(decoding, before)

    def of_prompt(self, tokens: int) -> int:
        """What one more prompt of so many tokens needs, its logits aside."""
        return tokens * self.bytes_per_prompt_token + tokens * tokens * self.bytes_per_pair

    def prompt_tokens(self, longest: int) -> int:
        """How many tokens of prompts of up to `longest` fit in the budget; at least one."""
        each = self.bytes_per_prompt_token + longest * self.bytes_per_pair
        return max(1, self.budget // max(1, each))

    def scored_tokens(self, longest: int) -> int:
        """How many tokens of texts of up to `longest` can be scored within the budget; at least one."""
        each = self.bytes_per_scored_token + longest * self.bytes_per_scored_pair
        return max(1, self.budget // max(1, each))


class Backend(Protocol):
    """A loaded model that runs batches. Implementations: backends.torch, backends.mlx.

    Rows with `weights` run in the model without that direction, whatever else is in their batch. Where the
    model makes that inexact they come back invalid, with the reason of `orthogonalised`. What is defined by
    the unpatched model - perplexity, the clean side of kl - is measured with the weights in place.
    """

    @property
    def info(self) -> ModelInfo: ...

    @property
    def footprint(self) -> Footprint: ...

    @property
    def clock(self) -> Clock:
        """The seconds of the thread that uses this backend: capture, prefill, decode, write, score, and what
        that thread adds."""
        ...

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
    ) -> list[Scored]:
        """Each probe's values for each row, and the receipts of the row's writes."""
        ...

    def unembed(self, hidden: np.ndarray) -> np.ndarray:
        """The logit lens: final norm, unembedding, scale and soft-capping of residual states [n, width] ->
        logits [n, vocabulary]."""
        ...

    def weight(self, name: Weight, layer: int = 0) -> np.ndarray:
        """A weight matrix in float32, as x @ W: o_proj [heads * head width, width], o_proj_bias [width]
        (zeros where there is none), embed and unembed [vocabulary, width]."""
        ...

    def orthogonalised(self, direction: np.ndarray) -> AbstractContextManager[None]:
        """The model with `direction` [width] taken out of every matrix that writes to the residual stream.

        Rows whose `weights` are that direction run within it as they are, so that many batches of them cost
        one change of the weights. Raises BackendError where that is not the same as project_out at every
        residual site: tied embeddings, post-norms.
        """
        ...

    def decode(
        self, rows: Sequence[Row], start: Start | None = None, together: int | None = None
    ) -> list[Decoded]:
        """Generate for all rows; rows may belong to different conditions. Results in the order of the rows.

        together: at most so many run at once; the others wait and enter, in the order given, as rows finish.
        None: all at once.
        """
        ...

    @property
    def workers(self) -> int:
        """How many threads are to run batches at the same time, each on a backend `beside` this one."""
        ...

    def beside(self, stop: Event | None = None) -> Backend:
        """Another backend on the same weights, for another thread: hooks, modules and clock of its own, the
        captures shared. Made where nothing runs on this one, and not to be used while weights are changed.

        stop: once it is set, what runs on the other one raises Stopped at its next forward.
        """
        ...
