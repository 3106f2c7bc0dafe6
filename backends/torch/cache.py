"""Key-value caches with preallocated slots, in the shape that transformers' attention modules call."""

from __future__ import annotations

import torch
from transformers.cache_utils import Cache, CacheLayerMixin


class SlotLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """One layer's slots: keys and values [rows, kv heads, capacity, head width], filled from the left."""

    is_croppable = False

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, filled: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.keys = keys
        self.values = values
        self.filled = filled
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        raise RuntimeError("slots are allocated before the first forward")

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append and return views of all filled slots. The extra arguments are transformers' cache_kwargs,
        which only quantised and sliding caches read."""
        end = self.filled + key_states.shape[2]
        assert self.keys is not None and self.values is not None
        self.keys[:, :, self.filled : end] = key_states
        self.values[:, :, self.filled : end] = value_states
        self.filled = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.filled + query_length, 0

    def get_seq_length(self) -> int:
        return self.filled

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

    def keep_rows(self, rows: torch.Tensor) -> None:
        """Drop all rows but these (int64 indices)."""
        for index in range(len(self.layers)):
            layer = self.slot_layer(index)
            assert layer.keys is not None and layer.values is not None
            kept = rows.to(layer.keys.device)
            layer.keys = layer.keys.index_select(0, kept)
            layer.values = layer.values.index_select(0, kept)


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
