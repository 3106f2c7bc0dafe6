"""A loaded model as checks see it: prompts of its own vocabulary, short ways to write and to read, and how
far two readings lie apart."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import numpy as np

from backends.contract import Backend, ModelInfo
from backends.measures import Measured, Probe, Scored, ScoreRow
from backends.noise import stream_of
from backends.positions import Positions
from backends.rows import Decoded, Row, Sampling
from backends.writes import (
    LAYERLESS,
    MODULE_SITES,
    SELF,
    Constant,
    Features,
    Heads,
    Op,
    Phase,
    PromptSet,
    Site,
    Unit,
    Value,
    ValueKind,
    Write,
)

Suite = Literal["short", "full"]
# Sites whose tensor is the residual stream, in the order in which a block passes them.
STREAM: tuple[Site, ...] = ("resid_pre", "resid_mid", "resid_post")
MIXTURES = ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe")
NONE = Value("none")
RANDOM = Value("random")
OWN = Value("source", role=SELF)
DONOR = Value("source", role="donor")
SMALLEST = 1e-30  # a probability below this counts as this one, so that its logarithm is finite
LEAST_CONTEXT = 64
SEED = 20240611

Spot = tuple[Site, int]
Reading = Mapping[tuple[str, int], np.ndarray]
Item = TypeVar("Item")


def make(
    name: str,
    site: Site,
    layers: Sequence[int],
    op: Op = "replace",
    value: Value = DONOR,
    positions: str | Positions = "all",
    during: Phase = "prefill",
    *,
    alpha: float = 1.0,
    order: int = 0,
    heads: Heads | None = None,
    unit: Unit = "direction_norm",
    keys: str | None = None,
    features: Features | None = None,
    round_trip: bool = False,
    part: str = "both",
    align: str = "right",
    rope: str = "rerotate",
    hold: str | None = None,
    read_at: str | None = None,
) -> Write:
    """A write with the defaults that checks share; words as in YAML."""
    words: dict[str, Any] = {"part": part, "align": align, "rope": rope, "hold": hold}
    return Write(
        name,
        site,
        tuple(layers),
        op,
        NONE if op in ("zero", "scale", "mask") else value,
        Positions.parse(positions) if isinstance(positions, str) else positions,
        during,
        alpha=alpha,
        order=order,
        heads=heads,
        unit=unit,
        keys=None if keys is None else Positions.parse(keys),
        features=features,
        round_trip=round_trip,
        source_positions=None if read_at is None else Positions.parse(read_at),
        **words,
    )


def constant(array: np.ndarray, kind: ValueKind = "constant") -> Value:
    """A fixed vector [width] as a value, or one for every layer [layers, width]."""
    fixed = np.ascontiguousarray(array, dtype=np.float32)
    digest = hashlib.blake2b(repr(fixed.shape).encode() + fixed.tobytes(), digest_size=16).hexdigest()
    return Value(kind, constant=Constant(digest, fixed))


def mean_of(prompts: Sequence[tuple[int, ...]]) -> Value:
    """The mean over prompts as a value."""
    return Value("mean", prompts=PromptSet(tuple(prompts)))


def apart(found: np.ndarray, expected: np.ndarray) -> float:
    """max |found - expected| / max |expected|, in float64; infinite where a shape differs or something is
    not finite. 0 means equal bit for bit, signs of zero aside."""
    if found.shape != expected.shape:
        return float("inf")
    if not found.size or np.array_equal(found, expected):
        return 0.0
    difference = np.abs(found.astype(np.float64) - expected.astype(np.float64)).max()
    size = np.abs(expected.astype(np.float64)).max()
    share = difference / size if size > 0 else np.inf
    return float(share) if np.isfinite(share) else float("inf")


def farthest(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    """The largest of `apart` over pairs (found, expected)."""
    return max((apart(found, expected) for found, expected in pairs), default=0.0)


class NotApplicable(Exception):
    """Raised by a check that says nothing about this model, with the reason as a sentence."""


@dataclass(frozen=True)
class Tokens:
    """How the tokens of two decodes of the same rows compare. differ: rows that do so beyond near-ties;
    near_ties: rows whose difference is a recorded near-tie."""

    differ: int
    near_ties: int


def same_tokens(found: Sequence[Decoded], expected: Sequence[Decoded], logit_error: float) -> Tokens:
    """A difference is a near-tie only where the margin between the two best candidates lay below ten times
    the measured error of the logits, in logits."""
    differ = near = 0
    for one, other in zip(found, expected, strict=True):
        if (one.output_ids, one.invalid) == (other.output_ids, other.invalid):
            continue
        if min(one.min_margin, other.min_margin) < 10 * logit_error:
            near += 1
        else:
            differ += 1
    return Tokens(differ, near)


@dataclass(frozen=True)
class Subject:
    """The model that checks run on. suite `short` looks at a few layers, `full` at all of them."""

    backend: Backend
    suite: Suite = "short"

    @property
    def info(self) -> ModelInfo:
        return self.backend.info

    @property
    def depth(self) -> int:
        """Number of layers."""
        return self.info.layers

    @property
    def mixture(self) -> bool:
        """Whether it is a mixture of experts, whose products are grouped by the tokens of the batch."""
        return self.info.architecture in MIXTURES

    @property
    def full(self) -> bool:
        return self.suite == "full"

    @property
    def window(self) -> int | None:
        """The smallest sliding window of any layer, or None."""
        return min((w for w in self.info.windows if w is not None), default=None)

    @property
    def length(self) -> int:
        """Tokens of a prompt: beyond the window of the layers that have a small one, so that it is seen to
        work."""
        return 16 if self.window is None or self.window > 24 else max(16, self.window + 4)

    @property
    def short_length(self) -> int:
        """Tokens of a prompt that every layer sees whole, one new token included."""
        return 8 if self.window is None else min(8, self.window - 1)

    def layers(self) -> tuple[int, ...]:
        """The layers to look at: all in the full suite; else the first, a middle one, the last, and one with
        each kind of window."""
        if self.full:
            return tuple(range(self.depth))
        windows = self.info.windows
        kinds = {windows.index(window) for window in dict.fromkeys(windows)}
        return tuple(sorted({0, self.depth // 2, self.depth - 1} | kinds))

    def sites(self) -> tuple[Site, ...]:
        """The sites within the model that its architecture has, in the order of a forward."""
        return tuple(site for site in MODULE_SITES if site in self.info.sites)

    def stream(self) -> tuple[Site, ...]:
        """Its sites that are the residual stream."""
        return tuple(site for site in STREAM if site in self.info.sites)

    def layers_of(self, site: Site) -> tuple[int, ...]:
        """The layers to look at where the site has layers, else the one that stands for it."""
        return self.only(site) if site in LAYERLESS else self.layers()

    def every(self, site: Site) -> tuple[int, ...]:
        """All layers of a site."""
        return self.only(site) if site in LAYERLESS else tuple(range(self.depth))

    def only(self, site: Site) -> tuple[int, ...]:
        """The layer under which a site of the whole model goes."""
        return (0,) if site == "embed" else (self.depth - 1,)

    def spots(self, sites: Sequence[Site]) -> list[Spot]:
        """Every layer of these sites."""
        return [(site, layer) for site in sites for layer in self.every(site)]

    def width(self, site: Site) -> int:
        """Numbers at one position of a site."""
        info = self.info
        if site in ("q_proj", "head_z"):
            return info.heads * info.head_width
        if site in ("k_proj", "v_proj"):
            return info.kv_heads * info.head_width
        return info.vocabulary if site == "logits" else info.width

    # Prompts and rows.

    def ids(self, tag: str, length: int | None = None) -> tuple[int, ...]:
        """A prompt drawn by its tag, without end-of-text tokens."""
        count = self.length if length is None else length
        allowed = np.setdiff1d(np.arange(self.info.vocabulary), np.array(self.info.eos_ids, dtype=np.int64))
        drawn = np.random.default_rng(stream_of(SEED, tag)).choice(allowed, count)
        return tuple(int(token) for token in drawn)

    def vector(self, tag: str, width: int | None = None) -> np.ndarray:
        """A Gaussian vector drawn by its tag: float32 [width], of the model's width unless said."""
        rng = np.random.default_rng(stream_of(SEED, "vector", tag))
        return rng.standard_normal(self.info.width if width is None else width).astype(np.float32)

    def row(
        self,
        ids: tuple[int, ...],
        *writes: Write,
        donor: tuple[int, ...] | None = None,
        tokens: int = 1,
        temperature: float = 0.0,
        stream: int = 0,
    ) -> Row:
        """A greedy row of `tokens` new tokens, unless a temperature is given."""
        sources = {} if donor is None else {"donor": donor}
        return Row(
            ids,
            Sampling(temperature, tokens),
            tuple(writes),
            sources,
            stream=stream,
            value_stream=stream_of(SEED, "values"),
        )

    def drawn(self, row: Row, draw: int) -> Row:
        """The row in the repeat that takes this random draw."""
        return replace(row, draw=draw)

    # Reading.

    def capture(self, rows: Sequence[Row], spots: Sequence[Spot]) -> list[Reading]:
        """Activations of all positions, in batches that fit."""
        out: list[Reading] = []
        for batch in self._batches(rows, [row.ids for row in rows]):
            self.backend.check([write for row in batch for write in row.writes])
            out += [found.activations for found in self.backend.capture(batch, spots)]
        return out

    def read(self, row: Row, spots: Sequence[Spot]) -> Reading:
        """Activations of one row alone."""
        return self.capture([row], spots)[0]

    def final(self, rows: Sequence[Row]) -> list[np.ndarray]:
        """The residual stream behind the last block, [positions, width] a row."""
        last: Spot = ("resid_post", self.depth - 1)
        return [found[last] for found in self.capture(rows, [last])]

    def logits(self, rows: Sequence[Row]) -> list[np.ndarray]:
        """Logits of all positions [positions, vocabulary] of prefilled prompts, prefill writes active, but
        for those at `logits` itself."""
        return [self.backend.unembed(final) for final in self.final(rows)]

    def returned(self, rows: Sequence[Row]) -> list[np.ndarray]:
        """What the model returns at the last position of prefilled prompts: logits [vocabulary] a row."""
        last: Spot = ("logits", self.depth - 1)
        return [found[last][-1] for found in self.capture(rows, [last])]

    def score(self, rows: Sequence[ScoreRow], probes: Sequence[Probe]) -> list[Scored]:
        """Probes' values, in batches that fit. An invalid row is an error: checks ask for what can be."""
        out: list[Scored] = []
        for batch in self._batches(rows, [row.row.ids + row.continuation for row in rows]):
            self.backend.check([write for row in batch for write in row.row.writes])
            out += self.backend.score(batch, probes)
        wrong = [found.invalid for found in out if found.invalid is not None]
        if wrong:
            raise ValueError(f"a row of this check could not be run: {wrong[0]}")
        return out

    def first(self, rows: Sequence[Row]) -> np.ndarray:
        """Log-probabilities of the first new token, all events of a trial included: float64 [rows,
        vocabulary]."""
        count = self.info.vocabulary
        probe = Probe("top_k", name="top", top=count)
        out = np.full((len(rows), count), SMALLEST)
        for index, found in enumerate(self.score([ScoreRow(row) for row in rows], [probe])):
            ids, shares = listed(found.values["top.ids"]), listed(found.values["top.probs"])
            out[index, ids.astype(np.int64)] = np.maximum(shares, SMALLEST)
        likely: np.ndarray = np.log(out)
        return likely

    def forced(self, rows: Sequence[Row], continuation: tuple[int, ...]) -> np.ndarray:
        """Log-probabilities of given new tokens under the rows' writes, decode writes included: float64
        [rows, tokens]."""
        asked = [ScoreRow(row, continuation) for row in rows]
        found = self.score(asked, [Probe("logprob", name="said")])
        return np.stack([listed(each.values["said.tokens"]) for each in found])

    def decode(self, rows: Sequence[Row]) -> list[Decoded]:
        """Tokens, in batches that fit. An invalid row is an error: checks ask for what can be."""
        found = self.attempt(rows)
        wrong = [each.invalid for each in found if each.invalid is not None]
        if wrong:
            raise ValueError(f"a row of this check could not be run: {wrong[0]}")
        return found

    def attempt(self, rows: Sequence[Row]) -> list[Decoded]:
        """Tokens, in batches that fit, rows that end as invalid among them."""
        out: list[Decoded] = []
        for batch in self._batches(rows, [row.ids for row in rows]):
            self.backend.check([write for row in batch for write in row.writes])
            out += self.backend.decode(batch)
        return out

    def _batches(self, rows: Sequence[Item], prompts: Sequence[tuple[int, ...]]) -> list[list[Item]]:
        """Rows in the order given, in batches within the backend's budget (at least one row each)."""
        footprint = self.backend.footprint
        longest = 2 * max((len(ids) for ids in prompts), default=1) + 16  # a donor's slots, new tokens
        each = longest * footprint.bytes_per_token + footprint.bytes_per_row
        count = max(1, footprint.budget // max(1, each))
        return [list(rows[i : i + count]) for i in range(0, len(rows), count)]

    # What a check may ask of the model.

    def need(self, condition: bool, why: str) -> None:
        """Raises NotApplicable with the reason unless the condition holds."""
        if not condition:
            raise NotApplicable(why)


def listed(value: Measured) -> np.ndarray:
    """A probe's list as float64."""
    if not isinstance(value, tuple):
        raise TypeError(f"expected a list of a probe, got {value!r}")
    return np.array(value, dtype=np.float64)


def scalar(value: Measured) -> float:
    """A probe's number."""
    if not isinstance(value, int | float):
        raise TypeError(f"expected a number of a probe, got {value!r}")
    return float(value)


def with_role(row: Row, name: str, span: tuple[int, int]) -> Row:
    """The row with a marked part [start, end), so that positions can name any stretch of it."""
    return replace(row, spans={**row.spans, name: span})
