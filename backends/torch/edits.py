"""From planned writes to touches: the index and value tensors that the hooks apply."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from backends.rowplan import Pairs, RowPlan, WritePlan, noise_stream
from backends.rows import Sampling, SourceRun
from backends.torch.effects import DRAWS, draws_of, effect_of, site_width, vector_of
from backends.torch.hooks import Spot
from backends.torch.loading import Loaded
from backends.torch.sampling import keys_at, normal, split_stream, token_hash
from backends.torch.sources import Sources
from backends.torch.touches import Effect, Ledger, Tally, Touch
from backends.writes import Write

Phase = Literal["prefill", "decode"]
Tallies = dict[tuple[Phase, Write], Tally]
RecordingKey = tuple[SourceRun, int, Sampling]  # a donor's run, and the stream and sampling of the row


@dataclass(frozen=True)
class Recording:
    """A donor's own generation. sites: site and layer -> [tokens, width]; margin: the smallest between its
    best two candidates, at whose near-ties a row in lockstep may differ too."""

    sites: Mapping[Spot, torch.Tensor]
    margin: float


Recorded = Mapping[RecordingKey, Recording]


def recording_key(plan: RowPlan, item: WritePlan) -> RecordingKey | None:
    """The generation that a write of a row is in lockstep with; None for every other write."""
    if item.write.hold != "lockstep" or item.source is None:
        return None
    return item.source, plan.row.stream, plan.row.sampling


@dataclass(frozen=True)
class Prompted:
    """One write of one row, at some prompt positions of the coming forward. row: index in the batch; slot:
    its row in the tally; pad: padding in front of the row (minus the position of the forward's first
    token)."""

    plan: RowPlan
    item: WritePlan
    pairs: Pairs
    row: int
    slot: int
    pad: int


@dataclass(frozen=True)
class _Gather:
    """Rows of distinct source runs, side by side, and which of them each pair takes."""

    runs: tuple[SourceRun, ...]
    index: torch.Tensor

    @staticmethod
    def of(entries: Sequence[Prompted]) -> _Gather:
        runs = tuple(dict.fromkeys(e.item.source for e in entries if e.item.source is not None))
        starts = np.cumsum([0, *(len(run.ids) for run in runs)])
        first = {run: int(start) for run, start in zip(runs, starts, strict=False)}
        chosen = [
            e.pairs.source + first[e.item.source]
            for e in entries
            if e.item.source is not None and e.pairs.source is not None
        ]
        return _Gather(runs, torch.from_numpy(np.concatenate(chosen)))

    def at(self, sources: Sources, spot: Spot, device: torch.device) -> torch.Tensor:
        """[n, width] at a spot."""
        found = torch.cat([sources.get(run).sites[spot] for run in self.runs])
        return found[self.index.to(found.device)].to(device)


def prompt_touches(
    loaded: Loaded,
    sources: Sources,
    entries: Sequence[Prompted],
    tallies: Tallies,
    rows: int,
    phase: Phase = "prefill",
) -> dict[Spot, list[Touch]]:
    """Touches for one forward at given positions of its rows. `rows` is the height of new tallies."""
    grouped: dict[Write, list[Prompted]] = {}
    for entry in entries:
        if len(entry.pairs.target) and entry.item.keys is None:
            grouped.setdefault(entry.item.write, []).append(entry)
    touches: dict[Spot, list[Touch]] = {}
    for write in sorted(grouped, key=lambda w: w.order):
        group = grouped[write]
        tally = tallies.setdefault((phase, write), Tally(len(write.layers), rows, loaded.device))
        lengths = torch.tensor([len(e.pairs.target) for e in group])
        row_index = torch.tensor([e.row for e in group]).repeat_interleave(lengths)
        slot_index = torch.tensor([e.slot for e in group]).repeat_interleave(lengths)
        positions = torch.from_numpy(np.concatenate([e.pairs.target for e in group]))
        places = positions + torch.tensor([e.pad for e in group]).repeat_interleave(lengths)
        gather = _Gather.of(group) if write.value.has_source else None
        for order, layer in enumerate(write.layers):
            device = loaded.layer_places[layer][0]
            value, noise = None, None
            if gather is not None:
                value = gather.at(sources, group[0].item.spot(layer), device)
                if write.features is not None:
                    value = sources.features(write.features, layer, device).activations(value)
            elif write.value.has_vector:
                value = vector_of(sources, write, layer, device)
            if write.value.kind in DRAWS:
                noise = _noise(group, write, layer, lengths, positions).to(device)
            touches.setdefault((write.tensor, layer), []).append(
                Touch(
                    effect_of(loaded, sources, write, layer),
                    rows=row_index.to(device),
                    positions=places.to(device),
                    slots=slot_index.to(device),
                    tally=tally,
                    layer=order,
                    value=value,
                    noise=noise,
                    rank=write.order,
                )
            )
    return touches


def _noise(
    group: Sequence[Prompted], write: Write, layer: int, lengths: torch.Tensor, positions: torch.Tensor
) -> torch.Tensor:
    high, low = split_stream([noise_stream(e.plan.row, write, layer) for e in group], torch.device("cpu"))
    if write.value.constant is not None:  # one vector, wherever it is written
        positions = torch.zeros_like(positions)
    return keys_at(high.repeat_interleave(lengths), low.repeat_interleave(lengths), positions)


def kept_places(kept: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of batch rows, when only rows `kept` (sorted indices) remain: which stay (bool [n]), and where each
    that stays is then."""
    place = torch.full((int(kept.max()) + 1,), -1, dtype=torch.int64, device=kept.device)
    place[kept] = torch.arange(len(kept), device=kept.device)
    rows = rows.to(kept.device)
    new = torch.where(rows < len(place), place[rows.clamp_max(len(place) - 1)], -1)
    stay = new >= 0
    return stay, new[stay]


@dataclass(frozen=True)
class DecodeEdit:
    """One write over all decode steps, at those of its layers that are on one device.

    layers: which of the write's they are; effects: what it does at each. rows: batch rows that it acts on;
    slots: their tally rows. table: values [layers, rows, n, width] with `counts` valid ones for each row, or
    [layers, 1, 1, width] where all rows take one vector; hold `cycle` takes value t mod n, all others value
    min(t, n - 1). high, low: streams [layers, rows] of random values; counters: hashed, two for each column
    of those matched to the row replaced, else None. first: what a row's decode index t is
    ahead of the batch's step: 1 where its last prompt token is replayed, which is a decode forward before
    those of the loop; less the step at which it entered. length: position of the row's first decode forward,
    which random values count from. wait: decode index [rows] of the first forward whose output is long
    enough for `min_positions`. guarded: whether there are steps at which a row is left alone. every: whether
    the rows are all of the batch, in their order.
    """

    write: Write
    layers: slice
    effects: tuple[Effect, ...]
    rows: torch.Tensor
    slots: torch.Tensor
    first: torch.Tensor
    tally: Tally
    table: torch.Tensor | None
    counts: torch.Tensor | None
    high: torch.Tensor | None
    low: torch.Tensor | None
    counters: torch.Tensor | None
    length: torch.Tensor
    wait: torch.Tensor
    guarded: bool
    every: bool = False

    def keep(self, kept: torch.Tensor) -> DecodeEdit | None:
        """The edit for a batch of which only rows `kept` (sorted indices) remain; None where none of its
        rows does."""
        stay, rows = kept_places(kept, self.rows)
        if not len(rows):
            return None
        stay = stay.to(self.rows.device)

        def cut(tensor: torch.Tensor | None, axis: int = 0) -> torch.Tensor | None:
            if tensor is None:
                return None
            return tensor[:, stay] if axis else tensor[stay]

        return replace(
            self,
            rows=rows.to(self.rows.device),
            slots=self.slots[stay],
            first=self.first[stay],
            table=self.table if self.counts is None else cut(self.table, 1),
            counts=cut(self.counts),
            high=cut(self.high, 1),
            low=cut(self.low, 1),
            length=self.length[stay],
            wait=self.wait[stay],
            every=_is_every(rows, len(kept)),
        )

    def entered(self, first: int, total: torch.Tensor, step: int, tally: Tally) -> DecodeEdit:
        """The edit of rows that enter another batch at a step: row i at place first + i, with the tally row
        total[i] of `tally`."""
        return replace(
            self,
            rows=self.rows + first,
            slots=total.to(self.rows.device)[self.slots],
            first=self.first - step,
            tally=tally,
            every=self.every and first == 0,
        )

    def with_rows(self, other: DecodeEdit, batch: int) -> DecodeEdit:
        """This edit and the same write's of other rows of the batch, as one."""

        def both(one: torch.Tensor | None, two: torch.Tensor | None, axis: int = 0) -> torch.Tensor | None:
            return None if one is None or two is None else torch.cat([one, two], dim=axis)

        table = self.table
        if self.counts is not None:
            assert self.table is not None and other.table is not None
            longest = max(self.table.shape[2], other.table.shape[2])
            table = torch.cat([_longer(self.table, longest), _longer(other.table, longest)], dim=1)
        rows = torch.cat([self.rows, other.rows])
        return replace(
            self,
            rows=rows,
            slots=torch.cat([self.slots, other.slots]),
            first=torch.cat([self.first, other.first]),
            table=table,
            counts=both(self.counts, other.counts),
            high=both(self.high, other.high, 1),
            low=both(self.low, other.low, 1),
            length=torch.cat([self.length, other.length]),
            wait=torch.cat([self.wait, other.wait]),
            guarded=self.guarded or other.guarded,
            every=_is_every(rows, batch),
        )

    def values(self, t: torch.Tensor) -> torch.Tensor | None:
        """[layers, rows or 1, width] at decode indices t [rows]; None where there is no value."""
        if self.table is None or self.table.shape[2] == 1:
            return None if self.table is None else self.table[:, :, 0]
        assert self.counts is not None
        layers, rows, longest, width = self.table.shape
        at = t % self.counts if self.write.hold == "cycle" else torch.minimum(t, self.counts - 1)
        start = torch.arange(0, rows * longest, longest, device=at.device)
        flat = self.table.view(layers, rows * longest, width)
        return flat.index_select(1, start + at.clamp_min(0))

    def noise(self, t: torch.Tensor) -> torch.Tensor | None:
        """Row keys [layers, rows] at decode indices t [rows], or what is drawn with them, of all layers at
        once [layers, rows, width]; None where nothing is drawn."""
        if self.high is None or self.low is None:
            return None
        at = self.length + t
        if self.write.value.constant is not None:  # one vector, whenever it is written
            at = torch.zeros_like(at)
        keys = keys_at(self.high, self.low, at)
        if self.counters is None:
            return keys
        width = len(self.counters) // 2
        return normal(keys.flatten(), width, self.counters).view(*keys.shape, width)

    def touches(
        self, step: int | torch.Tensor, weight: torch.Tensor, place: int = 0, alone: bool = True
    ) -> list[tuple[Spot, Touch]]:
        """The touches of decode forward `step` (counted over the batch), by layer.

        weight: [batch rows], 1 where the row still runs. place: index of the new token within the forward;
        alone: whether it is the only one.
        """
        t = self.first + step
        ones = weight.to(self.rows.device)
        ones = ones if self.every else ones[self.rows]
        acts = None
        if self.guarded or (isinstance(step, int) and step < 0):
            acts = t >= self.wait  # until then rows are left alone
            if self.write.hold == "lockstep" and self.counts is not None:
                acts &= t < self.counts  # the donor has no t-th token of its own any more
            ones = ones * acts
        values, noise = self.values(t), self.noise(t)
        ledger = Ledger(self.tally, self.layers, self.slots, ones) if alone else None
        positions = torch.full_like(self.rows, place)
        return [
            (
                (self.write.tensor, self.write.layers[order]),
                Touch(
                    effect,
                    self.rows,
                    positions,
                    self.slots,
                    self.tally,
                    order,
                    None if values is None else values[index],
                    None if noise is None else noise[index],
                    ones,
                    self.write.order,
                    acts,
                    ledger,
                    single=alone,
                    every=alone and self.every,
                ),
            )
            for index, (order, effect) in enumerate(
                zip(range(self.layers.start, self.layers.stop), self.effects, strict=True)
            )
        ]


def _is_every(rows: torch.Tensor, batch: int) -> bool:
    return len(rows) == batch and bool((rows == torch.arange(batch, device=rows.device)).all())


def _longer(table: torch.Tensor, count: int) -> torch.Tensor:
    """A table [layers, rows, n, width] with `count` values a row, the last of them not valid."""
    more = count - table.shape[2]
    return table if not more else torch.nn.functional.pad(table, (0, 0, 0, more))


Acting = Sequence[tuple[int, RowPlan, WritePlan]]  # batch row, its plan, the write in it


def acting_in_decode(plans: Sequence[RowPlan]) -> dict[Write, list[tuple[int, RowPlan, WritePlan]]]:
    """Decode writes, in their order, with the rows that they act on. A cached decode outputs one position, so
    that a write with `min_positions` above 1 never acts there, and its receipt says so."""
    grouped: dict[Write, list[tuple[int, RowPlan, WritePlan]]] = {}
    for index, plan in enumerate(plans):
        for item in plan.writes:
            write = item.write
            acts = write.during != "prefill" and write.hold != "sliding"
            if acts and (write.min_positions <= 1 or plan.row.recompute):
                grouped.setdefault(write, []).append((index, plan, item))
    return dict(sorted(grouped.items(), key=lambda entry: entry[0].order))


def decode_edits(
    loaded: Loaded, sources: Sources, plans: Sequence[RowPlan], tallies: Tallies, recorded: Recorded
) -> list[DecodeEdit]:
    """Edits of all decode forwards of a batch, in the order of their writes."""
    edits = []
    for write, group in acting_in_decode(plans).items():
        if write.site == "attention_edge":
            continue
        tally = tallies.setdefault(("decode", write), Tally(len(write.layers), len(plans), loaded.device))
        waits = waiting(group)
        for layers in _on_devices(loaded, write):
            here = write.layers[layers]
            device = loaded.layer_places[here[0]][0]
            acting = torch.tensor([i for i, _, _ in group], device=device)
            table, counts, high, low, counters = None, None, None, None, None
            if write.value.kind in DRAWS:
                streams = [noise_stream(p.row, write, layer) for layer in here for _, p, _ in group]
                high, low = (part.view(len(here), -1) for part in split_stream(streams, device))
                if draws_of(write.value) == "matched":
                    counters = token_hash(2 * site_width(loaded, write.tensor), device)
            if write.value.has_source:
                table, counts = _tables(sources, recorded, group, here, device)
                if table.shape[2] == 0:
                    continue  # no donor has a token of its own: the write never acts, and its receipt says so
            elif write.value.has_vector:
                table = torch.stack([vector_of(sources, write, layer, device) for layer in here])[:, None]
            edits.append(
                DecodeEdit(
                    write,
                    layers,
                    tuple(effect_of(loaded, sources, write, layer) for layer in here),
                    rows=acting,
                    slots=acting.clone(),
                    first=torch.tensor([int(p.row.replay_last_token) for _, p, _ in group], device=device),
                    tally=tally,
                    table=table,
                    counts=counts,
                    high=high,
                    low=low,
                    counters=counters,
                    length=torch.tensor(
                        [p.slots + (not p.row.replay_last_token) for _, p, _ in group], device=device
                    ),
                    wait=torch.tensor(waits, device=device),
                    guarded=write.hold == "lockstep" or max(waits) > 0,
                    every=len(group) == len(plans),
                )
            )
    return edits


def _on_devices(loaded: Loaded, write: Write) -> list[slice]:
    """A write's layers in runs that lie on one device each."""
    places = [loaded.layer_places[layer][0] for layer in write.layers]
    starts = [at for at in range(len(places)) if at == 0 or places[at] != places[at - 1]]
    return [slice(start, stop) for start, stop in zip(starts, [*starts[1:], len(places)], strict=True)]


def joined_edits(
    running: Sequence[DecodeEdit], entering: Sequence[DecodeEdit], batch: int
) -> list[DecodeEdit]:
    """The edits of a batch of `batch` rows that some rows have entered: one a write, as before."""
    found = {(edit.write, edit.layers.start): edit for edit in running}
    for edit in entering:
        key = (edit.write, edit.layers.start)
        found[key] = found[key].with_rows(edit, batch) if key in found else edit
    return sorted(found.values(), key=lambda edit: edit.write.order)


def waiting(group: Acting) -> list[int]:
    """Per row, the decode index of the first forward whose output is long enough for `min_positions`."""
    return [
        max(0, item.write.min_positions - len(plan.row.ids) - 1) if plan.row.recompute else 0
        for _, plan, item in group
    ]


def _tables(
    sources: Sources, recorded: Recorded, group: Acting, layers: Sequence[int], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """What each row of a decode write draws from, by its `hold`: [layers, rows, n, width] padded (of an SAE,
    feature activations), and how many of the n each has [rows]."""
    write = group[0][2].write
    held: dict[object, list[torch.Tensor]] = {}  # the rows of each distinct run, at each layer
    taken: list[tuple[object, np.ndarray]] = []
    for _, plan, item in group:
        assert item.source is not None and item.window is not None
        key: object = recording_key(plan, item)
        sites = recorded[key].sites if isinstance(key, tuple) else sources.get(item.source).sites
        run = key if isinstance(key, tuple) else item.source
        if run not in held:
            held[run] = [sites[item.spot(layer)] for layer in layers]
        own = np.arange(len(held[run][0])) if isinstance(key, tuple) else item.window
        taken.append((run, own[-1:] if write.hold == "last" else own))
    starts = np.cumsum([0, *(len(rows[0]) for rows in held.values())])
    first = dict(zip(held, starts.tolist(), strict=False))
    counts = np.array([len(window) for _, window in taken])
    index = np.zeros((len(taken), int(counts.max())), dtype=np.int64)
    inside = np.arange(index.shape[1])[None] < counts[:, None]
    index[inside] = np.concatenate([window + first[run] for run, window in taken])
    places = torch.from_numpy(index).to(device)
    tables = []
    for order, layer in enumerate(layers):
        flat = torch.cat([rows[order] for rows in held.values()]).to(device)
        if write.features is not None:
            flat = sources.features(write.features, layer, device).activations(flat)
        tables.append(flat[places])
    table = torch.stack(tables)
    count = torch.from_numpy(counts).to(device)
    if write.hold != "mean":
        return table, count
    real = torch.from_numpy(inside).to(device)[..., None]
    mean = torch.where(real, table.float(), 0).sum(dim=2, keepdim=True) / count[:, None, None]
    return mean.to(table.dtype), torch.ones_like(count)


def decode_touches(
    edits: Sequence[DecodeEdit],
    step: int | torch.Tensor,
    weight: torch.Tensor,
    place: int = 0,
    alone: bool | None = None,
) -> dict[Spot, list[Touch]]:
    """All edits as touches of one decode forward, by site and layer. step: of the batch, on the device where
    rows may be left alone at any; place: where the new token is in the forward; alone: whether it is the only
    one there, as at place 0 it is."""
    touches: dict[Spot, list[Touch]] = {}
    for edit in edits:
        for spot, touch in edit.touches(step, weight, place, place == 0 if alone is None else alone):
            touches.setdefault(spot, []).append(touch)
    return touches
