"""The torch implementation of the contract: capture, score and decode batches of rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace

import numpy as np
import torch

from backends.contract import (
    BackendError,
    Captured,
    Device,
    Footprint,
    ModelInfo,
    ModelSource,
    OutOfMemory,
    Prefix,
    Reduce,
    Start,
    Weight,
)
from backends.measures import Probe, Scored, ScoreRow
from backends.positions import PositionError
from backends.probes.kinds import UNWRITTEN
from backends.rowplan import RowPlan, plan_for, plan_row
from backends.rows import Decoded, Row, by_weights
from backends.torch import weights
from backends.torch.capture import capture_prompts, ensure_sources, reduced
from backends.torch.edits import Recorded, Recording, RecordingKey, recording_key
from backends.torch.effects import check_vector
from backends.torch.features import check_features
from backends.torch.generate import generate
from backends.torch.hooks import Board, Spot
from backends.torch.kv import check_rope
from backends.torch.loading import load
from backends.torch.outcome import decoded, receipts
from backends.torch.prefix import run_prefix
from backends.torch.progress import Recorder
from backends.torch.recompute import regenerate
from backends.torch.score.bench import Bench
from backends.torch.score.measure import refuse, score
from backends.torch.sources import Sources
from backends.writes import Constant, Site, Write


@contextmanager
def memory_as_ours() -> Iterator[None]:
    """Turn torch's out-of-memory error, wherever in a batch it arises, into the contract's."""
    try:
        yield
    except RuntimeError as error:
        on_device = isinstance(error, torch.OutOfMemoryError)
        if on_device or "can't allocate memory" in str(error):
            raise OutOfMemory(str(error).splitlines()[0]) from error
        raise


def _every(writes: Iterable[Write]) -> Iterator[Write]:
    """Writes, and those under which their sources are captured."""
    for write in writes:
        yield write
        if write.value.under is not None:
            yield from _every(write.value.under.writes)


def _check_start(rows: Sequence[Row], start: Start | None) -> None:
    """Raises BackendError for a prefix that was run with other weights than these rows have."""
    if start is not None and any(row.weights is not None for row in rows):
        raise BackendError("start: rows with weights of their own have no prefix to begin from")


class TorchBackend:
    """A loaded model with a bounded store of captured sources."""

    def __init__(self, source: ModelSource, device: Device) -> None:
        """Load the model. Raises BackendError in a sentence when that fails."""
        self._loaded = load(source, device)
        self._board = Board(self._loaded)
        self._budget = device.budget
        self._sources = Sources(device.budget // 4)
        self._removals: list[weights.Removal] = []  # directions that are out of the weights now

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

    def check(self, writes: Sequence[Write]) -> None:
        """Raises BackendError for a site that the architecture lacks, keys that cannot be re-rotated in this
        model, and vectors of another width than their site."""
        every = list(_every(writes))
        for write in every:
            missing = self._loaded.layout.lacks(write.tensor)
            if missing is not None:
                raise BackendError(f"'{write.name}': {missing}")
            check_vector(self._loaded, write)
        check_rope(self._loaded, every)
        check_features(every, self.info)

    def prefix(self, ids: tuple[int, ...]) -> Prefix:
        """Run a common beginning of prompts once. Raises OutOfMemory."""
        with memory_as_ours():
            return Prefix(ids, run_prefix(self._loaded, self._board, ids))

    def capture(
        self,
        rows: Sequence[Row],
        sites: Sequence[tuple[Site, int]],
        reduce: Reduce = "none",
        start: Start | None = None,
    ) -> list[Captured]:
        """Activations of prompts at the (site, layer) pairs asked, prefill writes active.

        [positions, width], those of a start's prefix left out; [width] where they are reduced to the last
        or, in float64, to their mean. kv_cache gives keys after rotary embedding, then values, side by
        side. Raises PositionError for rows whose writes cannot be resolved, BackendError for rows that
        cannot begin at the start or whose weights cannot be changed, OutOfMemory.
        """
        for site, _ in sites:
            missing = self._loaded.layout.lacks(site)
            if missing is not None:
                raise BackendError(f"capture: {missing}")
        _check_start(rows, start)
        plans = [self._plan(row) for row in rows]
        out: list[Captured | None] = [None] * len(rows)
        for changed, chosen in by_weights(rows):
            with memory_as_ours(), self._with(changed):
                batch = [plans[index] for index in chosen]
                self._capture_sources(batch)
                found = capture_prompts(self._loaded, self._board, self._sources, batch, sites, start)
                for index, each in zip(chosen, found, strict=True):
                    out[index] = Captured({spot: reduced(value, reduce) for spot, value in each.items()})
        return [captured for captured in out if captured is not None]

    def score(
        self, rows: Sequence[ScoreRow], probes: Sequence[Probe], start: Start | None = None
    ) -> list[Scored]:
        """Each probe's values for each row, as `backends.probes` defines them, rows of different weights
        apart. Raises BackendError for probes that cannot be measured here or rows that cannot begin at the
        start, OutOfMemory."""
        refuse(self._loaded, rows, probes, start)
        _check_start([row.row for row in rows], start)
        out: list[Scored | None] = [None] * len(rows)
        for changed, chosen in by_weights([row.row for row in rows]):
            written = any(probe.kind not in UNWRITTEN for probe in probes)
            reason = self._refusal(changed)
            if reason is not None:
                longest = max(len(rows[index].row.ids) for index in chosen)
                for index in chosen:
                    out[index] = Scored({}, {}, len(chosen), longest, reason)
                continue
            with memory_as_ours(), self._with(changed) if written else nullcontext():
                found = score(self._bench(changed), [rows[index] for index in chosen], probes, start)
            for index, each in zip(chosen, found, strict=True):
                out[index] = each
        return [scored for scored in out if scored is not None]

    def decode(self, rows: Sequence[Row], start: Start | None = None) -> list[Decoded]:
        """Generate for all rows, those with and without a cache and those of different weights apart.

        A row that cannot be run as asked (a window longer than its prompt, a source that is missing, weights
        that cannot be changed) comes back invalid with the reason. Raises OutOfMemory, and BackendError for
        rows that cannot begin at the start.
        """
        _check_start(rows, start)
        out: list[Decoded | None] = [None] * len(rows)
        for changed, chosen in by_weights(rows):
            reason = self._refusal(changed)
            plans: dict[int, RowPlan] = {}
            for index in chosen:
                row, fault = rows[index], reason
                try:
                    plans[index] = self._plan(row)
                except PositionError as error:
                    fault = fault or str(error)
                if fault is not None:
                    out[index] = Decoded((), "length", {}, float("inf"), len(rows), len(row.ids), fault)
            if reason is None:
                with memory_as_ours(), self._with(changed):
                    for index, result in self._decode(plans, start):
                        out[index] = result
        return [result for result in out if result is not None]

    def unembed(self, hidden: np.ndarray) -> np.ndarray:
        """The logit lens: final norm, unembedding and soft-capping of residual states [n, width] -> logits
        [n, vocabulary] in float32."""
        logits = weights.unembed(self._loaded, torch.from_numpy(hidden))
        return np.array(logits.float().cpu().numpy())

    def weight(self, name: Weight, layer: int = 0) -> np.ndarray:
        """A weight matrix in float32, as x @ W; see `backends.torch.weights.weight`."""
        return weights.weight(self._loaded, name, layer)

    @contextmanager
    def orthogonalised(self, direction: np.ndarray) -> Iterator[None]:
        """The model with `direction` [width] taken out of every matrix that writes to the residual stream.

        Sources captured before are set aside until then: they are another model's. So is every Prefix.
        Raises BackendError where that is not the same as project_out at every residual site.
        """
        kept = self._sources
        with weights.orthogonalised(self._loaded, direction) as removal:
            self._sources = Sources(self._budget // 4)
            self._removals.append(removal)
            try:
                yield
            finally:
                self._removals.pop()
                self._sources = kept

    def _held(self, changed: Constant | None) -> weights.Removal | None:
        """What has taken these weights' direction out already, where it is the last that was; else None."""
        if changed is None or not self._removals:
            return None
        last = self._removals[-1]
        return last if np.array_equal(last.direction, changed.array) else None

    def _with(self, changed: Constant | None) -> AbstractContextManager[None]:
        """The model with a row's weights, changed here unless they are already."""
        if changed is None or self._held(changed) is not None:
            return nullcontext()
        return self.orthogonalised(changed.array)

    def _without(self, changed: Constant | None) -> AbstractContextManager[None]:
        """The model as it is without a row's weights, in which nothing may be captured."""
        held = self._held(changed)
        return nullcontext() if held is None else held.undone()

    def _refusal(self, changed: Constant | None) -> str | None:
        """Why a row's weights cannot be changed; None where they can."""
        try:
            if changed is not None:
                weights.check_removable(self._loaded, changed.array)
        except BackendError as error:
            return str(error)
        return None

    def _bench(self, changed: Constant | None) -> Bench:
        """What rows of some weights are measured with, once the model has them."""
        return Bench(
            self._loaded,
            self._board,
            self._sources,
            self._plan,
            self._prepare,
            self._chunk_tokens(),
            apart=changed is not None,
            unpatched=lambda: self._without(changed),
        )

    def _decode(self, plans: Mapping[int, RowPlan], start: Start | None) -> Iterator[tuple[int, Decoded]]:
        recorded = self._prepare(list(plans.values()))
        cached = [index for index, plan in plans.items() if not plan.row.recompute]
        anew = [index for index, plan in plans.items() if plan.row.recompute]
        if anew and start is not None:
            raise BackendError("start: rows that recompute have no cache to start from")
        for chosen in (cached, anew):
            if not chosen:
                continue
            batch = [plans[index] for index in chosen]
            places = (self._loaded, self._board, self._sources, batch, recorded)
            outcome = generate(*places, start=start) if chosen is cached else regenerate(*places)
            found = receipts(self._loaded, batch, outcome)
            for index, result in zip(chosen, decoded(batch, outcome, found), strict=True):
                keys = [recording_key(plans[index], item) for item in plans[index].writes]
                margins = [recorded[key].margin for key in keys if key is not None]
                yield index, replace(result, min_margin=min([result.min_margin, *margins]))

    def _chunk_tokens(self) -> int:
        return max(1, self._budget // 4 // (self.footprint.bytes_per_token + 4 * self.info.width))

    def _plan(self, row: Row) -> RowPlan:
        """Raises PositionError where the row cannot be run as asked."""
        return plan_for(row, self._loaded.windows, self.info.heads)

    def _prepare(self, plans: Sequence[RowPlan]) -> Recorded:
        """Capture and generate what these rows draw from. What is generated comes first: it draws from
        captures of its own, which may take the place of others."""
        recorded = self._record(plans)
        self._capture_sources(plans)
        return recorded

    def _capture_sources(self, plans: Sequence[RowPlan]) -> None:
        ensure_sources(self._loaded, self._board, self._sources, plans, self._chunk_tokens())

    def _record(self, plans: Sequence[RowPlan]) -> Recorded:
        """For `hold: lockstep`: generate from each donor with the row's own stream and sampling, and keep the
        activations of the donor's t-th new token. A donor whose first token ends its text has none."""
        wanted: dict[RecordingKey, set[Spot]] = {}
        for plan in plans:
            for item in plan.writes:
                key = recording_key(plan, item)
                if key is not None:
                    spots = wanted.setdefault(key, set())
                    spots.update(item.spot(layer) for layer in item.write.layers)
        if not wanted:
            return {}
        recorder = Recorder(frozenset().union(*wanted.values()))
        batch = [plan_row(run.row(sampling, stream)) for run, stream, sampling in wanted]
        within = self._prepare(batch)
        outcome = generate(self._loaded, self._board, self._sources, batch, within, recorder)
        kept = outcome.progress.forwards.tolist()
        margins = outcome.progress.margin.tolist()
        return {
            key: Recording(
                {spot: recorder.rows(spot, index, kept[index], self._loaded) for spot in spots},
                margins[index],
            )
            for index, (key, spots) in enumerate(wanted.items())
        }
