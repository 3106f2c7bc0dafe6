"""The torch implementation of the contract: capture, score and decode batches of rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from backends.contract import (
    Captured,
    Decoded,
    Device,
    Footprint,
    ModelInfo,
    ModelSource,
    Probe,
    Row,
    Sampling,
    ScoreRow,
    Site,
)
from backends.positions import PositionError
from backends.rowplan import RowPlan, needs, plan_row
from backends.torch.edits import Prompted, Tallies, prompt_touches
from backends.torch.forward import new_cache, prefill
from backends.torch.generate import Recorder, decoded, generate, receipts
from backends.torch.hooks import Board, Spot, keep_in
from backends.torch.loading import load
from backends.torch.recompute import regenerate
from backends.torch.score import perplexity
from backends.torch.sources import Sources

Recording = dict[tuple[tuple[int, ...], int], dict[Spot, torch.Tensor]]


class TorchBackend:
    """A loaded model with a bounded store of captured sources."""

    def __init__(self, source: ModelSource, device: Device) -> None:
        """Load the model. Raises BackendError in a sentence when that fails."""
        self._loaded = load(source, device)
        self._board = Board(self._loaded.blocks, self._loaded.layout)
        self._budget = device.budget
        self._sources = Sources(self._loaded, self._board, device.budget // 4)

    @property
    def info(self) -> ModelInfo:
        return self._loaded.info

    @property
    def footprint(self) -> Footprint:
        info = self.info
        size = torch.finfo(self._loaded.model.dtype).bits // 8
        cached = 2 * info.layers * info.kv_heads * info.head_width * size
        activations = 8 * max(info.width, info.heads * info.head_width) * size
        return Footprint(
            bytes_per_token=3 * cached
            + activations,  # the cache, its predecessor while it is assembled, gathers
            bytes_per_row=48 * info.vocabulary,  # logits, noise and sorting in float32 and int64
            budget=self._budget,
        )

    @torch.inference_mode()
    def capture(self, rows: Sequence[Row], sites: Sequence[tuple[Site, int]]) -> list[Captured]:
        """Activations [positions, width] of whole prompts at the (site, layer) pairs asked, prefill writes
        active.

        kv_cache gives keys after rotary embedding, then values, side by side. Raises PositionError for rows
        whose writes cannot be resolved, OutOfMemory.
        """
        plans = [plan_row(row) for row in rows]
        self._capture_sources(plans)
        longest = max(len(plan.row.ids) for plan in plans)
        entries = [
            Prompted(plan, item, item.prefill, index, index, longest - len(plan.row.ids))
            for index, plan in enumerate(plans)
            for item in plan.writes
            if item.prefill is not None
        ]
        wanted: list[Spot] = [(site, layer) for site, layer in sites if site != "kv_cache"]
        written = {
            (w.site, layer) for row in rows for w in row.writes if w.site != "kv_cache" for layer in w.layers
        }
        seen: dict[Spot, torch.Tensor] = {}
        cache = new_cache(self._loaded, len(rows), longest)
        with self._board.armed(written | set(wanted)):
            tallies: Tallies = {}
            self._board.touches = prompt_touches(self._loaded, self._sources, entries, tallies, len(rows))
            for spot in wanted:
                self._board.taps[spot] = keep_in(seen, spot)
            _, pads = prefill(self._loaded, [plan.row.ids for plan in plans], cache)
        out = []
        for index, pad in enumerate(pads.tolist()):
            found: dict[tuple[str, int], np.ndarray] = {}
            for site, layer in sites:
                if site == "kv_cache":
                    slots = cache.slot_layer(layer)
                    assert slots.keys is not None and slots.values is not None
                    both = [t[index, :, pad:].transpose(0, 1).flatten(1) for t in (slots.keys, slots.values)]
                    tensor = torch.cat(both, dim=-1)
                else:
                    tensor = seen[(site, layer)][index, pad:]
                found[(site, layer)] = tensor.float().cpu().numpy().copy()
            out.append(Captured(found))
        return out

    def score(self, rows: Sequence[ScoreRow], probes: Sequence[Probe]) -> list[dict[str, float | None]]:
        """Each probe's value for each row. Raises OutOfMemory."""
        out: list[dict[str, float | None]] = [{} for _ in rows]
        for probe in probes:
            assert probe.kind == "perplexity"
            for found, value in zip(out, perplexity(self._loaded, rows, self._chunk_tokens()), strict=True):
                found[probe.kind] = value
        return out

    def decode(self, rows: Sequence[Row]) -> list[Decoded]:
        """Generate for all rows, those with and without a cache apart. A row that cannot be run as asked (a
        window longer than its prompt, a source that is missing) comes back invalid with the reason. Raises
        OutOfMemory."""
        out: list[Decoded | None] = [None] * len(rows)
        plans: dict[int, RowPlan] = {}
        for index, row in enumerate(rows):
            try:
                plans[index] = plan_row(row)
            except PositionError as error:
                out[index] = Decoded((), "length", {}, float("inf"), len(rows), len(row.ids), str(error))
        self._capture_sources(list(plans.values()))
        recorded = self._record([plan for plan in plans.values()])
        for recompute in (False, True):
            chosen = [index for index, plan in plans.items() if plan.row.recompute == recompute]
            if not chosen:
                continue
            batch = [plans[index] for index in chosen]
            run = regenerate if recompute else generate
            outcome = run(self._loaded, self._board, self._sources, batch, recorded)
            found = receipts(self._loaded, batch, outcome)
            for index, result in zip(chosen, decoded(batch, outcome, found), strict=True):
                out[index] = result
        return [result for result in out if result is not None]

    def _chunk_tokens(self) -> int:
        return max(1, self._budget // 4 // (self.footprint.bytes_per_token + 4 * self.info.width))

    def _capture_sources(self, plans: Sequence[RowPlan]) -> None:
        with torch.inference_mode():
            self._sources.ensure(needs(plans), self._chunk_tokens())

    def _record(self, plans: Sequence[RowPlan]) -> Recording:
        """For `hold: lockstep`: generate from each donor with the row's own stream, and keep the
        activations of the donor's t-th new token."""
        wanted: dict[tuple[tuple[int, ...], int], tuple[Sampling, set[Spot]]] = {}
        for plan in plans:
            for item in plan.writes:
                if item.write.hold == "lockstep" and item.source is not None:
                    entry = wanted.setdefault((item.source, plan.row.stream), (plan.row.sampling, set()))
                    entry[1].update((item.write.site, layer) for layer in item.write.layers)
        if not wanted:
            return {}
        spots = frozenset().union(*(found for _, found in wanted.values()))
        donors = [Row(ids=ids, sampling=s, stream=stream) for (ids, stream), (s, _) in wanted.items()]
        recorder = Recorder(spots)
        batch = [plan_row(row) for row in donors]
        outcome = generate(self._loaded, self._board, self._sources, batch, {}, recorder)
        kept = outcome.progress.forwards.clamp_min(1).tolist()
        out: Recording = {}
        for index, key in enumerate(wanted):
            out[key] = {
                spot: torch.stack([step[index] for step in steps[: kept[index]]])
                for spot, steps in recorder.seen.items()
            }
        return out
