"""What the earlier stages of an experiment give to a later one: choices and artefacts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np

from backends.writes import Site

MEASURE = "measure"  # the stage that an experiment in the flat form has
Plain = str | int | float | bool
ItemId = tuple[str, str]  # ids of its donor and its target

PENDING = "pending"  # the key of an artefact that is still to be extracted


@dataclass(frozen=True)
class Chosen:
    """A choice. cells: axis -> value of what was chosen, the best first; items: those that were kept (None:
    it is no choice of items). sentence: how it was chosen. pending: it stands in for up to `most` cells that
    are still to be chosen."""

    name: str
    cells: tuple[Mapping[str, Plain], ...] = ()
    items: frozenset[ItemId] | None = None
    sentence: str = ""
    pending: bool = False
    most: int = 1

    @property
    def empty(self) -> bool:
        """Whether nothing passed, which is a result."""
        if self.pending:
            return False
        return not self.items if self.items is not None else not self.cells


@dataclass(frozen=True)
class Artefact:
    """Named activations. vectors: float32, its axes named by `dims` (group, position, layer, width; those
    that it has). groups, positions (-1 is the last), layers: the values along these axes.

    units: `activation`, or `unit` where every vector has length 1. key: hash of everything that it was made
    from; PENDING while it is a stand-in, of which only the shape is known. fingerprints: of the model and
    tokenizer that gave it.
    """

    name: str
    vectors: np.ndarray = field(compare=False, repr=False)
    dims: tuple[str, ...]
    site: Site
    layers: tuple[int, ...]
    groups: tuple[str, ...] = ()
    positions: tuple[int, ...] = ()
    units: str = "activation"
    dtype: str = ""
    model: str = ""
    model_fingerprint: str = ""
    tokenizer_fingerprint: str = ""
    sources: Mapping[str, object] = field(default_factory=dict)
    key: str = PENDING
    table: tuple[Mapping[str, Plain | None], ...] = ()

    @property
    def pending(self) -> bool:
        """Whether it is still to be extracted."""
        return self.key == PENDING

    @property
    def width(self) -> int:
        return int(self.vectors.shape[-1])


def _nothing() -> Mapping[str, Any]:
    return MappingProxyType({})


@dataclass(frozen=True)
class Known:
    """Choices and artefacts by name."""

    choices: Mapping[str, Chosen] = field(default_factory=_nothing)
    artefacts: Mapping[str, Artefact] = field(default_factory=_nothing)

    def and_choice(self, chosen: Chosen) -> Known:
        return Known({**self.choices, chosen.name: chosen}, self.artefacts)

    def and_artefact(self, artefact: Artefact) -> Known:
        return Known(self.choices, {**self.artefacts, artefact.name: artefact})


NOTHING = Known()  # what the first stage of an experiment knows
