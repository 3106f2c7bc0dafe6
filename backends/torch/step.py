"""One decode step of fixed shape: a function of tensors that stay where they are, which a graph can hold.

It computes what the loop of `generate` computes step by step, but asks the host nothing: where a row stands,
which token it takes and what acts on it are read from tensors that the step itself moves on. Rows that have
finished go on and change nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from backends.torch.cache import SlotLayer
from backends.torch.edits import decode_touches
from backends.torch.forward import Geometry, call
from backends.torch.hooks import Board
from backends.torch.loading import MOVING, Loaded
from backends.torch.progress import Progress
from backends.torch.running import Running
from backends.torch.sampling import Chooser

BUCKET = 64  # slots that a step reads are a multiple of this: few graphs, and few slots that are nobody's


class FixedLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """The slots of a layer, of which as many are read at every step. at: where the new one goes, int64 [1],
    counted from the first slot read."""

    is_croppable = False

    def __init__(self, slots: SlotLayer, length: int, at: torch.Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        assert slots.keys is not None and slots.values is not None
        self.keys = slots.keys[:, :, slots.start : slots.start + length]
        self.values = slots.values[:, :, slots.start : slots.start + length]
        self.at = at.to(self.keys.device)
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        raise RuntimeError("slots are allocated before the first forward")

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Put one token's keys and values in their slot and return all slots, those behind it too."""
        assert self.keys is not None and self.values is not None
        self.keys.index_copy_(2, self.at, key_states)
        self.values.index_copy_(2, self.at, value_states)
        return self.keys, self.values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_max_length(), 0

    def get_seq_length(self) -> int:
        return self.get_max_length() - 1

    def get_max_length(self) -> int:
        assert self.keys is not None
        return self.keys.shape[2]


class FixedStep:
    """The decode step of the rows that run now.

    It works on the loop's own tensors - the newest tokens, the positions, the progress, the slots of the
    cache - and leaves them as the loop's step would.
    """

    def __init__(
        self,
        loaded: Loaded,
        board: Board,
        running: Running,
        now: Progress,
        choose: Chooser,
        tokens: torch.Tensor,
        entered: torch.Tensor,
        step: int,
    ) -> None:
        """tokens: the newest of each row; entered: the step at which each began; step: that which is to be
        computed next. The cache has an unfilled slot."""
        cache = running.cache
        read = cache.filled - cache.start
        length = min(BUCKET * (read // BUCKET + 1), cache.capacity - cache.start)
        self._last = cache.start + length
        self._loaded, self._board, self._running, self._now = loaded, board, running, now
        self._choose, self.tokens, self._entered = choose, tokens, entered
        device = tokens.device
        self._step = torch.tensor(step, device=device)
        self._at = torch.tensor([read], device=device)
        layers = [FixedLayer(cache.slot_layer(index), length, self._at) for index in range(len(cache.layers))]
        self._cache: Any = Cache(layers=layers)  # type: ignore[arg-type]
        here = slice(cache.start, self._last)
        self._keys, self._seen = running.positions[:, here], running.seen[:, None, here]
        self._slots = torch.arange(length, device=device)

    @property
    def full(self) -> bool:
        """Whether the slots that it reads are all filled."""
        return self._running.cache.filled >= self._last

    def state(self) -> list[torch.Tensor]:
        """Everything that a step moves on, but for the cache's slots."""
        now = self._now
        tallies = {id(edit.tally): edit.tally for edit in self._running.edits}
        counted = [part for t in tallies.values() for part in (t.counts, t.change, t.measured)]
        progress = [now.tokens, now.count, now.ended, now.bad, now.margin, now.forwards, now.alive]
        return [self.tokens, self._running.slots, self._step, self._at, *progress, *counted]

    def compute(self) -> None:
        """One step, on the device alone: feed the newest tokens, draw the next, take them down."""
        now, slots = self._now, self._running.slots
        slots += 1
        self._board.touches = decode_touches(self._running.edits, self._step, now.alive.float())
        self._board.edges = {}
        now.forwards += now.alive
        allowed = self._seen & (self._slots <= self._at)
        at = Geometry(slots[:, None], self._keys, allowed)
        logits = call(self._loaded, self.tokens[:, None], at, self._cache)[:, -1]
        self._step += 1
        self._at += 1
        own = self._step - self._entered
        tokens, margin, finite = self._choose.draw(logits, own)
        now.take(own, tokens, margin, finite)
        self.tokens.copy_(tokens)

    def run(self) -> None:
        """One step."""
        self.compute()
        self.advance()

    def advance(self) -> None:
        """Take down on the host that a slot more is filled."""
        cache = self._running.cache
        for index in range(len(cache.layers)):
            cache.slot_layer(index).filled += 1


def can_be_fixed(loaded: Loaded) -> bool:
    """Whether a model's step has one shape and asks the host nothing: not where it chooses experts, or
    rotates by how long the text is, or is spread over devices."""
    one_place = len({place for place, _ in loaded.layer_places}) == 1
    return one_place and "experts" not in loaded.layout.down and loaded.rotary_kind not in MOVING
