"""What a write is: the vocabulary of sites, operations and values, and a write fully resolved."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from backends.positions import Positions, Span

if TYPE_CHECKING:
    import numpy as np

# Raised whenever the meaning of a write, of sampling or of the order of events changes: it is part of every
# result key.
SEMANTICS_VERSION = 1
Site = Literal[
    "embed",
    "resid_pre",
    "resid_mid",
    "resid_post",
    "attn_out",
    "attn_out_normed",
    "mlp_out",
    "mlp_out_normed",
    "q_proj",
    "k_proj",
    "v_proj",
    "head_z",
    "kv_cache",
    "attention_edge",
    "sae",
    "logits",
]
Op = Literal["replace", "add", "scale", "project_out", "zero", "set_feature", "mask"]
Unit = Literal["raw", "resid_norm", "direction_norm"]
Phase = Literal["prefill", "decode", "both"]
Hold = Literal["last", "cycle", "mean", "lockstep", "sliding"]
Align = Literal["right", "left", "whole", "concat"]
Rope = Literal["rerotate", "keep"]
Part = Literal["keys", "values", "both"]
ValueKind = Literal[
    "source",
    "shuffled_window",
    "shuffled_sequence",
    "random",
    "orthogonal",
    "mean",
    "constant",
    "number",
    "none",
]
SITES: tuple[str, ...] = Site.__args__  # type: ignore[attr-defined]
OPS: tuple[str, ...] = Op.__args__  # type: ignore[attr-defined]
PHASES: tuple[str, ...] = Phase.__args__  # type: ignore[attr-defined]
HOLDS: tuple[str, ...] = Hold.__args__  # type: ignore[attr-defined]
ALIGNS: tuple[str, ...] = Align.__args__  # type: ignore[attr-defined]
ROPES: tuple[str, ...] = Rope.__args__  # type: ignore[attr-defined]
PARTS: tuple[str, ...] = Part.__args__  # type: ignore[attr-defined]
UNITS: tuple[str, ...] = Unit.__args__  # type: ignore[attr-defined]
# The sites that a module itself takes or gives, in the order in which a forward comes to them.
MODULE_SITES: tuple[Site, ...] = (
    "embed",
    "resid_pre",
    "q_proj",
    "k_proj",
    "v_proj",
    "head_z",
    "attn_out",
    "attn_out_normed",
    "resid_mid",
    "mlp_out",
    "mlp_out_normed",
    "resid_post",
    "logits",
)
LAYERLESS = ("embed", "logits")  # sites of the whole model: a write there names no layers
SELF = "self"  # the role under which a row's own prompt is its source


@dataclass(frozen=True)
class Heads:
    """Heads that a write is limited to: query heads (`of='query'`) or key-value heads (`of='kv'`)."""

    of: Literal["query", "kv"]
    indices: tuple[int, ...]


@dataclass(frozen=True)
class Constant:
    """Fixed vectors from a file or an artefact. array: [width], the same at every layer, or [layers of the
    model, width], float32. digest: hash of its content, which stands for it in equality and in result keys;
    name: what a reader calls it (a path, `artefact 'direction', layer 4`)."""

    digest: str
    array: np.ndarray = field(compare=False, repr=False)
    name: str = field(default="", compare=False)

    def at(self, layer: int) -> np.ndarray:
        """The vector [width] that is written at a layer."""
        return self.array if self.array.ndim == 1 else self.array[layer]


@dataclass(frozen=True)
class PromptSet:
    """Prompts over which a mean is taken. spans: per prompt, (name, span) of its marked parts; empty where
    positions name none. name: what a reader calls it."""

    prompts: tuple[tuple[int, ...], ...]
    spans: tuple[tuple[tuple[str, Span], ...], ...] = ()
    name: str = field(default="", compare=False)


@dataclass(frozen=True)
class Under:
    """The condition under which a source is captured: its writes. name: what a reader calls it."""

    writes: tuple[Write, ...]
    name: str = field(default="", compare=False)


@dataclass(frozen=True)
class Value:
    """What is written.

    kind: `source` (activations of another prompt's run, named by `role`), `shuffled_window` (the source's
    window with its rows permuted), `shuffled_sequence` (the window drawn after permuting the source's whole
    sequence), `random` (Gaussian, per position and head with the mean and standard deviation of the row that
    it replaces; with a `constant`, of its norm), `orthogonal` (Gaussian, orthogonal to the row or vector that
    it stands in for - the source's in `role`, or `constant` - and of its norm), `mean` (over the prompts of
    `prompts` and, in each, over the positions of the write: one vector per layer), `constant` (a fixed
    vector), `number` (the value of a feature), `none` (zero, scale, mask). What is drawn in place of a
    constant is one vector, as that is: the same at every site, position and step of a trial, and at every
    layer where the constant is. draws: how many different random draws the repeats of a trial cycle through.
    layer: the layer that the source is read at where that is not the one written (back-patching). under:
    captures the source with these writes instead of clean.
    """

    kind: ValueKind
    role: str = ""
    draws: int = 1
    layer: int | None = None
    under: Under | None = None
    constant: Constant | None = None
    prompts: PromptSet | None = None
    number: float | None = None

    @property
    def has_source(self) -> bool:
        """Whether it is read from a run of the prompt in `role`."""
        return bool(self.role)

    @property
    def has_vector(self) -> bool:
        """Whether one vector per layer stands behind it: a constant, a mean or the value of a feature."""
        return self.constant is not None or self.prompts is not None or self.number is not None


@dataclass(frozen=True)
class Features:
    """Features of a sparse autoencoder that a write sets. folder: where its files lie; fingerprint: hash of
    them; site: where it is hooked."""

    folder: str = field(compare=False)
    fingerprint: str
    site: Site
    indices: tuple[int, ...]


@dataclass(frozen=True)
class Write:
    """One write into the model, fully resolved: absolute layers, no words of an experiment.

    positions are counted on the target for prefill and on the source for the window that decode draws from.
    source_positions are counted on the source in both, where those differ from `positions`: one row for all
    positions written, or a row for each. For kv_cache positions are counted over the cached slots. `order`
    ranks writes on one tensor (lower first). layers: of embed (0,), of logits the last one alone.

    op, with x what is there, v the value, both [width] (or the columns of `heads`): replace: v; add: x +
    alpha u v / |v| where u is |v| (unit direction_norm: x + alpha v), |x| (resid_norm) or 1 (raw); scale:
    alpha x; project_out: x - alpha (x.v) v / |v|^2; zero: 0; set_feature: x + sum over features of (v - a) d
    / s, with a the feature's activation on x, d its decoder row and s the SAE's input scale (`round_trip`:
    the SAE's reconstruction with those features set instead); mask: the attention of `positions` (queries)
    to `keys` is cut, both counted on the target, for `heads` (query heads) or all.
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
    unit: Unit = "direction_norm"
    keys: Positions | None = None
    features: Features | None = None
    round_trip: bool = False
    source_positions: Positions | None = None

    @property
    def read_at(self) -> Positions:
        """Positions of the source, whose rows are written."""
        return self.positions if self.source_positions is None else self.source_positions

    @property
    def has_old(self) -> bool:
        """False where nothing of the target is overwritten in place, so that no relative change exists."""
        return self.site != "attention_edge" and not (
            self.site == "kv_cache" and self.align in ("whole", "concat")
        )

    @property
    def moves_keys(self) -> bool:
        """Whether keys of another cache are turned to the positions that they come to stand at."""
        return (
            self.site == "kv_cache"
            and self.rope == "rerotate"
            and self.part != "values"
            and self.align != "whole"  # where each stays at its own
            and self.value.has_source
        )

    @property
    def tensor(self) -> Site:
        """The site whose tensor it changes: for features of an SAE, where that is hooked."""
        return self.site if self.features is None else self.features.site

    @property
    def drawn(self) -> bool:
        """Whether its value is random, so that it depends on the row's value stream and draw."""
        kinds = ("random", "orthogonal", "shuffled_window", "shuffled_sequence")
        under = () if self.value.under is None else self.value.under.writes
        return self.value.kind in kinds or any(write.drawn for write in under)

    @property
    def overwrites(self) -> bool:
        """Whether nothing of what was there is left at the positions and heads that it covers."""
        return self.op in ("replace", "zero") and self.features is None

    @property
    def counted_on(self) -> tuple[str, ...]:
        """The prompts on which `positions` are counted: SELF for the row's own, and the role of the source.

        Empty for a decode write without a source, which has no window. `source_positions` are counted on the
        source instead of them.
        """
        own = self.site in ("kv_cache", "attention_edge") or self.during in ("prefill", "both")
        source = self.value.has_source and self.source_positions is None
        return tuple(dict.fromkeys((*((SELF,) if own else ()), *((self.value.role,) if source else ()))))


def same_tensor(first: Write, second: Write) -> bool:
    """Whether two writes can meet on one tensor: the same site, with layers, heads and parts in common.

    Cut edges never do: they add up, in whatever order.
    """
    if first.tensor != second.tensor or not set(first.layers) & set(second.layers):
        return False
    if first.site == "attention_edge":
        return False
    if (
        first.heads is not None
        and second.heads is not None
        and not set(first.heads.indices) & set(second.heads.indices)
    ):
        return False
    return {first.part, second.part} != {"keys", "values"}
