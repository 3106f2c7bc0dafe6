"""Which layers of a model a `layers` word means."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from runner.config.errors import suggestion

LayerWord = int | str
_INDEX = re.compile(r"-?\d+")


class LayerError(ValueError):
    """A `layers` word that is not of the vocabulary or names a layer that does not exist."""


def rescale(index: int, depth: int, reference: int) -> int:
    """Layer `index` of `reference` layers on a model of `depth` layers: round(i (L-1) / (R-1)), halves up.

    First and last layer map to first and last; with equal depths every layer maps to itself.
    """
    if reference == 1:
        return 0
    return (2 * index * (depth - 1) + (reference - 1)) // (2 * (reference - 1))


def resolve_layers(
    word: LayerWord | Sequence[LayerWord], depth: int, reference: int | None, landmarks: Mapping[str, int]
) -> tuple[int, ...]:
    """Absolute layers, ascending and without repeats.

    Reads an index, a list, a range `5-8` (both ends included), `all`, a depth `84%` (round(0.84 L), at most
    the last layer) or a landmark of the model. Indices and ranges are read on the scale of `reference` layers
    where that is given. Raises LayerError for anything else and for layers that do not exist.
    """
    if isinstance(word, (list, tuple)):
        if not word:
            raise LayerError("expected at least one layer, got an empty list")
        found = {layer for part in word for layer in resolve_layers(part, depth, reference, landmarks)}
        return tuple(sorted(found))
    if isinstance(word, int):
        return (_absolute(word, depth, reference),)
    assert isinstance(word, str)
    if word == "all":
        return tuple(range(depth))
    if word in landmarks:
        return (landmarks[word],)
    if re.fullmatch(r"\d+(\.\d+)?%", word):
        percent = float(word[:-1])
        if percent > 100:
            raise LayerError(f"expected a depth of at most 100%, got {word}")
        return (min(depth - 1, int(percent / 100 * depth + 0.5)),)
    span = re.fullmatch(r"(\d+)-(\d+)", word)
    if span:
        low, high = int(span[1]), int(span[2])
        if low > high:
            raise LayerError(f"expected a range from low to high, got {word}")
        ends = {
            _absolute(index, depth, reference) for index in (low, high)
        }  # refuses a far end before walking to it
        return tuple(sorted(ends | {_absolute(index, depth, reference) for index in range(low, high + 1)}))
    raise LayerError(
        "expected a layer index, a list, a range such as 5-8, 'all', a depth such as 84%, or a landmark "
        f"of the model ({', '.join(landmarks) or 'it has none'}), got '{word}'"
        f"{suggestion(word, [*landmarks, 'all'])}"
    )


def resolve_layer(word: str, depth: int, reference: int | None, landmarks: Mapping[str, int]) -> int:
    """The one layer that an index, a depth or a landmark means, as `resolve_layers` reads it.

    Raises LayerError for anything else.
    """
    found = resolve_layers(int(word) if _INDEX.fullmatch(word) else word, depth, reference, landmarks)
    if len(found) != 1 or not (_INDEX.fullmatch(word) or word in landmarks or word.endswith("%")):
        raise LayerError(
            f"expected one layer: an index, a depth such as 84% or a landmark of the model, got '{word}'"
        )
    return found[0]


def layer_notes(
    word: LayerWord | Sequence[LayerWord], depth: int, reference: int | None
) -> tuple[tuple[int, int], ...]:
    """(index as written, absolute layer) of each integer that a reference scale moves."""
    if reference is None or reference == depth:
        return ()
    if isinstance(word, (list, tuple)):
        return tuple(pair for part in word for pair in layer_notes(part, depth, reference))
    if isinstance(word, int):
        return ((word, rescale(word, depth, reference)),)
    assert isinstance(word, str)
    span = re.fullmatch(r"(\d+)-(\d+)", word)
    if not span:
        return ()
    return tuple((index, rescale(index, depth, reference)) for index in range(int(span[1]), int(span[2]) + 1))


def _absolute(index: int, depth: int, reference: int | None) -> int:
    scale = depth if reference is None else reference
    if not 0 <= index < scale:
        of = f"the model has {depth} layers" if reference is None else f"reference_depth is {reference}"
        hint = "; count from the first layer, as depth or by a landmark" if index < 0 else ""
        raise LayerError(f"expected a layer from 0 to {scale - 1} ({of}), got {index}{hint}")
    return index if reference is None else rescale(index, depth, reference)
