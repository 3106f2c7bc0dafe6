"""What a write does at a layer: its effect, and the fixed vector that it takes."""

from __future__ import annotations

import numpy as np
import torch

from backends.contract import BackendError
from backends.needs import mean_key
from backends.torch.loading import Loaded
from backends.torch.sources import Sources
from backends.torch.touches import Draws, Effect
from backends.writes import Value, Write

DRAWS = ("random", "orthogonal")  # kinds of values that are made of noise


def draws_of(value: Value) -> Draws | None:
    """How noise becomes a value; None where it has no part in it."""
    if value.kind == "random":
        return "matched" if value.constant is None else "scaled"
    return "orthogonal" if value.kind == "orthogonal" else None


def effect_of(loaded: Loaded, sources: Sources, write: Write, layer: int) -> Effect:
    """What a write does at a layer, on that layer's device."""
    device = loaded.layer_places[layer][0]
    mask = _columns(loaded, write, device)
    return Effect(
        op=write.op,
        alpha=write.alpha,
        unit=write.unit,
        draws=draws_of(write.value),
        head_width=_head_width(loaded, write),
        columns=None if mask is None else mask.nonzero()[:, 0],
        sae=None if write.features is None else sources.features(write.features, layer, device),
        round_trip=write.round_trip,
    )


def _head_width(loaded: Loaded, write: Write) -> int:
    """The width over which random values are matched: a head where the site has heads, else the whole
    width."""
    if write.site in ("q_proj", "k_proj", "v_proj", "head_z", "kv_cache"):
        return loaded.info.head_width
    return site_width(loaded, write.tensor)


def _columns(loaded: Loaded, write: Write, device: torch.device) -> torch.Tensor | None:
    """Boolean mask over a site's width of the heads that a write is limited to; None for all."""
    if write.heads is None:
        return None
    total = loaded.info.heads if write.heads.of == "query" else loaded.info.kv_heads
    mask = torch.zeros(total, dtype=torch.bool, device=device)
    mask[list(write.heads.indices)] = True
    return mask.repeat_interleave(loaded.info.head_width)


def site_width(loaded: Loaded, site: str) -> int:
    """Columns of the tensor at a site."""
    info = loaded.info
    if site in ("q_proj", "head_z"):
        return info.heads * info.head_width
    if site in ("k_proj", "v_proj"):
        return info.kv_heads * info.head_width
    return info.vocabulary if site == "logits" else info.width


def check_vector(loaded: Loaded, write: Write) -> None:
    """Raises BackendError for a fixed vector that does not fit the site that it is written at."""
    constant = write.value.constant
    if constant is None or write.features is not None:
        return
    wide, shape = site_width(loaded, write.tensor), constant.array.shape
    if shape not in ((wide,), (loaded.info.layers, wide)):
        raise BackendError(
            f"'{write.name}': {write.site} of model '{loaded.info.name}' takes a vector of [{wide}], or one "
            f"for each layer, [{loaded.info.layers}, {wide}]; {constant.name or 'its file'} has {list(shape)}"
        )


def vector_of(sources: Sources, write: Write, layer: int, device: torch.device) -> torch.Tensor:
    """The one vector [1, width] that a write of a constant, a mean or a number has for all positions.

    Raises BackendError where it is not finite, or is zero where it serves as a direction.
    """
    value = write.value
    if value.number is not None:
        found = torch.tensor([value.number])
    elif value.constant is not None:
        found = torch.from_numpy(np.asarray(value.constant.at(layer), dtype=np.float32))
    else:
        found = sources.mean(mean_key(write), (write.tensor, layer))
    if not bool(torch.isfinite(found).all()):
        raise BackendError(f"'{write.name}': the vector at layer {layer} is not finite")
    directed = write.op in ("add", "project_out") or value.kind in DRAWS
    if directed and write.alpha != 0 and not bool(found.any()):
        raise BackendError(f"'{write.name}': the vector at layer {layer} is zero, which is no direction")
    return found.to(device)[None]
