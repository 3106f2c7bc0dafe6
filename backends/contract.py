"""The contract between the runner and a backend: what a row is, what a write is, what comes back.

Everything here is frozen, free of tensors of any framework, and free of experiment vocabulary: a backend
sees rows of token ids with resolved writes and returns token ids, receipts and numbers. Arrays that leave a
backend are numpy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from backends.measures import Probe, Scored, ScoreRow
from backends.rows import Decoded, Row
from backends.writes import Site, Write

if TYPE_CHECKING:
    import numpy as np


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
    """Bytes that a batch needs: per cached token of a row, per decoding row, and the fixed budget to stay
    within."""

    bytes_per_token: int
    bytes_per_row: int
    budget: int


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

    def decode(self, rows: Sequence[Row], start: Start | None = None) -> list[Decoded]:
        """Generate for all rows in one batch; rows may belong to different conditions."""
        ...
