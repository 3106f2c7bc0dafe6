"""The torch implementation of the contract: capture, score and decode batches of rows."""

from __future__ import annotations

import copy
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from threading import Event
from typing import TypeVar

import numpy as np
import torch

from backends.clock import Clock
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
from backends.torch.beside import twin, usable_cores, workers_for
from backends.torch.capture import capture_prompts, ensure_sources, reduced
from backends.torch.edits import Recorded, Recording, RecordingKey, recording_key
from backends.torch.effects import check_vector
from backends.torch.features import check_features
from backends.torch.footprint import Memory
from backends.torch.generate import Stepping, generate
from backends.torch.hooks import Board, Spot
from backends.torch.kv import check_rope
from backends.torch.loading import load
from backends.torch.outcome import decoded, receipts
from backends.torch.prefix import run_prefix
from backends.torch.progress import Recorder
from backends.torch.recompute import regenerate
from backends.torch.score.bench import Bench
from backends.torch.score.measure import refuse, score
from backends.torch.sources import Holding
from backends.writes import Constant, Site, Write

_Item = TypeVar("_Item")
# How allocations fail that are not told by a type of their own: on the CPU, and in CUDA and its libraries.
OUT_OF_MEMORY = (
    "can't allocate memory",  # DefaultCPUAllocator
    "not enough memory",
    "bad_alloc",
    "ALLOC_FAILED",  # cuBLAS, cuDNN, cuSOLVER
    "ALLOCATION_FAILED",
    "CUDA error: out of memory",
)
SHARE = 4  # captures and scores take in a quarter of what a batch may: it may hold its cache meanwhile


@contextmanager
def memory_as_ours() -> Iterator[None]:
    """Turn what torch, its libraries and numpy raise when memory runs out, wherever in a batch, into the
    contract's error. What the batch held is free by then, so that a smaller one can follow."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        told = str(error)
        ours = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if not ours and not any(words in told for words in OUT_OF_MEMORY):
            raise
        traceback.clear_frames(error.__traceback__)  # they hold the batch's tensors
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.empty_cache()
        raise OutOfMemory(told.splitlines()[0] if told else type(error).__name__) from error


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


def _parts(items: Sequence[_Item], most: int | None) -> Iterator[Sequence[_Item]]:
    """The items, at most so many at a time; None: all at once."""
    step = len(items) if most is None else most
    for first in range(0, len(items), max(step, 1)):
        yield items[first : first + step]


class TorchBackend:
    """A loaded model with a bounded store of captured sources."""

    def __init__(self, source: ModelSource, device: Device, stepping: Stepping | None = None) -> None:
        """Load the model. stepping: how decode steps are computed, as `generate` says; None: as is best on
        the device. Raises BackendError in a sentence when that fails."""
        self._stepping = stepping
        self._loaded = load(source, device)
        self.workers = workers_for(device.workers, device.threads, self._loaded, usable_cores())
        if self.workers > 1 and device.threads is None:
            torch.set_num_threads(1)  # of the whole process: the workers are its threads
        on_cuda = self._loaded.device.type == "cuda"
        self._board = Board(self._loaded, clock=Clock(settle=torch.cuda.synchronize if on_cuda else None))
        self._memory = Memory(self._loaded, device.budget)
        self._sources = self._memory.store()
        self._pinned: Holding | None = None  # what the batch that runs now draws from
        self._removals: list[weights.Removal] = []  # directions that are out of the weights now

    @property
    def info(self) -> ModelInfo:
        return self._loaded.info

    @property
    def clock(self) -> Clock:
        return self._board.clock

    @property
    def footprint(self) -> Footprint:
        return self._memory.footprint(self._loaded)

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
        with memory_as_ours(), self._during("prefill"):
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
            with memory_as_ours(), self._during("capture"), self._with(changed), self._pinning():
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
            asked = self._with(changed) if written else nullcontext()
            with memory_as_ours(), self._during("score"), asked, self._pinning():
                here = [rows[index] for index in chosen]
                found = score(self._bench(changed, here, probes), here, probes, start)
            for index, each in zip(chosen, found, strict=True):
                out[index] = each
        return [scored for scored in out if scored is not None]

    def decode(
        self, rows: Sequence[Row], start: Start | None = None, together: int | None = None
    ) -> list[Decoded]:
        """Generate for all rows, those with and without a cache and those of different weights apart.

        A row that cannot be run as asked (a window longer than its prompt, a source that is missing, weights
        that cannot be changed) comes back invalid with the reason. together: at most so many rows run at
        once; the others wait and enter, in the order given, as rows finish. Raises OutOfMemory, ValueError
        for a `together` below 1, and BackendError for rows that cannot begin at the start.
        """
        _check_start(rows, start)
        if together is not None and together < 1:
            raise ValueError(f"together: expected at least 1 row, got {together}")
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
                with memory_as_ours(), self._during("decode"), self._with(changed), self._pinning():
                    for index, result in self._decode(plans, start, together):
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
            self._sources = self._memory.store()
            self._removals.append(removal)
            try:
                yield
            finally:
                self._removals.pop()
                self._sources.close()
                self._sources = kept

    def beside(self, stop: Event | None = None) -> TorchBackend:
        """A backend on the same weights for another thread; see the contract."""
        other = copy.copy(self)
        other._loaded = twin(self._loaded, stop)
        other._board = Board(other._loaded, clock=self.clock.beside())
        other._removals = []
        return other

    @contextmanager
    def _pinning(self) -> Iterator[None]:
        """While a batch runs, what it draws from stays in memory. After the weights are as it wants them."""
        before = self._pinned
        with self._sources.holding() as self._pinned:
            try:
                yield
            finally:
                self._pinned = before

    @contextmanager
    def _during(self, phase: str) -> Iterator[None]:
        """Time what is within. A close clock also counts its forwards, and the tokens that they take in."""
        with ExitStack() as counting:
            if self.clock.close:
                hook = self._loaded.model.register_forward_pre_hook(self._count, with_kwargs=True)
                counting.callback(hook.remove)
            with self.clock.during(phase):
                yield

    def _count(self, module: object, args: object, given: Mapping[str, torch.Tensor]) -> None:
        self.clock.count("forwards")
        self.clock.count("tokens_in", given["input_ids"].numel())

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

    def _bench(self, changed: Constant | None, rows: Sequence[ScoreRow], probes: Sequence[Probe]) -> Bench:
        """What rows of some weights are measured with, once the model has them."""
        return Bench(
            self._loaded,
            self._board,
            self._sources,
            self._plan,
            self._prepare,
            self._scored_tokens(rows, probes),
            apart=changed is not None,
            unpatched=lambda: self._without(changed),
        )

    def _decode(
        self, plans: Mapping[int, RowPlan], start: Start | None, together: int | None
    ) -> Iterator[tuple[int, Decoded]]:
        recorded = self._prepare(list(plans.values()), together)
        cached = [index for index, plan in plans.items() if not plan.row.recompute]
        anew = [index for index, plan in plans.items() if plan.row.recompute]
        if anew and start is not None:
            raise BackendError("start: rows that recompute have no cache to start from")
        # Rows that recompute begin their whole context anew at every step, which none can enter between.
        for chosen in (cached, *_parts(anew, together)):
            if not chosen:
                continue
            batch = [plans[index] for index in chosen]
            places = (self._loaded, self._board, self._sources, batch, recorded)
            if chosen is cached:
                outcome = generate(*places, start=start, together=together, stepping=self._stepping)
            else:
                outcome = regenerate(*places)
            found = receipts(self._loaded, batch, outcome)
            for index, result in zip(chosen, decoded(batch, outcome, found), strict=True):
                keys = [recording_key(plans[index], item) for item in plans[index].writes]
                margins = [recorded[key].margin for key in keys if key is not None]
                yield index, replace(result, min_margin=min([result.min_margin, *margins]))

    def _room(self, longest: int) -> int:
        """How many tokens of prompts of up to `longest` a capture may take in at once."""
        return max(1, self.footprint.prompt_tokens(longest) // SHARE)

    def _scored_tokens(self, rows: Sequence[ScoreRow], probes: Sequence[Probe]) -> int:
        """How many tokens may be scored at once, by probes that run texts of their own."""
        if all(probe.kind not in ("perplexity", "patchscope") for probe in probes):
            return 1
        longest = max((len(row.row.ids) + len(row.continuation) for row in rows), default=1)
        return max(1, self.footprint.scored_tokens(longest) // SHARE)

    def _plan(self, row: Row) -> RowPlan:
        """Raises PositionError where the row cannot be run as asked."""
        return plan_for(row, self._loaded.windows, self.info.heads)

    def _prepare(self, plans: Sequence[RowPlan], together: int | None = None) -> Recorded:
        """Capture and generate what these rows draw from, `together` rows at once. What is generated comes
        first: it draws from captures of its own, which may take the place of others."""
        with self.clock.during("capture"):
            recorded = self._record(plans, together)
            self._capture_sources(plans)
        return recorded

    def _capture_sources(self, plans: Sequence[RowPlan]) -> None:
        assert self._pinned is not None
        ensure_sources(self._loaded, self._board, self._sources, plans, self._room, self._pinned)

    def _record(self, plans: Sequence[RowPlan], together: int | None) -> Recorded:
        """For `hold: lockstep`: generate from each donor with the row's own stream and sampling, and keep the
        activations of the donor's t-th new token. A donor whose first token ends its text has none."""
        wanted: dict[RecordingKey, set[Spot]] = {}
        for plan in plans:
            for item in plan.writes:
                key = recording_key(plan, item)
                if key is not None:
                    spots = wanted.setdefault(key, set())
                    spots.update(item.spot(layer) for layer in item.write.layers)
        found: dict[RecordingKey, Recording] = {}
        for part in _parts(list(wanted), together):
            recorder = Recorder(frozenset().union(*(wanted[key] for key in part)))
            batch = [plan_row(run.row(sampling, stream)) for run, stream, sampling in part]
            within = self._prepare(batch, together)
            outcome = generate(self._loaded, self._board, self._sources, batch, within, recorder)
            kept = outcome.progress.forwards.tolist()
            margins = outcome.progress.margin.tolist()
            for index, key in enumerate(part):
                found[key] = Recording(
                    {spot: recorder.rows(spot, index, kept[index], self._loaded) for spot in wanted[key]},
                    margins[index],
                )
        return found
