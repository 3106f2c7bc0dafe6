"""Tensors that are set aside in a temporary file."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch

from backends.torch.hooks import Spot

MOST = 8 << 30  # bytes of one file, where the disk has far more
SHARE = 4  # of the disk's free space, one part in so many
IN_MEMORY = ("tmpfs", "ramfs")  # kinds of file systems that are memory themselves


@dataclass(frozen=True)
class Part:
    """One tensor of a record: its spot, shape and dtype, and where in the record its bytes begin."""

    spot: Spot
    shape: tuple[int, ...]
    dtype: torch.dtype
    start: int


@dataclass(frozen=True, slots=True)
class Record:
    """Where a set of tensors stands in the file. parts: shared by all records of the same form."""

    offset: int
    size: int
    parts: tuple[Part, ...]


class Spill:
    """A temporary file of tensors that comes into being with the first one.

    It has no name (on Windows it is deleted when it is closed), so that the system frees it with the process,
    however that ends: nothing is left behind by a crash either. Not for several threads at once.
    """

    def __init__(self, folder: Path | None = None, most: int | None = None) -> None:
        """folder: None: the system's for temporary files, or /var/tmp where that one is in memory. most:
        bytes that it may grow to; None: 8 GiB or a quarter of what the disk has free, whichever is less."""
        self._folder = folder
        self._most = most
        self._file: BinaryIO | None = None
        self._forms: dict[tuple[Part, ...], tuple[Part, ...]] = {}
        self.bytes = 0

    def write(self, tensors: Mapping[Spot, torch.Tensor]) -> Record | None:
        """Append tensors; None where there is no room for them."""
        parts, start = [], 0
        for spot, tensor in tensors.items():
            parts.append(Part(spot, tuple(tensor.shape), tensor.dtype, start))
            start += tensor.numel() * tensor.element_size()
        try:
            file = self._opened()
            if file is None or self._most is None or self.bytes + start > self._most:
                return None
            file.seek(self.bytes)
            for tensor in tensors.values():
                file.write(tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy().data)
            file.flush()
        except OSError:  # the disk is full: what comes next begins at the same place
            self._most = self.bytes
            return None
        form = tuple(parts)
        record = Record(self.bytes, start, self._forms.setdefault(form, form))
        self.bytes += start
        return record

    def read(self, record: Record) -> dict[Spot, torch.Tensor]:
        """The tensors of a record, on the CPU, bit for bit. Raises OSError where the file cannot be read."""
        assert self._file is not None
        self._file.seek(record.offset)
        raw = bytearray(self._file.read(record.size))
        if len(raw) != record.size:
            raise OSError(f"{len(raw)} of {record.size} bytes could be read of a temporary file")
        found = {}
        for part in record.parts:
            count = 1
            for extent in part.shape:
                count *= extent
            flat = (
                torch.frombuffer(raw, dtype=part.dtype, count=count, offset=part.start)
                if count
                else torch.empty(0, dtype=part.dtype)
            )
            found[part.spot] = flat.view(part.shape).clone()
        return found

    def close(self) -> None:
        """Give the disk's space back."""
        if self._file is not None:
            self._file.close()
        self._file, self.bytes, self._most = None, 0, 0

    def _opened(self) -> BinaryIO | None:
        if self._file is None and self._most != 0:
            folder = roomy_folder() if self._folder is None else self._folder
            if folder is None:
                self._most = 0
                return None
            if self._most is None:
                self._most = min(MOST, shutil.disk_usage(folder).free // SHARE)
            # Unbuffered: what is written and read is large, and a buffer would be one more copy.
            self._file = tempfile.TemporaryFile(  # noqa: SIM115 - it is closed with the store
                dir=folder, prefix="patchbay-", buffering=0
            )
        return self._file


def roomy_folder(mounts: Path = Path("/proc/mounts")) -> Path | None:
    """A folder for temporary files that is on a disk; None where all are in memory. mounts: the system's
    table of them; where there is none, everything counts as a disk."""
    kinds: dict[Path, str] = {}
    with contextlib.suppress(OSError):
        for line in mounts.read_text().splitlines():
            _, place, kind, *_ = line.split()
            kinds[Path(place.replace("\\040", " "))] = kind
    for folder in (Path(tempfile.gettempdir()), Path("/var/tmp")):
        resolved = folder.resolve()
        mounted = next((kinds[each] for each in (resolved, *resolved.parents) if each in kinds), "")
        if mounted not in IN_MEMORY and os.access(resolved, os.W_OK):
            return resolved
    return None
