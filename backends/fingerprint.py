"""Fingerprints of weights and tokenizers, so that a result names exactly what produced it."""

from __future__ import annotations

import hashlib
from pathlib import Path

WHOLE = 1 << 30
BLOCK = 1 << 20


def of_file(path: Path) -> bytes:
    """sha256 of a file; of its size and 64 evenly spaced blocks of 1 MiB where it is larger than 1 GiB."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        if size <= WHOLE:
            while chunk := file.read(BLOCK):
                digest.update(chunk)
        else:
            for index in range(64):
                file.seek((size - BLOCK) * index // 63)
                digest.update(file.read(BLOCK))
    return digest.digest()


def of_weights(folder: Path) -> str:
    """16 hex digits over every safetensors file and config.json of a folder."""
    names = sorted([*folder.glob("*.safetensors"), folder / "config.json"])
    return _combine(names)


def of_tokenizer(folder: Path) -> str:
    """16 hex digits over the tokenizer files of a folder."""
    kinds = ("tokenizer", "vocab", "merges", "special_tokens", "spiece", "chat_template", "added_tokens")
    return _combine(sorted(p for p in folder.iterdir() if p.is_file() and p.name.startswith(kinds)))


def _combine(paths: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.name.encode() + b"\0" + of_file(path))
    return digest.hexdigest()[:16]
