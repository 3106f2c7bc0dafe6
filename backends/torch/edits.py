"""From planned writes to touches: the index and value tensors that the hooks apply."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from backends.rowplan import Pairs, RowPlan, WritePlan, noise_stream
from backends.rows import Sampling
from backends.torch.hooks import Spot, Tally, Touch
from backends.torch.loading import Loaded
from backends.torch.sampling import keys_at, split_stream
from backends.torch.sources import Sources
from backends.writes import Write

Phase = Literal["prefill", "decode"]
Tallies = dict[tuple[Phase, Write], Tally]
# What a donor's own generation recorded: (donor, stream, sampling) -> site and layer -> [tokens, width].
RecordingKey = tuple[tuple[int, ...], int, Sampling]
Recorded = Mapping[RecordingKey, Mapping[Spot, torch.Tensor]]


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


def head_width(loaded: Loaded, write: Write) -> int:
    """The width over which random values are matched: a head where the site has heads, else the whole
    width."""
    if write.site in ("q_proj", "k_proj", "v_proj", "head_z", "kv_cache"):
        return loaded.info.head_width
    return loaded.info.width


def columns(loaded: Loaded, write: Write, device: torch.device) -> torch.Tensor | None:
    """Boolean mask over a site's width of the heads that a write is limited to; None for all."""
    if write.heads is None:
        return None
    total = loaded.info.heads if write.heads.of == "query" else loaded.info.kv_heads
    mask = torch.zeros(total, dtype=torch.bool, device=device)
    mask[list(write.heads.indices)] = True
    return mask.repeat_interleave(loaded.info.head_width)


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
        if len(entry.pairs.target):
            grouped.setdefault(entry.item.write, []).append(entry)
    touches: dict[Spot, list[Touch]] = {}
    for write in sorted(grouped, key=lambda w: w.order):
        group = grouped[write]
        tally = tallies.setdefault((phase, write), Tally(len(write.layers), rows, loaded.device))
        lengths = torch.tensor([len(e.pairs.target) for e in group])
        row_index = torch.tensor([e.row for e in group]).repeat_interleave(lengths)
        slot_index = torch.tensor([e.slot for e in group]).repeat_interleave(lengths)
        places = torch.cat([torch.from_numpy(e.pairs.target) + e.pad for e in group])
        for order, layer in enumerate(write.layers):
            device = loaded.layer_places[layer][0]
            value, noise = None, None
            if write.value.kind == "random":
                noise = _noise(group, write, layer, lengths, device)
            elif write.op != "zero":
                value = torch.cat([_rows_of(sources, e, (write.site, layer)) for e in group]).to(device)
            touches.setdefault((write.site, layer), []).append(
                Touch(
                    op=write.op,
                    alpha=write.alpha,
                    rows=row_index.to(device),
                    positions=places.to(device),
                    slots=slot_index.to(device),
                    tally=tally,
                    layer=order,
                    value=value,
                    noise=noise,
                    head_width=head_width(loaded, write),
                    columns=columns(loaded, write, device),
                )
            )
    return touches


def _rows_of(sources: Sources, entry: Prompted, spot: Spot) -> torch.Tensor:
    assert entry.item.source is not None and entry.pairs.source is not None
    captured = sources.get(entry.item.source).sites[spot]
    return captured[torch.from_numpy(entry.pairs.source).to(captured.device)]


def _noise(
    group: Sequence[Prompted], write: Write, layer: int, lengths: torch.Tensor, device: torch.device
) -> torch.Tensor:
    high, low = split_stream([noise_stream(e.plan.row, write, layer) for e in group], torch.device("cpu"))
    positions = torch.cat([torch.from_numpy(e.pairs.target) for e in group])
    return keys_at(high.repeat_interleave(lengths), low.repeat_interleave(lengths), positions).to(device)


@dataclass
class DecodeEdit:
    """One write at one layer over all decode steps.

    rows: batch rows that it acts on; slots: their tally rows; table: [rows, n, width] of values with
    `counts` valid rows each; hold `cycle` takes row t mod n, all others row min(t, n - 1). first: 1 where
    the row's last prompt token is replayed, which is a decode forward before those of the loop. length:
    position that random values count from. wait: decode index [rows] of the first forward whose output is
    long enough for `min_positions`; settled: the step from which all act.
    """

    write: Write
    order: int
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
    head_width: int
    columns: torch.Tensor | None

    def keep(self, kept: torch.Tensor) -> DecodeEdit | None:
        """The edit for a batch of which only rows `kept` (sorted indices) remain; None where none of its
        rows does."""
        place = torch.full((int(kept.max()) + 1,), -1, dtype=torch.int64, device=kept.device)
        place[kept] = torch.arange(len(kept), device=kept.device)
        rows = self.rows.to(kept.device)
        inside = rows < len(place)
        new = torch.where(inside, place[rows.clamp_max(len(place) - 1)], -1)
        stay = (new >= 0).to(self.rows.device)
        if not bool(stay.any()):
            return None

        def cut(tensor: torch.Tensor | None) -> torch.Tensor | None:
            return None if tensor is None else tensor[stay]

        return DecodeEdit(
            self.write,
            self.order,
            new.to(self.rows.device)[stay],
            self.slots[stay],
            self.first[stay],
            self.tally,
            cut(self.table),
            cut(self.counts),
            cut(self.high),
            cut(self.low),
            self.length[stay],
            self.wait[stay],
            self.settled,
            self.expires,
            self.head_width,
            self.columns,
        )

    def touch(self, step: int, weight: torch.Tensor, place: int = 0) -> Touch:
        """The touch of decode forward `step` (counted over the batch; rows that replay are one ahead).

        weight: [batch rows], 1 where the row still runs. place: index of the new token within the forward.
        """
        t = self.first + step
        value, noise = None, None
        if self.high is not None and self.low is not None:
            noise = keys_at(self.high, self.low, self.length + t)
        elif self.table is not None and self.counts is not None:
            at = t % self.counts if self.write.hold == "cycle" else torch.minimum(t, self.counts - 1)
            at = at.clamp_min(0)
            value = self.table[torch.arange(len(at), device=at.device), at]
        acts = t >= self.wait  # until then rows are left alone
        if self.write.hold == "lockstep" and self.counts is not None:
            acts &= t < self.counts  # the donor has no t-th token of its own any more
        rows, slots, acting = self.rows, self.slots, weight.to(self.rows.device)[self.rows]
        if step < self.settled or step >= self.expires:
            rows, slots, acting = rows[acts], slots[acts], acting[acts]
            value = None if value is None else value[acts]
            noise = None if noise is None else noise[acts]
        return Touch(
            op=self.write.op,
            alpha=self.write.alpha,
            rows=rows,
            positions=torch.full_like(rows, place),
            slots=slots,
            tally=self.tally,
            layer=self.order,
            value=value,
            noise=noise,
            head_width=self.head_width,
            columns=self.columns,
            weight=acting,
        )


def decode_edits(
    loaded: Loaded, sources: Sources, plans: Sequence[RowPlan], tallies: Tallies, recorded: Recorded
) -> list[DecodeEdit]:
    """Edits of all decode forwards of a batch. A cached decode outputs one position, so that a write with
    `min_positions` above 1 never acts: it gets no edit, and its receipt says so."""
    grouped: dict[Write, list[tuple[int, RowPlan, WritePlan]]] = {}
    for index, plan in enumerate(plans):
        for item in plan.writes:
            write = item.write
            acts = write.during != "prefill" and write.hold != "sliding"
            if acts and (write.min_positions <= 1 or plan.row.recompute):
                grouped.setdefault(write, []).append((index, plan, item))
    edits = []
    for write in sorted(grouped, key=lambda w: w.order):
        group = grouped[write]
        tally = tallies.setdefault(("decode", write), Tally(len(write.layers), len(plans), loaded.device))
        for order, layer in enumerate(write.layers):
            device = loaded.layer_places[layer][0]
            acting = torch.tensor([i for i, _, _ in group], device=device)
            table, counts, high, low = None, None, None, None
            waits = [
                max(0, write.min_positions - len(p.row.ids) - 1) if p.row.recompute else 0
                for _, p, _ in group
            ]
            if write.value.kind == "random":
                high, low = split_stream([noise_stream(p.row, write, layer) for _, p, _ in group], device)
            elif write.op != "zero":
                values = [
                    _window_rows(sources, recorded, plan, item, (write.site, layer))
                    for _, plan, item in group
                ]
                counts = torch.tensor([len(v) for v in values], device=device)
                table = torch.nn.utils.rnn.pad_sequence(values, batch_first=True).to(device)
                if table.shape[1] == 0:
                    continue  # no donor has a token of its own: the write never acts, and its receipt says so
            edits.append(
                DecodeEdit(
                    write,
                    order,
                    acting,
                    acting.clone(),
                    torch.tensor([int(p.row.replay_last_token) for _, p, _ in group], device=device),
                    tally,
                    table,
                    counts,
                    high,
                    low,
                    torch.tensor([p.slots for _, p, _ in group], device=device),
                    torch.tensor(waits, device=device),
                    max(0, *waits),
                    _expiry(write, counts, group),
                    head_width(loaded, write),
                    columns(loaded, write, device),
                )
            )
    return edits


def _expiry(
    write: Write, counts: torch.Tensor | None, group: Sequence[tuple[int, RowPlan, WritePlan]]
) -> int:
    if write.hold != "lockstep" or counts is None:
        return max(plan.row.sampling.max_new_tokens for _, plan, _ in group) + 1
    return int(counts.min()) - 1  # rows that replay are one step ahead


def _window_rows(
    sources: Sources, recorded: Recorded, plan: RowPlan, item: WritePlan, spot: Spot
) -> torch.Tensor:
    """The rows [n, width] that a decode write draws from, by its `hold`."""
    assert item.source is not None and item.window is not None
    if item.write.hold == "lockstep":
        return recorded[(item.source, plan.row.stream, plan.row.sampling)][spot]
    captured = sources.get(item.source).sites[spot]
    window = captured[torch.from_numpy(item.window).to(captured.device)]
    if item.write.hold == "last":
        return window[-1:]
    if item.write.hold == "mean":
        return window.float().mean(dim=0, keepdim=True).to(window.dtype)
    return window
