"""The axes of a grid: what each runs over, one by one or in a word, and which combinations are kept."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from runner.config.errors import as_yaml, listed, suggestion
from runner.config.layers import LayerError, resolve_layer, resolve_layers
from runner.config.writes.widths import KV_SITES, QUERY_SITES

Plain = str | int | float | bool
AxisValue = Plain | list[Plain]

LAYER_FIELDS = ("layers", "from_layer")  # fields whose axis may be a word over the model's layers
LIST_FIELDS = ("layers", "heads", "features")  # fields of a write that take a list
_RANGE = re.compile(r"\d+-\d+")
_DEPTHS = re.compile(r"(\d+(?:\.\d+)?%)-(\d+(?:\.\d+)?%)")
_WINDOWS = re.compile(r"windows:(\d+)")
_RELATION = re.compile(r"\s*([\w.-]+?)\s*(<=|>=|==|!=|<|>)\s*([\w.-]+)\s*")
_COMPARE: Mapping[str, Callable[..., bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "!=": operator.ne,
    "==": operator.eq,
}


class AxisError(ValueError):
    """An axis that runs over nothing that exists, or a relation that cannot be read."""

    def __init__(self, message: str, values: Sequence[AxisValue] = ()) -> None:
        super().__init__(message)
        self.values = list(values)  # those that are sound, so that the axis's field does not count as missing


@dataclass(frozen=True)
class Extent:
    """What a model is said to consist of, before the door has checked it: None where nothing sound is said.
    reference: the scale that integer layers are read on."""

    layers: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    landmarks: Mapping[str, int] = field(default_factory=dict)
    reference: int | None = None

    @staticmethod
    def of(model: Mapping[str, object] | None, reference: object = None) -> Extent:
        """From the `model` and `reference_depth` of a configuration as they stand there."""
        said = {} if model is None else model
        landmarks = said.get("landmarks")
        marks = landmarks.items() if isinstance(landmarks, Mapping) else ()
        return Extent(
            _count(said.get("layers")),
            _count(said.get("heads")),
            _count(said.get("kv_heads")),
            {str(name): layer for name, layer in marks if isinstance(layer, int)},
            _count(reference),
        )


def _count(number: object) -> int | None:
    return number if isinstance(number, int) and not isinstance(number, bool) and number > 0 else None


def axis_values(axis: str, given: object, sites: Sequence[str], extent: Extent) -> list[AxisValue]:
    """The values that an axis runs over, in order, from a list of them or from a word.

    axis: its dotted path. sites: those of the write that it belongs to. Words: `all` (each layer, each
    head), `2-7` and `0%-80%` (each layer from the one to the other, both included), `windows:3` (for each
    layer l the layers l-3 to l+3 that exist). Where the model's size is not known a word stands for one
    value. Raises AxisError, with what is sound of a list.
    """
    name = axis.rpartition(".")[2]
    if isinstance(given, str) and (name in LAYER_FIELDS or name == "heads"):
        if name == "heads":
            return _each_head(given, sites, extent)
        return _each_layer(given, name, extent)
    lists = name in LIST_FIELDS
    values: list[Any] = given if isinstance(given, list) else [given]
    sound: dict[str, AxisValue] = {
        str(word_of(v)): v for v in values if _plain(v) or (lists and _plain_list(v))
    }
    kept = list(sound.values())
    if not isinstance(given, list) or not all(_plain(v) or (lists and _plain_list(v)) for v in given):
        also = ", or of lists of them" if lists else ""
        words = f"; or {_known(name)}" if name in LAYER_FIELDS or name == "heads" else ""
        raise AxisError(f"expected a list of plain values{also}{words}, got {as_yaml(given)}", kept)
    if not given:
        raise AxisError("expected at least one value, got an empty list")
    if len(sound) < len(given):
        raise AxisError(f"expected values that differ, got {as_yaml(given)}", kept)
    return kept


def word_of(value: AxisValue) -> Plain:
    """The value of an axis as it stands in names and columns: a list is `1+2`."""
    return "+".join(map(str, value)) if isinstance(value, list) else value


def _known(name: str) -> str:
    if name == "heads":
        return "'all' for each head"
    windows = ", or 'windows:3' for each layer with its neighbours" if name == "layers" else ""
    return f"one value for each layer of 'all', of a range such as 2-7 or of depths such as 0%-80%{windows}"


def _each_layer(word: str, name: str, extent: Extent) -> list[AxisValue]:
    windows, depths = _WINDOWS.fullmatch(word), _DEPTHS.fullmatch(word)
    known = word == "all" or _RANGE.fullmatch(word) or depths or (windows and name == "layers")
    if not known:
        plain = word in extent.landmarks or word.removesuffix("%").isdecimal() or word.startswith("choice:")
        hint = f"; a single value is [{word}]" if plain else suggestion(word, ("all", "windows:3"))
        raise AxisError(f"expected a list of values, or {_known(name)}, got '{word}'{hint}", [word])
    if extent.reference is not None:
        raise AxisError(
            f"'{word}' runs over the model's own layers, and reference_depth: {extent.reference} has integer "
            "layers read on another scale; write the layers one by one, or leave reference_depth out",
            [0],
        )
    if extent.layers is None:
        return [[0]] if windows else [0]
    if windows:
        return _windows(int(windows[1]), extent.layers)
    try:
        if not depths:
            return list(resolve_layers(word, extent.layers, None, {}))
        low, high = (resolve_layer(end, extent.layers, None, {}) for end in depths.groups())
    except LayerError as error:
        raise AxisError(str(error), [0]) from error
    if low > high:
        raise AxisError(f"expected a range from low to high, got {word}", [0])
    return list(range(low, high + 1))


def _windows(reach: int, depth: int) -> list[AxisValue]:
    """For each layer the layers up to `reach` before and after it."""
    widest = (depth - 1) // 2
    if reach > widest:
        raise AxisError(
            f"expected windows of at most {widest} layers to each side on a model of {depth} layers, where "
            f"wider ones are the same at neighbouring layers, got {reach}",
            [[0]],
        )
    return [list(range(max(0, at - reach), min(depth, at + reach + 1))) for at in range(depth)]


def _each_head(word: str, sites: Sequence[str], extent: Extent) -> list[AxisValue]:
    if word != "all":
        hint = (
            f"; a single head is [{word}]" if re.fullmatch(r"(q|kv)\d+", word) else suggestion(word, ["all"])
        )
        raise AxisError(f"expected a list of heads, or {_known('heads')}, got '{word}'{hint}", [word])
    kinds = {"kv" if site in KV_SITES else "q" if site in QUERY_SITES else "" for site in sites}
    if len(kinds) != 1 or "" in kinds:
        message = f"expected a site that is divided into heads ({listed((*QUERY_SITES, *KV_SITES))})"
        both = ", of query heads or of key-value heads" if len(kinds) > 1 else ""
        raise AxisError(f"{message}{both} for the word 'all', got {listed(sites)}", ["q0"])
    kind = kinds.pop()
    count = extent.kv_heads if kind == "kv" else extent.heads
    return [f"{kind}{index}" for index in range(1 if count is None else count)]


@dataclass(frozen=True)
class Relation:
    """`one` compared with `other`, two axes of a grid: cells of which it does not hold are left out."""

    one: str
    sign: str
    other: str

    @staticmethod
    def read(text: object, axes: Sequence[str]) -> Relation:
        """From `patch.from_layer > patch.layers`. Raises AxisError for what is no relation of two axes."""
        found = _RELATION.fullmatch(text) if isinstance(text, str) else None
        if found is None:
            example = " > ".join(axes[:2]) if len(axes) > 1 else "patch.from_layer > patch.layers"
            signs = listed(_COMPARE)
            raise AxisError(
                f"expected a relation of two axes ({signs}) such as '{example}', got {as_yaml(text)}"
            )
        relation = Relation(found[1], found[2], found[3])
        for axis in (relation.one, relation.other):
            if axis not in axes:
                raise AxisError(
                    f"expected axes of this grid ({listed(axes)}), got '{axis}'{suggestion(axis, axes)}"
                )
        return relation

    def holds(self, values: Mapping[str, AxisValue], extent: Extent) -> bool:
        """Whether a cell is kept. Layers are compared as the layers that they mean, `layer:3` as layer 3; an
        axis without a value in the cell leaves it in, and so does a model of unknown depth.

        Raises AxisError for values that have no order.
        """
        if self.one not in values or self.other not in values or extent.layers is None:
            return True
        depth = extent.layers
        one, other = (_comparable(axis, values[axis], depth, extent) for axis in (self.one, self.other))
        if self.sign not in ("==", "!=") and not all(isinstance(each, int | float) for each in (one, other)):
            words = [as_yaml(values[axis]) for axis in (self.one, self.other)]
            raise AxisError(f"'{self.sign}' compares numbers or single layers, got {' and '.join(words)}")
        return _COMPARE[self.sign](one, other)

    def __str__(self) -> str:
        return f"{self.one} {self.sign} {self.other}"


def _comparable(axis: str, value: AxisValue, depth: int, extent: Extent) -> Plain:
    word = word_of(value)
    layer = str(word).removeprefix("layer:")
    is_layer = axis.rpartition(".")[2] in LAYER_FIELDS or layer != str(word)
    if not is_layer or isinstance(value, list):
        return word
    try:
        return resolve_layer(layer, depth, extent.reference, extent.landmarks)
    except LayerError:  # told where layers are resolved
        return int(layer) if layer.isdecimal() else word


def _plain(value: object) -> bool:
    return isinstance(value, str | int | float)


def _plain_list(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_plain, value))
