"""What is measured: probes on tensors, and the rows that they measure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from backends.rows import Receipt, Row
from backends.writes import Site

ProbeKind = Literal[
    "next_token",
    "log_odds",
    "rank",
    "accuracy",
    "top_k",
    "kl",
    "lens",
    "patchscope",
    "cross_entropy",
    "logprob",
    "perplexity",
    "geometry",
]
Measured = float | int | tuple[float, ...] | tuple[int, ...] | None


@dataclass(frozen=True)
class Scope:
    """A patchscope: a fixed prompt, and the position in it that takes the state. layer: where the state is
    written; None: at the layer that it was read from."""

    ids: tuple[int, ...]
    position: int
    layer: int | None = None


@dataclass(frozen=True)
class Probe:
    """A measurement on tensors, under the row's own writes unless it says otherwise. The definitions, with
    the units and invariances of each, stand in backends/probes/.

    name: the front of the columns that it gives. tokens, against: token sets of the ScoreRow, by name
    (next_token, log_odds, rank, accuracy, lens, patchscope). top: of top_k. layers: of lens and patchscope
    (resid_post) and the two of geometry (early, late). position: the prompt position that next_token,
    log_odds, rank, accuracy, top_k, kl, lens and patchscope read; -1 is the last. at: in its place, the name
    of a position of the ScoreRow. windows: of geometry, numbers of last positions. site: of geometry.
    """

    kind: ProbeKind
    name: str = ""
    version: int = 1
    tokens: str = ""
    against: str = ""
    top: int = 5
    layers: tuple[int, ...] = ()
    position: int = -1
    at: str = ""
    windows: tuple[int, ...] = (16,)
    site: Site = "v_proj"
    scope: Scope | None = None


@dataclass(frozen=True)
class ScoreRow:
    """A row to measure with probes. continuation: fixed tokens after its prompt (logprob, perplexity).
    tokens: token sets by name. positions: positions of its prompt by name, counted from 0 (`Probe.at`)."""

    row: Row
    continuation: tuple[int, ...] = ()
    tokens: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    positions: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Scored:
    """What the probes measured in one row: column -> value, None where it is undefined. receipts: what its
    writes did in the forwards that were measured; empty where every probe is of the unpatched model.
    `invalid` holds the reason where the row could not be run as asked."""

    values: Mapping[str, Measured]
    receipts: Mapping[str, Receipt]
    batch_rows: int
    batch_length: int
    invalid: str | None = None
