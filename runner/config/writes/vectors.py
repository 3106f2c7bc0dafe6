"""Vectors in files, as `value: file:PATH` names them: read and checked before any model library is loaded."""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from backends.writes import Constant, Write
from runner.config.errors import listed

SUFFIXES = (".npy", ".safetensors")
_FLOATS = {"F64": np.float64, "F32": np.float32, "F16": np.float16}  # safetensors' names; BF16 is apart


class VectorError(ValueError):
    """A file that holds no vector that could be written."""


class NoVector(ValueError):
    """A vector that an artefact does not have for an item."""


@dataclass(frozen=True, kw_only=True)
class Undefined(Constant):
    """A vector that is zero or not finite, so that it is no direction. It never reaches a backend: a cell of
    a grid that names it has invalid trials, with `reason`, and the other cells go on."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class Extracted(Constant):
    """A vector of an artefact. fingerprint, model: of the model that it was extracted from, which must be the
    one that it is written into."""

    fingerprint: str = field(compare=False)
    model: str = field(compare=False)


def foreign_in(writes: Sequence[Write], fingerprint: str, name: str) -> str | None:
    """Why a write cannot take place in the loaded model: its vector is another one's; None where it can."""
    for write in writes:
        reason = foreign(write.value.constant, fingerprint, name)
        if reason is not None:
            return f"'{write.name}': {reason}"
    return None


def foreign(constant: Constant | None, fingerprint: str, name: str) -> str | None:
    """Why a vector means nothing in the loaded model: it is another one's; None where it does."""
    members = [one for _, one in constant.groups] if isinstance(constant, GroupedConstant) else [constant]
    for one in members:
        if isinstance(one, Extracted) and one.fingerprint != fingerprint:
            return (
                f"{one.name} was extracted from {one.model} (weights {one.fingerprint[:12]}), and this is "
                f"{name} (weights {fingerprint[:12]}); extract it anew"
            )
    return None


def defined(constant: Constant) -> Constant:
    """The vector itself. Raises NoVector where it is no direction."""
    if isinstance(constant, Undefined):
        raise NoVector(constant.reason)
    return constant


def undefined_in(writes: Sequence[Write]) -> str | None:
    """Why a write has no direction in any item; None where each has one."""
    for write in writes:
        if isinstance(write.value.constant, Undefined):
            return write.value.constant.reason
    return None


@dataclass(frozen=True, kw_only=True)
class GroupedConstant(Constant):
    """A vector for each group of items. It never reaches a backend: the plan puts that of the item's group in
    its place, which alone enters the item's keys. digest: of all of them; array: the first one, for what is
    said of shapes."""

    groups: tuple[tuple[str, Constant], ...]

    def of(self, group: str) -> Constant:
        """The vector of a group. Raises NoVector where there is none."""
        for name, constant in self.groups:
            if name in (group, ""):  # "": the stand-in for all groups, before any is extracted
                return defined(constant)
        known = listed(name for name, _ in self.groups)
        raise NoVector(f"expected a vector for the group '{group}', found those of {known} in {self.name}")


def for_group(writes: Sequence[Write], group: str) -> tuple[Write, ...]:
    """Writes with the vector of one group in place of those that differ by group, also in the conditions that
    their sources are captured under. Raises NoVector where one has none for the group."""
    return tuple(_of_group(write, group) for write in writes)


def _of_group(write: Write, group: str) -> Write:
    value = write.value
    if isinstance(value.constant, GroupedConstant):
        value = replace(value, constant=value.constant.of(group))
    elif value.constant is not None:
        defined(value.constant)
    if value.under is not None:
        under = for_group(value.under.writes, group)
        if under != value.under.writes:
            value = replace(value, under=replace(value.under, writes=under))
    return write if value is write.value else replace(write, value=value)


def constant_of(path: str, shapes: Sequence[tuple[int | None, ...]]) -> Constant:
    """The vectors of a file as float32, named by their content: SHA-256 over shape and little-endian bytes.

    path: a .npy file, or a .safetensors file with one tensor, of floating point numbers; absolute, under
    `~`, or relative to the folder where the command runs. shapes: those that will do, None for any length.
    Raises VectorError with what is there instead.
    """
    array = _floats(Path(os.path.expanduser(path)))
    if not any(_fits(array.shape, shape) for shape in shapes):
        expected = " or ".join(_shown(shape) for shape in shapes)
        raise VectorError(f"expected numbers of shape {expected}, got {_shown(array.shape)} in '{path}'")
    with np.errstate(over="ignore"):  # told below
        content = np.ascontiguousarray(array, dtype="<f4")
    bad = int(np.count_nonzero(~np.isfinite(content)))
    if bad:
        raise VectorError(f"expected finite numbers (in float32), got {bad} in '{path}' that are not")
    digest = hashlib.sha256(f"{content.shape}\n".encode() + content.tobytes()).hexdigest()
    return Constant(digest, content.astype(np.float32, copy=False), path)


def _floats(path: Path) -> np.ndarray:
    if path.suffix not in SUFFIXES:
        raise VectorError(f"expected a file that ends in {' or '.join(SUFFIXES)}, got '{path}'")
    try:
        return _from_npy(path) if path.suffix == ".npy" else _from_safetensors(path)
    except FileNotFoundError:
        where = "" if path.is_absolute() else f" in {Path.cwd()}"
        raise VectorError(f"expected a file with a vector, found no '{path}'{where}") from None
    except OSError as error:
        raise VectorError(f"'{path}' cannot be read: {error.strerror or error}") from error


def _from_npy(path: Path) -> np.ndarray:
    try:
        array: Any = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise VectorError(f"'{path}' is no .npy file of numbers: {error}") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind != "f":
        what = array.dtype if isinstance(array, np.ndarray) else "several arrays"
        raise VectorError(f"expected floating point numbers in '{path}', got {what}")
    return array


def _from_safetensors(path: Path) -> np.ndarray:
    try:
        tensors = safetensors.deserialize(path.read_bytes())  # type: ignore[no-untyped-call]
    except safetensors.SafetensorError as error:
        raise VectorError(f"'{path}' is no safetensors file: {error}") from error
    if len(tensors) != 1:
        names = listed(sorted(name for name, _ in tensors))
        raise VectorError(f"expected one tensor in '{path}', got {len(tensors)}: {names}")
    _, tensor = tensors[0]
    data, kind, shape = bytes(tensor["data"]), tensor["dtype"], tuple(tensor["shape"])
    if kind == "BF16":  # the upper half of a float32
        wide = np.frombuffer(data, dtype="<u2").astype("<u4") << 16
        return wide.view("<f4").reshape(shape)
    if kind not in _FLOATS:
        raise VectorError(f"expected floating point numbers in '{path}', got {kind}")
    return np.frombuffer(data, dtype=np.dtype(_FLOATS[kind]).newbyteorder("<")).reshape(shape)


def _fits(shape: tuple[int, ...], expected: tuple[int | None, ...]) -> bool:
    return len(shape) == len(expected) and all(
        length == wanted or (wanted is None and length > 0)
        for length, wanted in zip(shape, expected, strict=True)
    )


def _shown(shape: Sequence[int | None]) -> str:
    return f"[{', '.join('any' if length is None else str(length) for length in shape)}]"
