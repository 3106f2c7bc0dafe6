"""Key-value caches with preallocated slots, in the shape that transformers' attention modules call."""

from __future__ import annotations

import torch
from transformers.cache_utils import Cache, CacheLayerMixin


class SlotLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """One layer's slots: keys and values [rows, kv heads, capacity, head width], filled from the left. start:
    the first slot that is read; those before it are nobody's any more."""

    is_croppable = False

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, filled: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.keys = keys
        self.values = values
        self.filled = filled
        self.start = 0
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        raise RuntimeError("slots are allocated before the first forward")

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append and return views of the filled slots from `start` on. The extra arguments are transformers'
        cache_kwargs, which only quantised and sliding caches read."""
        end = self.filled + key_states.shape[2]
        assert self.keys is not None and self.values is not None
        if end > self.keys.shape[2]:  # an assignment past the end would be empty, and silent
            raise ValueError(f"slots {self.filled} to {end} of {self.keys.shape[2]}")
        self.keys[:, :, self.filled : end] = key_states
        self.values[:, :, self.filled : end] = value_states
        self.filled = end
        return self.keys[:, :, self.start : end], self.values[:, :, self.start : end]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.filled - self.start + query_length, 0

    def get_seq_length(self) -> int:
        return self.filled - self.start

    def get_max_length(self) -> int:
        assert self.keys is not None
        return self.keys.shape[2]


class SlotCache(Cache):
    """A cache over all layers; every layer holds the same number of filled slots."""

    def __init__(self, layers: list[SlotLayer]) -> None:
        super().__init__(layers=layers)  # type: ignore[arg-type]

    @staticmethod
    def empty(
        like: list[tuple[torch.device, torch.dtype]], rows: int, kv_heads: int, slots: int, width: int
    ) -> SlotCache:
        """Unfilled slots; `like` gives each layer's device and dtype."""
        shape = (rows, kv_heads, slots, width)
        return SlotCache(
            [
                SlotLayer(
                    torch.zeros(shape, device=device, dtype=dtype),
                    torch.zeros(shape, device=device, dtype=dtype),
                    0,
                )
                for device, dtype in like
            ]
        )

    def slot_layer(self, layer: int) -> SlotLayer:
        found = self.layers[layer]
        assert isinstance(found, SlotLayer)
        return found

    def take_back(self, slots: int) -> None:
        """Forget the newest slots."""
        for index in range(len(self.layers)):
            self.slot_layer(index).filled -= slots

    @property
    def filled(self) -> int:
        """Slots that hold something, or have held it."""
        return self.slot_layer(0).filled

    @property
    def start(self) -> int:
        """The first slot that is read."""
        return self.slot_layer(0).start

    @property
    def capacity(self) -> int:
        return self.slot_layer(0).get_max_length()

    def read_from(self, start: int) -> None:
        """Leave out the slots before `start` from now on."""
        for index in range(len(self.layers)):
            self.slot_layer(index).start = start

    def to_front(self) -> None:
        """Move the slots that are read to the front, all rows alike."""
        for index in range(len(self.layers)):
            layer = self.slot_layer(index)
            length = layer.filled - layer.start
            for slots in (layer.keys, layer.values):
                assert slots is not None
                slots[:, :, :length] = slots[:, :, layer.start : layer.filled].clone()
            layer.start, layer.filled = 0, length

    def keep_rows(self, rows: torch.Tensor, room: int, front: int = 0, more: int = 0) -> None:
        """Drop all rows but these (int64 indices), and the slots that are not read.

        room: unfilled slots behind those that are read; front: empty ones before them; more: empty rows
        behind the rows that stay.
        """
        for index in range(len(self.layers)):
            layer = self.slot_layer(index)
            length = layer.filled - layer.start
            for name in ("keys", "values"):
                old: torch.Tensor = getattr(layer, name)
                kept = rows.to(old.device)
                shape = (len(kept) + more, old.shape[1], front + length + room, old.shape[3])
                new = torch.zeros(shape, device=old.device, dtype=old.dtype)
                read = old[:, :, layer.start : layer.filled].index_select(0, kept)
                new[: len(kept), :, front : front + length] = read
                setattr(layer, name, new)
            layer.start, layer.filled = 0, front + length

    def put_rows(self, first: int, other: SlotCache) -> None:
        """Put the rows of another cache in the empty rows from `first` on, right-aligned: their last slot is
        the last here."""
        length = other.filled - other.start
        for index in range(len(self.layers)):
            layer, new = self.slot_layer(index), other.slot_layer(index)
            for name in ("keys", "values"):
                held: torch.Tensor = getattr(layer, name)
                slots: torch.Tensor = getattr(new, name)
                held[first:, :, layer.filled - length : layer.filled] = slots[:, :, new.start : new.filled]


def rotate(keys: torch.Tensor, offset: torch.Tensor, inverse_frequencies: torch.Tensor) -> torch.Tensor:
    """Rotary keys moved by `offset` positions: the key of position p becomes that of position p + offset.

    keys: [rows, kv heads, slots, head width], whose first 2 * len(inverse_frequencies) columns are rotated in
    halves, as in every architecture of the table of sites; the columns behind them stay as they are. offset:
    [rows, slots]. Rotations compose, so moving an already rotated key by an offset equals computing it there.
    Computed in float32.
    """
    half = len(inverse_frequencies)
    angle = offset[..., None].float() * inverse_frequencies.float().to(keys.device)
    angle = torch.cat([angle, angle], dim=-1)[:, None]
    k = keys[..., : 2 * half].float()
    turned = torch.cat([-k[..., half:], k[..., :half]], dim=-1)
    moved = (k * angle.cos() + turned * angle.sin()).to(keys.dtype)
    return torch.cat([moved, keys[..., 2 * half :]], dim=-1)
