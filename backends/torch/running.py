"""The rows of a batch that decode together: their cache and what acts on them, as rows leave and enter."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from backends.torch.begin import Begun
from backends.torch.cache import SlotCache
from backends.torch.edges import DecodeCut, joined_cuts
from backends.torch.edits import DecodeEdit, Tallies, joined_edits
from backends.torch.forward import Geometry


@dataclass
class Running:
    """Rows side by side, each at a place of the batch; the last slot of all is the same.

    pads: the slots in front of each row's first [places]; slots: position of each row's newest token; edits,
    cuts: what acts on them. positions, seen: of every slot of the cache, its position in the row and whether
    the row has it [places, capacity], kept from step to step.
    """

    cache: SlotCache
    pads: torch.Tensor
    slots: torch.Tensor
    edits: list[DecodeEdit]
    cuts: list[DecodeCut]
    positions: torch.Tensor = field(init=False)
    seen: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        self._place()

    @staticmethod
    def of(begun: Begun, total: torch.Tensor, tallies: Tallies, step: int) -> Running:
        """Rows that have begun, which make their first decode forward at a step of the loop. total: row of
        `tallies` of each."""
        return Running(begun.cache, begun.pads, begun.slots, *_entered(begun, 0, total, tallies, step))

    def here(self) -> Geometry:
        """Where the next token of each row stands, `slots` being its position: it sees its row's slots."""
        first, last = self.cache.start, self.cache.filled + 1
        return Geometry(self.slots[:, None], self.positions[:, first:last], self.seen[:, None, first:last])

    @property
    def padding(self) -> torch.Tensor:
        """The slots that are read in front of each row's first [places]."""
        return self.pads - self.cache.start

    def keep(self, kept: torch.Tensor, room: int) -> None:
        """Go on with the rows at these places (sorted indices) alone, side by side. room: slots for what they
        have still to generate."""
        self._keep(kept, room)
        self._place()

    def enter(
        self, kept: torch.Tensor, begun: Begun, room: int, total: torch.Tensor, tallies: Tallies, step: int
    ) -> None:
        """Go on with the rows at these places (sorted indices, at least one), and behind them with rows that
        have begun. room: slots for what all have still to generate; total, tallies, step: as in `of`."""
        more, length = len(begun.pads), begun.cache.filled
        self._keep(kept, room, max(0, length - (self.cache.filled - self.cache.start)), more)
        self.cache.put_rows(len(kept), begun.cache)
        self.pads = torch.cat([self.pads, begun.pads + (self.cache.filled - length)])
        self.slots = torch.cat([self.slots, begun.slots])
        edits, cuts = _entered(begun, len(kept), total, tallies, step)
        self.edits = joined_edits(self.edits, edits, len(self.pads))
        self.cuts = joined_cuts(self.cuts, cuts)
        self._place()

    def narrow(self, alive: torch.Tensor) -> None:
        """Read no slots but those that the rows still running have. alive: bool [places], at least one."""
        self.cache.read_from(int(self.pads[alive].min()))

    def make_room(self) -> None:
        """See to it that a slot is unfilled, by moving those that are read to the front."""
        if self.cache.filled == self.cache.capacity:
            self.pads = self.pads - self.cache.start
            self.cache.to_front()
            self._place()

    def _keep(self, kept: torch.Tensor, room: int, front: int = 0, more: int = 0) -> None:
        self.pads = self.pads[kept] - self.cache.start + front
        self.cache.keep_rows(kept, room, front, more)
        self.slots = self.slots[kept]
        self.edits = [edit for edit in (e.keep(kept) for e in self.edits) if edit is not None]
        self.cuts = [cut for cut in (c.keep(kept) for c in self.cuts) if cut is not None]

    def _place(self) -> None:
        slots = torch.arange(self.cache.capacity, device=self.pads.device)
        self.positions = slots[None, :] - self.pads[:, None]
        self.seen = self.positions >= 0


def _entered(
    begun: Begun, first: int, total: torch.Tensor, tallies: Tallies, step: int
) -> tuple[list[DecodeEdit], list[DecodeCut]]:
    """What acts on rows that have begun, at the places from `first` on, counted in the tallies of the whole
    call from now on."""
    edits = [edit.entered(first, total, step, tallies["decode", edit.write]) for edit in begun.edits]
    cuts = [cut.entered(first, total, step, tallies["decode", cut.write]) for cut in begun.cuts]
    return edits, cuts
