"""The vector that `artefact:NAME` means in a write, or what about it does not fit."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from backends.writes import LAYERLESS, MODULE_SITES, Constant
from runner.config.errors import listed, suggestion
from runner.config.layers import LayerError, resolve_layer, resolve_layers
from runner.config.spec import Spec, WriteSpec
from runner.config.stages.artefact_files import ArtefactError, digest_of, read_artefact
from runner.config.stages.known import Artefact
from runner.config.writes.vectors import Extracted, GroupedConstant, Undefined
from runner.config.writes.widths import KV_SITES, QUERY_SITES, width_of

# Sites whose rows all live in the residual stream's space, so that a direction of one means something in
# another.
RESIDUAL = tuple(site for site in MODULE_SITES if site not in (*QUERY_SITES, *KV_SITES, "logits"))
_INDEX = re.compile(r"index:(-\d+)")


def find_artefact(word: str, spec: Spec) -> Artefact:
    """The artefact of a name of this experiment, or of a path. Raises ArtefactError."""
    if word.endswith(".safetensors"):
        return read_artefact(Path(word))
    known = spec.known.artefacts
    if word not in known:
        offered = f"of an earlier stage ({listed(known)})" if known else "that an earlier stage extracts"
        raise ArtefactError(
            f"expected an artefact {offered}, or the path of one (.safetensors), got '{word}'"
            f"{suggestion(word, known)}"
        )
    return known[word]


def artefact_constant(word: str, write: WriteSpec, spec: Spec) -> Constant:
    """The vectors [width], or [layers of the model, width], that a write takes from an artefact.

    With from_layer, every written layer gets the vector of that one; without, each its own. Raises
    ArtefactError for an artefact of another site, width or unit, or without such a layer or position.
    """
    artefact = find_artefact(word, spec)
    _fits(artefact, write, spec)
    array, told = artefact.vectors, [f"artefact '{artefact.name}'"]
    at = ""
    if "position" in artefact.dims:
        index = _position(artefact, write)
        array = np.take(array, index, axis=artefact.dims.index("position"))
        at = write.from_positions or f"index:{artefact.positions[0]}"
        told.append(f"position {at.removeprefix('index:')}")
    elif write.from_positions is not None:
        raise ArtefactError(
            f"the artefact '{artefact.name}' has one vector for all positions; it is extracted apart for "
            "each with each_position: true, or needs no from_positions"
        )
    array, layer = _at_layers(artefact, array, write, spec)
    if layer is not None:
        told.append(f"layer {layer}")
    name = ", ".join(told)
    pending = f"{artefact.key}/{artefact.name}/{layer}/{at}"
    if "group" not in artefact.dims:
        return _constant(artefact, array, name, pending, write, spec)
    groups = tuple(
        (group, _constant(artefact, array[index], name, f"{pending}/{group}", write, spec))
        for index, group in enumerate(artefact.groups)
    )
    first = groups[0][1]
    digest = pending if artefact.pending else digest_of(array)
    return GroupedConstant(digest, first.array, f"{name}, of the item's group", groups=groups)


def _constant(
    artefact: Artefact, array: np.ndarray, name: str, pending: str, write: WriteSpec, spec: Spec
) -> Constant:
    if artefact.pending:
        return Constant(pending, array, name)
    written = array[None] if array.ndim == 1 else array[_written(write, spec)]
    if not np.isfinite(written).all():
        return Undefined(pending, array, name, reason=f"{name} is not finite, so that it is no direction")
    zero = np.flatnonzero(~written.any(axis=1))
    if len(zero):
        where = "" if array.ndim == 1 else f" at layer {_written(write, spec)[zero[0]]}"
        reason = f"{name} is zero{where}, which is no direction"
        return Undefined(pending, array, name, reason=reason)
    return Extracted(
        digest_of(array), array, name, fingerprint=artefact.model_fingerprint, model=artefact.model
    )


def _fits(artefact: Artefact, write: WriteSpec, spec: Spec) -> None:
    same_space = artefact.site == write.site or {artefact.site, write.site} <= set(RESIDUAL)
    if not same_space:
        fitting = RESIDUAL if artefact.site in RESIDUAL else (artefact.site,)
        raise ArtefactError(
            f"the artefact '{artefact.name}' is of {artefact.site}, whose rows are no rows of "
            f"{write.site}; it "
            f"can be written at {listed(fitting)}"
        )
    width = width_of(write.site, spec.model)
    if artefact.width != width:
        raise ArtefactError(
            f"expected vectors of {width} numbers for {write.site}, the artefact '{artefact.name}' "
            f"(of {artefact.model}) has {artefact.width}"
        )
    if artefact.units == "unit" and write.op == "replace":
        raise ArtefactError(
            f"the artefact '{artefact.name}' has vectors of length 1 (norm: unit), which are directions "
            "and no "
            "activations to replace others by; extract it with norm: raw"
        )


def _position(artefact: Artefact, write: WriteSpec) -> int:
    if write.from_positions is None:
        if len(artefact.positions) == 1:
            return 0
        raise ArtefactError(
            f"the artefact '{artefact.name}' keeps its positions apart; expected from_positions, one of "
            f"{_offered(artefact)}"
        )
    found = _INDEX.fullmatch(write.from_positions)
    if found is None:
        raise ArtefactError(
            f"expected a position of the artefact '{artefact.name}' ({_offered(artefact)}), got "
            f"'{write.from_positions}'"
        )
    position = int(found[1])
    if artefact.pending and not artefact.positions:
        return 0
    if position not in artefact.positions:
        raise ArtefactError(
            f"expected a position of the artefact '{artefact.name}' ({_offered(artefact)}), got "
            f"index:{position}"
        )
    return artefact.positions.index(position)


def _offered(artefact: Artefact) -> str:
    return listed(f"index:{position}" for position in artefact.positions) or "index:-1, ..."


def _at_layers(
    artefact: Artefact, array: np.ndarray, write: WriteSpec, spec: Spec
) -> tuple[np.ndarray, int | None]:
    """Vectors with the layers of the model in the place of those of the artefact, and the one layer that
    from_layer names."""
    grouped = array.ndim - ("layer" in artefact.dims) - 1
    if "layer" not in artefact.dims:
        if write.from_layer is not None:
            raise ArtefactError(
                f"the artefact '{artefact.name}' is of no layer; from_layer says nothing of it"
            )
        return array, None
    if write.from_layer is not None:
        try:
            layer = resolve_layer(
                str(write.from_layer), spec.model.layers, spec.reference_depth, spec.model.landmarks
            )
        except LayerError as error:
            raise ArtefactError(f"from_layer: {error}") from error
        _has_layers(artefact, [layer])
        return np.take(array, artefact.layers.index(layer), axis=grouped), layer
    if write.site in LAYERLESS:
        raise ArtefactError(
            f"{write.site} is a site of the whole model; expected from_layer, one of "
            f"{listed(map(str, artefact.layers))}"
        )
    _has_layers(artefact, _written(write, spec))
    shape = (*array.shape[:grouped], spec.model.layers, artefact.width)
    whole = np.zeros(shape, dtype=np.float32)
    whole[..., list(artefact.layers), :] = array
    return whole, None


def _has_layers(artefact: Artefact, layers: list[int]) -> None:
    missing = [layer for layer in layers if layer not in artefact.layers]
    if missing:
        raise ArtefactError(
            f"the artefact '{artefact.name}' is of layers {listed(map(str, artefact.layers))} and not of "
            f"{missing[0]}; "
            "from_layer gives every written layer the vector of one"
        )


def _written(write: WriteSpec, spec: Spec) -> list[int]:
    """Layers of a write; none where its own word is wrong, which is told by itself."""
    if write.site in LAYERLESS or write.layers is None:
        return [0]
    try:
        word = write.layers
        return list(resolve_layers(word, spec.model.layers, spec.reference_depth, spec.model.landmarks))
    except LayerError:
        return []
