"""Cut attention edges: which keys a query no longer sees, as masks that the attention modules take."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from backends.rowplan import RowPlan
from backends.torch.edits import Prompted, Tallies, acting_in_decode, kept_places, waiting
from backends.torch.loading import Loaded
from backends.torch.touches import Tally
from backends.writes import Write

Edges = dict[int, list["Cut"]]  # layer -> cuts of one forward
MaskChange = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Cut:
    """One write's cut edges at one layer in one forward.

    queries: bool [rows, queries]; keys: bool [rows, keys or more]. heads: bool [query heads], or None for
    all. slots: tally rows. weight: [rows], 0 where a row has finished, or None.
    """

    queries: torch.Tensor
    keys: torch.Tensor
    heads: torch.Tensor | None
    slots: torch.Tensor
    tally: Tally
    layer: int
    weight: torch.Tensor | None = None

    def apply(self, allowed: torch.Tensor) -> torch.Tensor:
        """The attention mask, bool [rows, 1 or heads, queries, keys], without these edges; counts the queries
        that had one."""
        queries, keys = self.queries.to(allowed.device), self.keys.to(allowed.device)
        cut = queries[:, None, :, None] & keys[:, None, None, : allowed.shape[-1]]
        if self.heads is not None:
            cut = cut & self.heads.to(allowed.device)[None, :, None, None]
        fired = (allowed & cut).any(dim=1).any(dim=-1).float().sum(-1).to(self.tally.counts.device)
        if self.weight is not None:
            fired = fired * self.weight.to(fired.device)
        self.tally.counts[self.layer].index_add_(0, self.slots.to(fired.device), fired)
        return allowed & ~cut


def changes(edges: Mapping[int, Sequence[Cut]]) -> dict[int, MaskChange]:
    """Per layer, the one function on its attention mask."""

    def all_of(cuts: Sequence[Cut]) -> MaskChange:
        def change(allowed: torch.Tensor) -> torch.Tensor:
            for cut in cuts:
                allowed = cut.apply(allowed)
            return allowed

        return change

    return {layer: all_of(cuts) for layer, cuts in edges.items()}


def cut_layers(plans: Sequence[RowPlan]) -> set[int]:
    """Layers at which any row of a batch cuts edges."""
    return {
        layer
        for plan in plans
        for item in plan.writes
        if item.keys is not None
        for layer in item.write.layers
    }


def first_cuts(plans: Sequence[RowPlan], device: torch.device) -> torch.Tensor:
    """Index [rows] of the new token whose logits are the first that a row's cut edges act on, -1 where it has
    none."""
    return torch.tensor([_first_cut(plan) for plan in plans], device=device)


def _first_cut(plan: RowPlan) -> int:
    steps = []
    for index, item in enumerate(plan.writes):
        if item.keys is None:
            continue
        if item.prefill is not None and len(item.prefill.target):
            steps.append(0)
        if item.write.during != "prefill":
            steps.append(0 if plan.row.replay_last_token else 1 + waiting([(index, plan, item)])[0])
    cuts = any(item.keys is not None for item in plan.writes)
    return min(steps, default=0 if cuts else -1)


def prompt_cuts(
    loaded: Loaded,
    entries: Sequence[Prompted],
    tallies: Tallies,
    rows: int,
    queries: int,
    keys: int,
    shared: int = 0,
) -> Edges:
    """Cuts of one forward of `queries` tokens a row over `keys` slots.

    An entry's queries stand at its pairs' targets plus its pad. Its keys stand in the slots of a cache whose
    first `shared` slots are common to all rows and whose row is right-aligned.
    """
    grouped: dict[Write, list[Prompted]] = {}
    for entry in entries:
        if entry.item.keys is not None and len(entry.pairs.target):
            grouped.setdefault(entry.item.write, []).append(entry)
    edges: Edges = {}
    for write, group in grouped.items():
        tally = tallies.setdefault(("prefill", write), Tally(len(write.layers), rows, loaded.device))
        asking = _marked(rows, queries, [(e.row, e.pairs.target + e.pad) for e in group])
        hidden = _marked(rows, keys, [(e.row, _slots(e, keys, queries, shared)) for e in group])
        asking, hidden = asking.to(loaded.device), hidden.to(loaded.device)
        slots = torch.arange(rows, device=loaded.device)
        for order, layer in enumerate(write.layers):
            cut = Cut(asking, hidden, heads_of(loaded, write), slots, tally, order)
            edges.setdefault(layer, []).append(cut)
    return edges


def _slots(entry: Prompted, keys: int, queries: int, shared: int) -> np.ndarray:
    """Slots of an entry's keys. Its query at position p stands at p + pad of the forward, whose tokens are
    the last `queries` of the `keys` slots."""
    assert entry.item.keys is not None
    at = entry.item.keys
    moved = at + entry.pad + keys - queries
    return moved if shared == 0 else np.where(at < shared, at, moved)


def heads_of(loaded: Loaded, write: Write) -> torch.Tensor | None:
    """Bool [query heads] of the heads that a write is limited to, None for all."""
    if write.heads is None:
        return None
    mask = torch.zeros(loaded.info.heads, dtype=torch.bool, device=loaded.device)
    mask[list(write.heads.indices)] = True
    return mask


def _marked(rows: int, width: int, places: Sequence[tuple[int, np.ndarray]]) -> torch.Tensor:
    """bool [rows, width], set at the places of each row; a place outside is none."""
    marks = np.zeros((rows, width), dtype=bool)
    row = np.repeat([index for index, _ in places], [len(at) for _, at in places])
    at = np.concatenate([at for _, at in places])
    inside = (at >= 0) & (at < width)
    marks[row[inside], at[inside]] = True
    return torch.from_numpy(marks)


@dataclass(frozen=True)
class DecodeCut:
    """One write's cut edges over all decode steps: the new token's query against prompt keys.

    rows: batch rows that it acts on; slots: their tally rows; positions: the keys, bool [rows, longest
    prompt]. wait: as in DecodeEdit.
    """

    write: Write
    rows: torch.Tensor
    slots: torch.Tensor
    positions: torch.Tensor
    first: torch.Tensor
    wait: torch.Tensor
    heads: torch.Tensor | None
    tally: Tally

    def keep(self, kept: torch.Tensor) -> DecodeCut | None:
        """For a batch of which only rows `kept` remain; None where none of its rows does."""
        stay, rows = kept_places(kept, self.rows)
        if not len(rows):
            return None
        return replace(
            self,
            rows=rows,
            slots=self.slots[stay],
            positions=self.positions[stay],
            first=self.first[stay],
            wait=self.wait[stay],
        )

    def entered(self, first: int, total: torch.Tensor, step: int, tally: Tally) -> DecodeCut:
        """As `DecodeEdit.entered`."""
        return replace(
            self, rows=self.rows + first, slots=total[self.slots], first=self.first - step, tally=tally
        )

    def with_rows(self, other: DecodeCut) -> DecodeCut:
        """These cuts and the same write's of other rows of the batch, as one."""
        longest = max(self.positions.shape[1], other.positions.shape[1])
        wide = [
            torch.nn.functional.pad(marks, (0, longest - marks.shape[1]))
            for marks in (self.positions, other.positions)
        ]
        return replace(
            self,
            rows=torch.cat([self.rows, other.rows]),
            slots=torch.cat([self.slots, other.slots]),
            positions=torch.cat(wide),
            first=torch.cat([self.first, other.first]),
            wait=torch.cat([self.wait, other.wait]),
        )

    def cuts(
        self, step: int, weight: torch.Tensor, pads: torch.Tensor, keys: int, queries: int = 1
    ) -> list[tuple[int, Cut]]:
        """(layer, cut) of decode forward `step`, whose new token is the last of `queries`. weight, pads:
        [batch rows], pads being the slots in front of each prompt's first token; keys: slots then."""
        batch = len(pads)
        acts = self.first + step >= self.wait
        asking = torch.zeros(batch, queries, dtype=torch.bool, device=pads.device)
        asking[self.rows, -1] = acts
        slot = torch.arange(keys, device=pads.device)[None] - pads[self.rows][:, None]
        inside = (slot >= 0) & (slot < self.positions.shape[1])
        chosen = self.positions.gather(1, slot.clamp(0, self.positions.shape[1] - 1)) & inside
        hidden = torch.zeros(batch, keys, dtype=torch.bool, device=pads.device)
        hidden[self.rows] = chosen
        slots = torch.zeros(batch, dtype=torch.int64, device=pads.device)
        slots[self.rows] = self.slots
        return [
            (layer, Cut(asking, hidden, self.heads, slots, self.tally, order, weight))
            for order, layer in enumerate(self.write.layers)
        ]


def decode_cuts(loaded: Loaded, plans: Sequence[RowPlan], tallies: Tallies) -> list[DecodeCut]:
    """Cuts of all decode forwards of a batch."""
    found = []
    for write, group in acting_in_decode(plans).items():
        if write.site != "attention_edge":
            continue
        tally = tallies.setdefault(("decode", write), Tally(len(write.layers), len(plans), loaded.device))
        rows = torch.tensor([index for index, _, _ in group], device=loaded.device)
        longest = max(len(plan.row.ids) for _, plan, _ in group)
        keys = [(at, item.keys) for at, (_, _, item) in enumerate(group) if item.keys is not None]
        found.append(
            DecodeCut(
                write,
                rows,
                rows.clone(),
                _marked(len(group), longest, keys).to(loaded.device),
                torch.tensor([int(p.row.replay_last_token) for _, p, _ in group], device=loaded.device),
                torch.tensor(waiting(group), device=loaded.device),
                heads_of(loaded, write),
                tally,
            )
        )
    return found


def joined_cuts(running: Sequence[DecodeCut], entering: Sequence[DecodeCut]) -> list[DecodeCut]:
    """The cuts of a batch that some rows have entered: one a write, as before."""
    found = {cut.write: cut for cut in running}
    for cut in entering:
        found[cut.write] = found[cut.write].with_rows(cut) if cut.write in found else cut
    return sorted(found.values(), key=lambda cut: cut.write.order)


def decode_edges(
    cuts: Sequence[DecodeCut],
    step: int,
    weight: torch.Tensor,
    pads: torch.Tensor,
    keys: int,
    queries: int = 1,
) -> Edges:
    """All cuts of one decode forward, by layer."""
    edges: Edges = {}
    for cut in cuts:
        for layer, one in cut.cuts(step, weight, pads, keys, queries):
            edges.setdefault(layer, []).append(one)
    return edges
