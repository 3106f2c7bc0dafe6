"""Artefacts as files: safetensors with everything that says what the vectors are."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import safetensors
from safetensors.numpy import save

from backends.writes import SITES, Site
from runner.config.errors import listed
from runner.config.stages.known import Artefact

TENSOR = "vectors"
FORMAT = "patchbay-artefact-1"
_DIMS = ("group", "position", "layer", "width")


class ArtefactError(ValueError):
    """A file that holds no artefact, or one that does not fit; the message says what is there instead."""


def described(artefact: Artefact) -> dict[str, Any]:
    """Everything of an artefact but its vectors and its table, in plain data."""
    return {
        "format": FORMAT,
        "name": artefact.name,
        "dims": list(artefact.dims),
        "shape": list(artefact.vectors.shape),
        "groups": list(artefact.groups),
        "positions": list(artefact.positions),
        "layers": list(artefact.layers),
        "site": artefact.site,
        "units": artefact.units,
        "dtype": artefact.dtype,
        "model": artefact.model,
        "model_fingerprint": artefact.model_fingerprint,
        "tokenizer_fingerprint": artefact.tokenizer_fingerprint,
        "sources": dict(artefact.sources),
        "key": artefact.key,
    }


def as_bytes(artefact: Artefact) -> bytes:
    """The safetensors file of an artefact: one tensor, and its description as JSON texts."""
    told = {name: json.dumps(value, ensure_ascii=False) for name, value in described(artefact).items()}
    data: bytes = save({TENSOR: np.ascontiguousarray(artefact.vectors, dtype=np.float32)}, told)
    return data


def read_artefact(path: Path) -> Artefact:
    """The artefact of a file. Raises ArtefactError naming the file and what it holds instead."""
    try:
        with safetensors.safe_open(os.path.expanduser(path), framework="numpy") as file:
            told = file.metadata() or {}
            names = list(file.keys())
            vectors = file.get_tensor(TENSOR) if TENSOR in names else None
    except FileNotFoundError:
        raise ArtefactError(f"expected the file of an artefact, found no '{path}'") from None
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise ArtefactError(f"expected the file of an artefact, '{path}' cannot be read: {error}") from error
    try:
        plain: Mapping[str, Any] = {name: json.loads(value) for name, value in told.items()}
    except ValueError:
        plain = {}
    if plain.get("format") != FORMAT or vectors is None:
        raise ArtefactError(
            f"expected an artefact that an extract stage wrote, '{path}' holds the tensors {listed(names)} "
            "without its description; a plain vector is file:PATH"
        )
    shape = vectors.shape
    dims = tuple(plain["dims"])
    counted = {"group": len(plain["groups"]), "position": len(plain["positions"])}
    sound = (
        len(dims) == len(shape)
        and set(dims) <= set(_DIMS)
        and plain["site"] in SITES
        and all(shape[dims.index(dim)] == count for dim, count in counted.items() if dim in dims)
        and ("layer" not in dims or shape[dims.index("layer")] == len(plain["layers"]))
    )
    if not sound:
        raise ArtefactError(f"the description of '{path}' does not fit its vectors of shape {list(shape)}")
    return Artefact(
        name=plain["name"],
        vectors=vectors.astype(np.float32, copy=False),
        dims=dims,
        site=cast("Site", plain["site"]),
        layers=tuple(plain["layers"]),
        groups=tuple(plain["groups"]),
        positions=tuple(plain["positions"]),
        units=plain["units"],
        dtype=plain["dtype"],
        model=plain["model"],
        model_fingerprint=plain["model_fingerprint"],
        tokenizer_fingerprint=plain["tokenizer_fingerprint"],
        sources=plain["sources"],
        key=plain["key"],
    )


def digest_of(array: np.ndarray) -> str:
    """SHA-256 over shape and little-endian float32 content, which stands for a vector in result keys."""
    content = np.ascontiguousarray(array, dtype="<f4")
    return hashlib.sha256(f"{content.shape}\n".encode() + content.tobytes()).hexdigest()
