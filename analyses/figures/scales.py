"""How an axis and a readout are named on a figure, and where the values of an axis stand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from analyses.figures.subject import Shown, Subject, is_number
from analyses.tables.cells import axis_key
from analyses.wording import listed

MINUS = "\N{MINUS SIGN}"
LAYER_AXES = ("layers", "layer", "from_layer")
_AXIS_WORDS = {
    "layers": "layer written",
    "layer": "layer",
    "from_layer": "layer read",
    "positions": "position written",
    "from_positions": "position read",
    "position": "position",
    "heads": "head",
}
_UNITS = {
    "raw": "raw",
    "resid_norm": "times resid_norm",
    "direction_norm": "times direction_norm",
}
# Of a readout's kind: what one number of it is, with its unit.
_KINDS = {
    "log_odds": "log-odds, nats",
    "kl": "KL from the unpatched model, nats",
    "next_token": "probability",
    "rank": "tokens ranked above",
    "cross_entropy": "nats a token",
    "logprob": "log-probability, nats",
    "degenerate": "share of repeated trigrams",
    "onset": "layer",
}
_SHARES = ("contains", "holds", "accuracy")
_PARTS = {
    "rank": "tokens ranked above",
    "prob": "probability",
    "run": "longest run, words",
    "tokens": "log-probability, nats",
}


@dataclass(frozen=True)
class Scale:
    """An axis of a grid on a figure. keys: of its values; places: where they stand; ticks: what stands there.
    numeric: places are the values, so that distances mean something; layer: whole numbers that are layers."""

    name: str
    label: str
    keys: tuple[str, ...]
    places: tuple[float, ...]
    ticks: tuple[str, ...]
    numeric: bool
    layer: bool

    def place(self, value: object) -> float | None:
        """Where a value stands; None where the axis does not have it."""
        key = axis_key(value)
        return self.places[self.keys.index(key)] if key in self.keys else None


def scale_of(subject: Subject, word: str) -> Scale:
    """The scale of an axis over all that a figure shows. A list of layers around each layer (a window) stands
    at that layer; other lists and words stand one after the other, as given."""
    values = subject.values(word)
    part = word.rpartition(".")[2]
    words, name = _AXIS_WORDS.get(part, word), word
    keys = tuple(axis_key(value) for value in values)
    layer = part in LAYER_AXES
    if all(is_number(value) for value in values):
        places = tuple(float(value) for value in values)
        return Scale(
            name,
            _label(words, word),
            keys,
            places,
            tuple(f"{v:g}".replace("-", MINUS) for v in values),
            True,
            layer,
        )
    if layer and _windows(values, subject.layers):
        places = tuple(float(place) for place in range(len(values)))
        ticks = tuple(str(place) for place in range(len(values)))
        return Scale(name, _label(f"centre of the window, {words}", word), keys, places, ticks, True, True)
    ticks = tuple(_tick(value) for value in values)
    places = tuple(float(place) for place in range(len(values)))
    return Scale(name, _label(words, word), keys, places, ticks, False, False)


def readout_label(subject: Subject, less: str = "") -> str:
    """The mean of a readout with its unit: "refusal (log-odds, nats)". less: what it is taken from."""
    column = subject.readout
    unit = readout_unit(subject, column)
    taken = f", less {less}" if less else ""
    return f"{column}{taken} ({unit})" if unit else f"{column}{taken}"


def readout_unit(subject: Subject, column: str) -> str:
    """The unit of a column; empty where it is a plain number."""
    readout = _readout(subject, column)
    kind, part = str(readout.get("kind", "")), column.partition(".")[2]
    if part in _PARTS:
        return _PARTS[part]
    if is_share(subject):
        return "share of trials"
    return _KINDS.get(kind, "")


def is_share(subject: Subject) -> bool:
    """Whether the readout is 0 or 1 in every trial."""
    kind = str(_readout(subject, subject.readout).get("kind", ""))
    if kind in _SHARES:
        return True
    if subject.readout not in subject.run.trials.columns or kind in _KINDS:
        return False
    values = subject.run.trials[subject.readout].dropna()
    return bool(len(values)) and bool(values.map(lambda value: is_number(value) and value in (0, 1)).all())


def is_rank(subject: Subject) -> bool:
    return readout_unit(subject, subject.readout) == _PARTS["rank"]


def alpha_units(subject: Subject, shown: Shown, word: str) -> str:
    """The unit that a grid's alpha is counted in, in words; empty where the axis is no alpha."""
    axis = subject.axis(word, shown)
    if axis is None or axis.rpartition(".")[2] != "alpha":
        return ""
    write = axis.rpartition(".")[0]
    body = subject.conditions[next(iter(shown.cells))]
    # A list of sites makes a write for each, named after the one that was given.
    units = {
        str(each.get("unit", "raw"))
        for name, each in (body.get("writes") or {}).items()
        if name == write or name.startswith(f"{write}_")
    }
    return listed([_UNITS.get(unit, unit) for unit in sorted(units)])


def layers_read(subject: Subject) -> list[int]:
    """The layers that a list readout is of, entry by entry; empty where it has none."""
    return [int(layer) for layer in _readout(subject, subject.readout).get("layers") or ()]


def onset_of(subject: Subject) -> str | None:
    """The readout that says at which layer the list that is shown first falls below a rank."""
    base = subject.readout.partition(".")[0]
    for name, readout in (subject.run.manifest.get("readout") or {}).items():
        if readout.get("kind") == "onset" and str(readout.get("of", "")).partition(".")[0] == base:
            return str(name)
    return None


def _readout(subject: Subject, column: str) -> Mapping[str, Any]:
    readouts: Mapping[str, Mapping[str, Any]] = subject.run.manifest.get("readout") or {}
    bare = column.partition("[")[0]
    return next((r for r in readouts.values() if bare in r["columns"]), readouts.get(bare, {}))


def _label(words: str, axis: str) -> str:
    return words if words == axis else f"{words} ({axis})"


def _windows(values: Sequence[Any], layers: int | None) -> bool:
    lists = all(isinstance(value, list | tuple) for value in values)
    return lists and len(values) == layers and all(place in each for place, each in enumerate(values))


def _tick(value: object) -> str:
    if not isinstance(value, list | tuple):
        return str(value)
    if len(value) > 1 and list(value) == list(range(value[0], value[-1] + 1)):
        return f"{value[0]}-{value[-1]}"
    return ", ".join(map(str, value))
