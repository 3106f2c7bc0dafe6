"""From planned writes to touches: the index and value tensors that the hooks apply."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from backends.rowplan import Pairs, RowPlan, WritePlan, noise_stream
from backends.rows import Sampling, SourceRun
from backends.torch.effects import DRAWS, effect_of, vector_of
from backends.torch.hooks import Spot
from backends.torch.loading import Loaded
from backends.torch.sampling import keys_at, split_stream
from backends.torch.sources import Sources
from backends.torch.touches import Effect, Tally, Touch
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
    """One write at one layer over all decode steps.

    rows: batch rows that it acts on; slots: their tally rows; table: [rows, n, width] of values with
    `counts` valid rows each; hold `cycle` takes row t mod n, all others row min(t, n - 1). first: 1 where
    the row's last prompt token is replayed, which is a decode forward before those of the loop. length:
    position of the row's first decode forward, which random values count from. wait: decode index [rows] of
    the first forward whose output is long enough for `min_positions`; settled: the step from which all act.
    """

    write: Write
    order: int
    effect: Effect
    rows: torch.Tensor
    slots: torch.Tensor
    first: torch.Tensor
    tally: Tally
    table: torch.Tensor | None
    counts: torch.Tensor | None
    high: torch.Tensor | None
    low: torch.Tensor | None
    length: torch.Tensor
    wait: torch.Tensor
    settled: int
    expires: int

    @property
    def spot(self) -> Spot:
        return self.write.tensor, self.write.layers[self.order]

    def keep(self, kept: torch.Tensor) -> DecodeEdit | None:
        """The edit for a batch of which only rows `kept` (sorted indices) remain; None where none of its
        rows does."""
        stay, rows = kept_places(kept, self.rows)
        stay = stay.to(self.rows.device)
        if not bool(stay.any()):
            return None

        def cut(tensor: torch.Tensor | None) -> torch.Tensor | None:
            return None if tensor is None else tensor[stay]

        return replace(
            self,
            rows=rows.to(self.rows.device),
            slots=self.slots[stay],
            first=self.first[stay],
            table=cut(self.table),
            counts=cut(self.counts),
            high=cut(self.high),
            low=cut(self.low),
            length=self.length[stay],
            wait=self.wait[stay],
        )

    def touch(self, step: int, weight: torch.Tensor, place: int = 0) -> Touch:
        """The touch of decode forward `step` (counted over the batch; rows that replay are one ahead).

        weight: [batch rows], 1 where the row still runs. place: index of the new token within the forward.
        """
        t = self.first + step
        value, noise = None, None
        if self.high is not None and self.low is not None:
            at = self.length + t
            if self.write.value.constant is not None:  # one vector, whenever it is written
                at = torch.zeros_like(at)
            noise = keys_at(self.high, self.low, at)
        if self.table is not None and self.counts is not None:
            at = t % self.counts if self.write.hold == "cycle" else torch.minimum(t, self.counts - 1)
            value = self.table[torch.arange(len(at), device=at.device), at.clamp_min(0)]
        touch = Touch(
            self.effect,
            rows=self.rows,
            positions=torch.full_like(self.rows, place),
            slots=self.slots,
            tally=self.tally,
            layer=self.order,
            value=value,
            noise=noise,
            weight=weight.to(self.rows.device)[self.rows],
            rank=self.write.order,
        )
        if step < self.settled or step >= self.expires:
            acts = t >= self.wait  # until then rows are left alone
            if self.write.hold == "lockstep" and self.counts is not None:
                acts &= t < self.counts  # the donor has no t-th token of its own any more
            return touch.where(acts)
        return touch


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
    """Edits of all decode forwards of a batch."""
    edits = []
    for write, group in acting_in_decode(plans).items():
        if write.site == "attention_edge":
            continue
        tally = tallies.setdefault(("decode", write), Tally(len(write.layers), len(plans), loaded.device))
        waits = waiting(group)
        for order, layer in enumerate(write.layers):
            device = loaded.layer_places[layer][0]
            acting = torch.tensor([i for i, _, _ in group], device=device)
            table, counts, high, low = None, None, None, None
            if write.value.kind in DRAWS:
                high, low = split_stream([noise_stream(p.row, write, layer) for _, p, _ in group], device)
            if write.value.has_source:
                table, counts = _table(sources, recorded, group, layer, device)
                if table.shape[1] == 0:
                    continue  # no donor has a token of its own: the write never acts, and its receipt says so
            elif write.value.has_vector:
                table = vector_of(sources, write, layer, device).expand(len(group), 1, -1)
                counts = torch.ones(len(group), dtype=torch.int64, device=device)
            edits.append(
                DecodeEdit(
                    write,
                    order,
                    effect_of(loaded, sources, write, layer),
                    rows=acting,
                    slots=acting.clone(),
                    first=torch.tensor([int(p.row.replay_last_token) for _, p, _ in group], device=device),
                    tally=tally,
                    table=table,
                    counts=counts,
                    high=high,
                    low=low,
                    length=torch.tensor(
                        [p.slots + (not p.row.replay_last_token) for _, p, _ in group], device=device
                    ),
                    wait=torch.tensor(waits, device=device),
                    settled=max(0, *waits),
                    expires=_expiry(write, counts, group),
                )
            )
    return edits


def waiting(group: Acting) -> list[int]:
    """Per row, the decode index of the first forward whose output is long enough for `min_positions`."""
    return [
        max(0, item.write.min_positions - len(plan.row.ids) - 1) if plan.row.recompute else 0
        for _, plan, item in group
    ]


def _expiry(write: Write, counts: torch.Tensor | None, group: Acting) -> int:
    if write.hold != "lockstep" or counts is None:
        return max(plan.row.sampling.max_new_tokens for _, plan, _ in group) + 1
    return int(counts.min()) - 1  # rows that replay are one step ahead


def _table(
    sources: Sources, recorded: Recorded, group: Acting, layer: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """What each row of a decode write draws from, by its `hold`: [rows, n, width] padded (of an SAE, feature
    activations), and how many of the n each has [rows]."""
    write = group[0][2].write
    held: dict[object, torch.Tensor] = {}  # the rows of each distinct run
    taken: list[tuple[object, np.ndarray]] = []
    for _, plan, item in group:
        assert item.source is not None and item.window is not None
        key: object = recording_key(plan, item)
        if isinstance(key, tuple):
            held[key] = recorded[key].sites[item.spot(layer)]
            taken.append((key, np.arange(len(held[key]))))
        else:
            held[item.source] = sources.get(item.source).sites[item.spot(layer)]
            taken.append((item.source, item.window[-1:] if write.hold == "last" else item.window))
    starts = np.cumsum([0, *(len(rows) for rows in held.values())])
    first = dict(zip(held, starts.tolist(), strict=False))
    counts = np.array([len(window) for _, window in taken])
    index = np.zeros((len(taken), int(counts.max())), dtype=np.int64)
    inside = np.arange(index.shape[1])[None] < counts[:, None]
    index[inside] = np.concatenate([window + first[key] for key, window in taken])
    flat = torch.cat(list(held.values())).to(device)
    if write.features is not None:
        flat = sources.features(write.features, layer, device).activations(flat)
    table = flat[torch.from_numpy(index).to(device)]
    count = torch.from_numpy(counts).to(device)
    if write.hold != "mean":
        return table, count
    real = torch.from_numpy(inside).to(device)[..., None]
    mean = torch.where(real, table.float(), 0).sum(dim=1, keepdim=True) / count[:, None, None]
    return mean.to(table.dtype), torch.ones_like(count)


def decode_touches(
    edits: Sequence[DecodeEdit], step: int, weight: torch.Tensor, place: int = 0
) -> dict[Spot, list[Touch]]:
    """All edits as touches of one decode forward, by site and layer. place: where the new token is in it."""
    touches: dict[Spot, list[Touch]] = {}
    for edit in edits:
        touches.setdefault(edit.spot, []).append(edit.touch(step, weight, place))
    return touches
