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
from backends.torch.score.reading import read
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
        loaded = bench.loaded
        self._device = loaded.device
        batch = list(plans)
        if any(probe.kind == "kl" for probe in probes):
            self._clean_of, clean = _clean(plans)
            batch += clean
        found.batch_rows = len(batch)
        self._whole = read(
            loaded, bench.board, bench.sources, batch, bench.prepare(batch), self._spots(), start
        )
        self._reading = self._whole.of(torch.arange(len(plans), device=self._device))
        self._lengths = torch.tensor([len(plan.row.ids) for plan in batch], device=self._device)
        self._logits: dict[int, torch.Tensor] = {}

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
        logits = self._logits_at(probe.position)
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
        if probe.kind == "rank":
            return [[None if rank < 0 else rank for rank in reductions.rank(logits, sets).tolist()]]
        assert probe.kind == "log_odds", probe.kind
        against = self._sets(probe.against) if probe.against else None
        return [_numbers(reductions.log_odds(logits, sets, against))]

    def _spots(self) -> dict[Spot, int]:
        """What has to be read of the run, and at how many last positions of a prompt. The end of the prompt
        is read in a forward of its own."""
        last = self._bench.loaded.info.layers - 1
        spots: dict[Spot, int] = {}
        for probe in self._probes:
            site, layers = "resid_post", probe.layers
            most = EVERYWHERE if probe.position >= 0 else -probe.position if probe.position < -1 else 0
            if probe.kind == "geometry":
                site, most = probe.site, max(probe.windows)
            elif probe.kind == "cross_entropy":
                layers, most = (last,), EVERYWHERE
            elif probe.kind not in kinds.PER_LAYER:
                layers = (last,) if most else ()
            for layer in layers:
                spots[site, layer] = max(most, spots.get((site, layer), 0))
        return spots

    def _positions(self, position: int) -> torch.Tensor:
        """The position that is read in each row of the run, the end of the prompt being where its next token
        is predicted."""
        end = self._whole.end
        if position == -1:
            return end
        place = position % self._lengths
        if bool((place < self._whole.first).any()):
            raise BackendError(f"score: position {position} lies in the prefix that was started from")
        return torch.where(place == self._lengths - 1, end, place)

    def _logits_at(self, position: int) -> torch.Tensor:
        if position not in self._logits:
            logits = logits_at(self._bench.loaded, self._whole, self._positions(position))
            sound = reductions.finite(logits)
            self._found.judge(sound[: len(self._plans)])
            if len(sound) > len(self._plans):
                self._found.judge(sound[self._clean_of])
            # What is not a number has no order: such rows are invalid, whatever is read of them.
            self._logits[position] = torch.where(sound[:, None], logits, 0)
        return self._logits[position]

    def _sets(self, name: str) -> TokenSets:
        return TokenSets.of(
            [row.tokens[name] for row in self._rows], self._bench.loaded.info.vocabulary, self._device
        )

    def _layered(self, probe: Probe) -> list[list[Measured]]:
        sets = self._sets(probe.tokens) if probe.tokens else None
        positions = self._positions(probe.position)[: len(self._plans)]
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


def _clean(plans: Sequence[RowPlan]) -> tuple[list[int], list[RowPlan]]:
    """For each row, the place in the extended batch of the same prompt without writes; and the plans that it
    is extended by. A row without writes is its own."""
    known: dict[tuple[object, ...], int] = {}
    for index, plan in enumerate(plans):
        if not plan.writes:
            known.setdefault(_prompt_of(plan), index)
    more: list[RowPlan] = []
    for plan in plans:
        if _prompt_of(plan) not in known:
            known[_prompt_of(plan)] = len(plans) + len(more)
            more.append(plan_row(replace(plan.row, writes=(), sources={}, spans={})))
    return [known[_prompt_of(plan)] if plan.writes else index for index, plan in enumerate(plans)], more


def _prompt_of(plan: RowPlan) -> tuple[object, ...]:
    return plan.row.ids, plan.row.replay_last_token


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
