"""Probes of a prompt: all of a batch are read off one run of it."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from backends.contract import BackendError, Start
from backends.measures import Measured, Probe, ScoreRow
from backends.probes import geometry, kinds
from backends.rowplan import RowPlan, plan_row
from backends.torch.hooks import Spot
from backends.torch.score import reductions
from backends.torch.score.bench import Bench, Measurements
from backends.torch.score.reading import Reading, read
from backends.torch.score.reductions import TokenSets
from backends.torch.score.states import Layered, cross_entropy, lens, logits_at, patchscope

EVERYWHERE = sys.maxsize


class Prompted:
    """Probes that one run of the prompts serves."""

    def __init__(
        self,
        bench: Bench,
        plans: Sequence[RowPlan],
        rows: Sequence[ScoreRow],
        probes: Sequence[Probe],
        start: Start | None,
        found: Measurements,
    ) -> None:
        self._bench, self._plans, self._rows, self._probes = bench, plans, rows, probes
        self._found = found
        self._device = bench.loaded.device
        against = any(probe.kind == "kl" for probe in probes)
        self._clean_of, clean = self._clean() if against else ([], [])
        # Of all rows that are run, those measured first, then what they are held against.
        batch = [*plans, *(plan for plan, _ in clean)]
        self._places = [row.positions for row in (*rows, *(rows[index] for _, index in clean))]
        self._lengths = torch.tensor([len(plan.row.ids) for plan in batch], device=self._device)
        parts = [batch[: len(plans)], batch[len(plans) :]] if bench.apart else [batch]
        found.batch_rows = max(map(len, parts))
        self._parts = [self._run(parts[0], start)]
        if len(parts) > 1 and parts[1]:
            with bench.unpatched():
                self._parts.append(self._run(parts[1], start))
        self._reading = self._parts[0].of(torch.arange(len(plans), device=self._device))
        self._logits: dict[tuple[int, str], torch.Tensor] = {}

    def measure(self) -> None:
        """Fill in columns, receipts and soundness."""
        self._found.written = list(self._reading.written)
        self._found.judge(reductions.finite(self._reading.logits))
        for probe in self._probes:
            values = self._values(probe)
            self._found.columns.update(zip(kinds.columns(probe), values, strict=True))

    def _values(self, probe: Probe) -> list[list[Measured]]:
        if probe.kind == "geometry":
            return self._geometry(probe)
        if probe.kind == "cross_entropy":
            return [list(cross_entropy(self._bench.loaded, self._reading, self._plans))]
        if probe.kind in kinds.PER_LAYER:
            return self._layered(probe)
        logits = self._logits_at(probe)
        if probe.kind == "kl":
            ours = logits[: len(self._plans)]
            return [_numbers(reductions.kl(logits[self._clean_of], ours))]
        logits = logits[: len(self._plans)]
        if probe.kind == "top_k":
            ids, probs = reductions.top_k(logits, probe.top)
            return [list(map(tuple, ids.tolist())), list(map(tuple, probs.tolist()))]
        sets = self._sets(probe.tokens)
        if probe.kind == "next_token":
            return [_numbers(reductions.next_token(logits, sets))]
        if probe.kind == "accuracy":
            return [_numbers(reductions.accuracy(logits, sets))]
        if probe.kind == "rank":
            return [[None if rank < 0 else rank for rank in reductions.rank(logits, sets).tolist()]]
        assert probe.kind == "log_odds", probe.kind
        against = self._sets(probe.against) if probe.against else None
        return [_numbers(reductions.log_odds(logits, sets, against))]

    def _run(self, plans: Sequence[RowPlan], start: Start | None) -> Reading:
        bench, recorded = self._bench, self._bench.prepare(plans)
        # A write that changes nothing has a kl of exactly 0: both sides come out of the same forwards.
        share = all(probe.kind != "kl" for probe in self._probes)
        places = (bench.loaded, bench.board, bench.sources, plans, recorded, self._spots(), start)
        return read(*places, share=share)

    def _clean(self) -> tuple[list[int], list[tuple[RowPlan, int]]]:
        """What kl holds each row against: the place, among all rows that are run, of the same prompt without
        writes and without the rows' weights; and the rows that are run for this, each with the row that it
        stands for. A row without either is its own."""
        named = sorted({probe.at for probe in self._probes if probe.kind == "kl" and probe.at})
        keys = [
            (plan.row.ids, plan.row.replay_last_token, tuple(row.positions[name] for name in named))
            for plan, row in zip(self._plans, self._rows, strict=True)
        ]
        own = [not plan.writes and not self._bench.apart for plan in self._plans]
        known: dict[tuple[object, ...], int] = {}
        for index, key in enumerate(keys):
            if own[index]:
                known.setdefault(key, index)
        more: list[tuple[RowPlan, int]] = []
        for index, key in enumerate(keys):
            if key not in known:
                known[key] = len(keys) + len(more)
                bare = replace(self._plans[index].row, writes=(), sources={}, spans={}, weights=None)
                more.append((plan_row(bare), index))
        return [index if own[index] else known[key] for index, key in enumerate(keys)], more

    def _spots(self) -> dict[Spot, int]:
        """What has to be read of the run, and at how many last positions of a prompt. The end of the prompt
        is read in a forward of its own."""
        last = self._bench.loaded.info.layers - 1
        spots: dict[Spot, int] = {}
        for probe in self._probes:
            site, layers = "resid_post", probe.layers
            most = self._most(probe)
            if probe.kind == "geometry":
                site, most = probe.site, max(probe.windows)
            elif probe.kind == "cross_entropy":
                layers, most = (last,), EVERYWHERE
            elif probe.kind not in kinds.PER_LAYER:
                layers = (last,) if most else ()
            for layer in layers:
                spots[site, layer] = max(most, spots.get((site, layer), 0))
        return spots

    def _most(self, probe: Probe) -> int:
        """How many last positions of a prompt hold the one that a probe reads; 0 for the end of all."""
        if probe.at:
            places = zip(self._lengths.tolist(), self._places, strict=True)
            most = max(length - place[probe.at] for length, place in places)
            return most if most > 1 else 0
        return EVERYWHERE if probe.position >= 0 else -probe.position if probe.position < -1 else 0

    def _positions(self, probe: Probe) -> torch.Tensor:
        """The position that is read in each row of the run, the end of the prompt being where its next token
        is predicted."""
        end = torch.cat([part.end for part in self._parts])
        if probe.at:
            place = torch.tensor([place[probe.at] for place in self._places], device=self._device)
        elif probe.position == -1:
            return end
        else:
            place = probe.position % self._lengths
        if bool((place < self._parts[0].first).any()):
            told = probe.at or probe.position
            raise BackendError(f"score: position {told} lies in the prefix that was started from")
        return torch.where(place == self._lengths - 1, end, place)

    def _logits_at(self, probe: Probe) -> torch.Tensor:
        """Next-token logits after the position of a probe, of all rows that are run."""
        where = (probe.position, probe.at)
        if where not in self._logits:
            sizes = [len(part.end) for part in self._parts]
            positions = torch.split(self._positions(probe), sizes)
            logits = torch.cat(
                [logits_at(self._bench.loaded, *each) for each in zip(self._parts, positions, strict=True)]
            )
            sound = reductions.finite(logits)
            self._found.judge(sound[: len(self._plans)])
            if len(sound) > len(self._plans):
                self._found.judge(sound[self._clean_of])
            # What is not a number has no order: such rows are invalid, whatever is read of them.
            self._logits[where] = torch.where(sound[:, None], logits, 0)
        return self._logits[where]

    def _sets(self, name: str) -> TokenSets:
        return TokenSets.of(
            [row.tokens[name] for row in self._rows], self._bench.loaded.info.vocabulary, self._device
        )

    def _layered(self, probe: Probe) -> list[list[Measured]]:
        sets = self._sets(probe.tokens) if probe.tokens else None
        positions = self._positions(probe)[: len(self._plans)]
        loaded = self._bench.loaded
        if probe.kind == "lens":
            found = lens(loaded, self._reading, probe.layers, positions, sets)
        else:
            assert probe.scope is not None
            found = patchscope(
                loaded,
                self._bench.board,
                self._reading,
                probe.layers,
                positions,
                probe.scope,
                sets,
                self._bench.tokens,
            )
        self._found.judge(found.sound)
        return _of_layers(found, sets)

    def _geometry(self, probe: Probe) -> list[list[Measured]]:
        most = max(probe.windows)
        lengths = self._lengths[: len(self._plans)]
        positions = lengths[:, None] - most + torch.arange(most, device=self._device)
        if bool((positions < self._reading.first).any()):
            raise BackendError(f"probe '{probe.name}': its window lies in the prefix that was started from")
        site = probe.site
        early, late = (
            self._reading.at((site, layer), positions).float().cpu().numpy() for layer in probe.layers
        )
        first, *others = (geometry.geometry(early, late, window) for window in probe.windows)
        columns = [first.r_v, first.early, first.late, *(other.r_v for other in others)]
        return [_numbers(column) for column in columns]


def _of_layers(found: Layered, sets: TokenSets | None) -> list[list[Measured]]:
    tops: list[Measured] = list(map(tuple, found.top.tolist()))
    if sets is None or found.rank is None or found.prob is None:
        return [tops]
    some = sets.some.tolist()
    columns: list[list[Measured]] = [
        [tuple(each) if has else None for each, has in zip(values.tolist(), some, strict=True)]
        for values in (found.rank, found.prob)
    ]
    return [*columns, tops]


def _numbers(values: torch.Tensor | np.ndarray) -> list[Measured]:
    """Host numbers, None where undefined."""
    return [None if math.isnan(value) else value for value in values.tolist()]
