"""Loading a model: from a local folder or a hub id with a pinned revision, checked against what its YAML
declares."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

from backends.broken import explain_broken
from backends.contract import BackendError, Device, ModelInfo, ModelSource
from backends.fingerprint import of_weights
from backends.torch.attention import GROUPED, takes_over
from backends.torch.sites import Layout, check_layout, find, layout_of

# transformers' names for the two kinds of attention layers.
FULL, SLIDING = "full_attention", "sliding_attention"
# Kinds of rotary embedding whose frequencies depend on how long the text is.
MOVING = ("dynamic", "longrope")
# On matrices up to this wide the overhead of a second thread within an operation exceeds its gain.
SMALL_WIDTH = 256
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Loaded:
    """A model ready to run. windows: per layer, its sliding attention window in tokens, or None where it sees
    the whole context. inverse_frequencies: per layer, those of the rotary embedding, [rotated columns of a
    head / 2], or None where positions are not rotary. rotary_kind: transformers' word for how they are
    made."""

    model: PreTrainedModel
    blocks: list[nn.Module]
    layout: Layout
    info: ModelInfo
    device: torch.device
    layer_places: list[tuple[torch.device, torch.dtype]]
    windows: tuple[int | None, ...]
    inverse_frequencies: tuple[torch.Tensor, ...] | None
    rotary_kind: str


# The loaded model is the one thing that outlives a run: a sweep's jobs share it.
_loaded: dict[tuple[ModelSource, Device, str], Loaded] = {}


def load(source: ModelSource, device: Device) -> Loaded:
    """The model, from this process's cache of one (if its files are unchanged), or loaded.

    Raises BackendError in a sentence for: no such folder, corrupt safetensors, unknown architecture, a layout
    or size other than declared, no CUDA device.
    """
    if source.path is None or not (Path(source.path) / "config.json").is_file():
        raise BackendError(f"model '{source.name}': no config.json in {source.path}")
    fingerprint = of_weights(Path(source.path))
    key = (source, device, fingerprint)
    if key not in _loaded:
        _loaded.clear()
        _loaded[key] = _load(source, device, fingerprint)
    return _loaded[key]


def pick_device(wanted: str) -> torch.device:
    """`auto` is CUDA where there is one. Raises BackendError for a CUDA device that does not exist."""
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(wanted)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise BackendError(
            f"backend.device: '{wanted}' asked for, but torch {torch.__version__} sees no CUDA device"
        )
    return device


def _load(source: ModelSource, device: Device, fingerprint: str) -> Loaded:
    place = pick_device(device.device)
    if device.threads is not None:
        torch.set_num_threads(device.threads)
    elif place.type == "cpu" and source.width <= SMALL_WIDTH:
        torch.set_num_threads(1)
    assert source.path is not None
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        layout = layout_of(model_type(Path(source.path)), source.name)
        attention = device.attention if layout.fused else "eager"
        config = AutoConfig.from_pretrained(source.path)
        found: Any = AutoModelForCausalLM.from_pretrained(
            source.path,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below, by name and size
            dtype=DTYPES[device.dtype],
            attn_implementation=attention,
            device_map=device.device_map,
            use_safetensors=True,
        )
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        raise BackendError(explain_broken(source, "weights", error)) from error
    model, report = found
    check_weights(model, report, source)
    if device.device_map is None:
        model.to(place)
    if attention == "sdpa" and takes_over(model.dtype, model.device):
        model.set_attn_implementation(GROUPED)
    model.eval()
    model.requires_grad_(False)
    layout = layout.configured(config)
    blocks = check_layout(model, config, layout, source)
    places = [(p.device, p.dtype) for p in (next(block.parameters()) for block in blocks)]
    windows = sliding_windows(config, source)
    frequencies = rotary_frequencies(model, config, layout, source)
    return Loaded(
        model=model,
        blocks=blocks,
        layout=layout,
        info=_describe(source, device, attention, model, fingerprint, layout, windows),
        device=model.device,
        layer_places=places,
        windows=windows,
        inverse_frequencies=frequencies,
        rotary_kind=rotary_kind(model, layout),
    )


def model_type(folder: Path) -> str:
    """The architecture that a folder's config.json names. Raises ValueError where it names none."""
    found = json.loads((folder / "config.json").read_bytes())
    if not isinstance(found, dict) or not isinstance(found.get("model_type"), str):
        raise ValueError("config.json names no model_type")
    return str(found["model_type"])


def check_weights(model: PreTrainedModel, report: Mapping[str, Any], source: ModelSource) -> None:
    """Raises BackendError where the files lack a tensor of the model, hold others, in other sizes, or
    values that are not finite: transformers would fill in random numbers, or drop what it does not know."""
    problems = [f"{name}: not in the files" for name in sorted(report["missing_keys"])]
    problems += [f"{name}: in the files, but not in the model" for name in sorted(report["unexpected_keys"])]
    problems += [
        f"{name}: {tuple(stored)} in the files, {tuple(wanted)} by config.json"
        for name, stored, wanted in sorted(report["mismatched_keys"])
    ]
    if not problems:
        problems = [
            f"{name}: has values that are not finite"
            for name, tensor in model.named_parameters()
            if not bool(torch.isfinite(tensor).all())
        ]
    if problems:
        more = f"\n  and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise BackendError(
            f"model '{source.name}': the weights in {source.path} are not those of its config.json:\n  "
            + "\n  ".join(problems[:5])
            + more
        )


def sliding_windows(config: Any, source: ModelSource) -> tuple[int | None, ...]:
    """Per layer, the number of latest tokens that it sees, or None for all.

    config: transformers' configuration of the model, whose layer_types, where it has any, say it layer by
    layer. Raises BackendError for a layer whose attention is of another kind.
    """
    window: int | None = getattr(config, "sliding_window", None)
    if getattr(config, "use_sliding_window", True) is False:
        window = None
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        return (window,) * source.layers
    known = {FULL: None, SLIDING: window}
    unknown = sorted(set(kinds) - set(known))
    if unknown:
        raise BackendError(
            f"model '{source.name}': expected layers of the kinds {', '.join(known)}, its config.json has "
            f"layer_types of the kind {', '.join(unknown)}"
        )
    return tuple(known[kind] for kind in kinds)


def rotary_frequencies(
    model: nn.Module, config: Any, layout: Layout, source: ModelSource
) -> tuple[torch.Tensor, ...] | None:
    """Per layer, the inverse frequencies that its keys are rotated by, [rotated columns of a head / 2]; None
    where positions are not rotary. A head's columns behind the rotated ones are not rotated.

    config: transformers' configuration of the model, whose layer_types say which layer has which, where the
    kinds of layers differ. Raises BackendError where they are not found.
    """
    if layout.rotary is None:
        return None
    rotary = find(model, layout.rotary)
    if getattr(rotary, "inv_freq", None) is not None:
        names = ["inv_freq"] * source.layers
    else:
        names = [f"{kind}_inv_freq" for kind in getattr(config, "layer_types", None) or ()]
    found = [getattr(rotary, name, None) for name in names]
    right = [t for t in found if isinstance(t, torch.Tensor) and 2 * len(t) <= source.head_width]
    if not right or len(right) != source.layers:
        looked_for = ", ".join(dict.fromkeys(names)) or "inv_freq"
        raise BackendError(
            f"model '{source.name}': looked for {looked_for} at '{layout.rotary}', for {source.layers} "
            f"layers and at most {source.head_width} columns of a head, found them for {len(right)}"
        )
    return tuple(right)


def rotary_kind(model: nn.Module, layout: Layout) -> str:
    """transformers' word for how a model's rotary frequencies are made; of one whose layers differ, one that
    is not fixed where there is such a layer."""
    if layout.rotary is None:
        return "none"
    found = getattr(find(model, layout.rotary), "rope_type", "none")
    kinds = [str(kind) for kind in found.values()] if isinstance(found, dict) else [str(found)]
    return next((kind for kind in kinds if kind in MOVING), kinds[0])


def _describe(
    source: ModelSource,
    device: Device,
    attention: str,
    model: PreTrainedModel,
    fingerprint: str,
    layout: Layout,
    windows: tuple[int | None, ...],
) -> ModelInfo:
    eos = model.generation_config.eos_token_id if model.generation_config is not None else None
    if eos is None:
        eos = model.config.eos_token_id
    ids = tuple(eos) if isinstance(eos, list) else (() if eos is None else (int(eos),))
    return ModelInfo(
        name=source.name,
        architecture=model.config.model_type,
        layers=source.layers,
        heads=source.heads,
        kv_heads=source.kv_heads,
        head_width=source.head_width,
        width=source.width,
        vocabulary=int(model.config.vocab_size),
        context=source.context,
        dtype=device.dtype,
        device=str(model.device),
        attention=attention,
        fingerprint=fingerprint,
        eos_ids=ids,
        sites=layout.sites(),
        windows=windows,
        rotary=layout.rotary is not None,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
    )
