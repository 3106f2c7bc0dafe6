"""Our own format: a folder with sae.json, which says how the SAE is computed, and weights.safetensors.

Weights are stored with one row for each feature (the encoder as [features, width]), so that a few features
are read without the rest of the file.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from backends.fingerprint import of_file
from backends.sae.types import (
    Chosen,
    Conventions,
    Description,
    Sae,
    SaeError,
    active_above,
    check_indices,
    near,
    refuse,
    shape_problems,
)

DESCRIPTION, WEIGHTS = "sae.json", "weights.safetensors"
FORMAT = "patchbay-sae/1"
_KEYS = ("format", *(each.name for each in fields(Conventions)))
_KINDS = {"F32": ("float32", "<f4"), "F16": ("float16", "<f2"), "BF16": ("bfloat16", "<u2")}


def save(folder: str | os.PathLike[str], sae: Sae) -> Description:
    """Write an SAE to a new folder, its weights in the dtype that its conventions name.

    Raises SaeError where the folder exists, or where a weight is too large for the dtype.
    """
    place = Path(folder)
    dtype = sae.conventions.dtype
    stored = {name: _narrowed(name, array, dtype) for name, array in sae.arrays().items()}
    try:
        place.mkdir(parents=True)
    except FileExistsError:
        raise SaeError(f"'{place}' exists already; expected the name of a new folder") from None
    if dtype == "bfloat16":
        _save_bfloat16(stored, place / WEIGHTS)
    else:
        save_file({name: np.ascontiguousarray(array) for name, array in stored.items()}, place / WEIGHTS)
    document = json.dumps({"format": FORMAT, **asdict(sae.conventions)}, indent=2)
    (place / DESCRIPTION).write_text(document + "\n", encoding="utf-8")  # last: without it there is no SAE
    return describe(place)


def describe(folder: Path) -> Description:
    """The description of an SAE: its sae.json, the header of its weights, and a fingerprint over both files
    (of weights above 1 GiB, over 64 of their blocks). Raises SaeError with all that is wrong."""
    return _open(folder).description


def load(folder: Path) -> Sae:
    """An SAE with all its weights, as float32. Raises SaeError with all that is wrong."""
    found = _open(folder)
    try:
        return Sae(
            found.description.conventions,
            encoder=found.take("encoder").T,
            b_enc=found.take("b_enc"),
            decoder=found.take("decoder"),
            b_dec=found.take("b_dec"),
            thresholds=found.take("thresholds") if "thresholds" in found.mapped else None,
        )
    except SaeError as error:
        raise SaeError(f"{folder / WEIGHTS}: {error}") from error


def choose(folder: Path, indices: Sequence[int]) -> Chosen:
    """Some features of an SAE, read without the others. Raises SaeError for files that hold none, and for
    features that it does not have."""
    found = _open(folder, hashed=False)
    check_indices(indices, found.description.features)
    rows = list(indices)
    decoder = found.take("decoder", rows)
    thresholds = found.take("thresholds", rows) if "thresholds" in found.mapped else None
    chosen = Chosen(
        found.description.conventions,
        tuple(indices),
        encoder=found.take("encoder", rows).T,
        b_enc=found.take("b_enc", rows),
        decoder=decoder,
        b_dec=found.take("b_dec"),
        thresholds=active_above(found.description.conventions, thresholds, decoder),
    )
    read = {"encoder": chosen.encoder, "b_enc": chosen.b_enc, "decoder": decoder, "b_dec": chosen.b_dec}
    bad = [f"{name}: has values that are not finite" for name, a in read.items() if not np.isfinite(a).all()]
    if thresholds is not None and not (thresholds >= 0).all():
        bad.append("thresholds: expected 0 or more")
    refuse(bad, f"{folder / WEIGHTS}: ")
    return chosen


@dataclass(frozen=True)
class _Files:
    """An SAE's files, checked. mapped: tensors by name, as they lie on disk, bfloat16 as its bits."""

    description: Description
    mapped: dict[str, np.ndarray]

    def take(self, name: str, rows: Sequence[int] | None = None) -> np.ndarray:
        """A tensor, or some of its rows, as float32."""
        stored = self.mapped[name] if rows is None else self.mapped[name][list(rows)]
        if stored.dtype.kind == "u":  # bfloat16 is the upper half of a float32
            return (stored.astype("<u4") << 16).view("<f4").astype(np.float32, copy=False)
        return np.array(stored, dtype=np.float32)


def _open(folder: Path, hashed: bool = True) -> _Files:
    conventions = _conventions(folder / DESCRIPTION)
    path = folder / WEIGHTS
    shapes, mapped = _mapped(path, conventions)
    refuse(list(shape_problems(shapes, conventions)), f"{path}: ")
    features, width = shapes["decoder"]
    fingerprint = _fingerprint(folder) if hashed else ""
    return _Files(Description(fingerprint, features, width, conventions), mapped)


def _conventions(path: Path) -> Conventions:
    try:
        document: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SaeError(f"{path} cannot be read: {error}") from error
    if not isinstance(document, dict):
        raise SaeError(f"{path}: expected a mapping, got {type(document).__name__}")
    if document.get("format") != FORMAT:
        raise SaeError(f"{path}: format: expected '{FORMAT}', got {document.get('format')!r}")
    missing = [key for key in _KEYS if key not in document]
    unknown = [f"{key}: not a key of this file{near(key, missing)}" for key in document if key not in _KEYS]
    absent = [f"{key}: missing, and nothing stands in for it" for key in missing]
    if absent or unknown:
        raise SaeError(f"{path}: " + "; ".join([*absent, *unknown]))
    try:
        return Conventions(**{key: value for key, value in document.items() if key != "format"})
    except SaeError as error:
        raise SaeError(f"{path}: {error}") from error


def _mapped(path: Path, conventions: Conventions) -> tuple[dict[str, tuple[int, ...]], dict[str, np.ndarray]]:
    """Shapes and memory-mapped contents of the tensors of a safetensors file."""
    try:
        with safe_open(path, framework="numpy") as file:  # refuses a header that does not fit the file
            kinds = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
        with path.open("rb") as raw:
            size = int.from_bytes(raw.read(8), "little")
            header = json.loads(raw.read(size))
    except (OSError, SafetensorError) as error:
        raise SaeError(f"{path} cannot be read: {error}") from error
    wrong = [
        f"{name}: expected {conventions.dtype} (by {DESCRIPTION}), got {kind}"
        for name, kind in sorted(kinds.items())
        if kind not in _KINDS or _KINDS[kind][0] != conventions.dtype
    ]
    refuse(wrong, f"{path}: ")
    shapes = {name: tuple(header[name]["shape"]) for name in kinds}
    mapped = {
        name: np.memmap(
            path, _KINDS[kind][1], "r", offset=8 + size + header[name]["data_offsets"][0], shape=shapes[name]
        )
        for name, kind in kinds.items()
        if 0 not in shapes[name]
    }
    return shapes, {name: np.asarray(array) for name, array in mapped.items()}


def _fingerprint(folder: Path) -> str:
    digest = hashlib.sha256()
    for name in (DESCRIPTION, WEIGHTS):
        digest.update(name.encode() + b"\0" + of_file(folder / name))
    return digest.hexdigest()[:16]


def _narrowed(name: str, array: np.ndarray, dtype: str) -> np.ndarray:
    """The array in its stored dtype, rounded to nearest; bfloat16 as its bits."""
    if dtype == "float32":
        return array
    if dtype == "float16":
        with np.errstate(over="ignore"):  # told below
            narrow: np.ndarray = array.astype(np.float16)
        fits = bool(np.isfinite(narrow).all())
    else:
        bits = np.ascontiguousarray(array, dtype=np.float32).view(np.uint32)
        rounded = bits + 0x7FFF + ((bits >> 16) & 1)  # half to even
        narrow = (rounded >> 16).astype(np.uint16)
        fits = not bool(((narrow & 0x7F80) == 0x7F80).any())
    if not fits:
        raise SaeError(f"{name}: has values that are too large for {dtype}")
    return narrow


def _save_bfloat16(bits: dict[str, np.ndarray], path: Path) -> None:
    """safetensors' numpy interface has no bfloat16: its plain layout, an aligned header and the contents."""
    header: dict[str, object] = {}
    end = 0
    for name, array in bits.items():
        start, end = end, end + array.nbytes
        header[name] = {"dtype": "BF16", "shape": list(array.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in bits.values():
            file.write(np.ascontiguousarray(array, dtype="<u2").tobytes())
