"""What a loaded model may take of memory, and what its batches do take: measured on the model itself."""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from backends.contract import Footprint
from backends.measures import ScoreRow
from backends.rowplan import plan_row
from backends.rows import GREEDY, Row, Sampling
from backends.torch.budget import default_budget, host_share
from backends.torch.forward import new_cache
from backends.torch.generate import generate
from backends.torch.hooks import Board
from backends.torch.loading import Loaded
from backends.torch.sampling import Sampler
from backends.torch.score.continuations import perplexity
from backends.torch.sources import Sources

ROWS = 2
LENGTHS = (
    8,
    40,
    104,
)  # of the prompts measured: far enough apart to tell masks and scores, which grow squared
SHORT = (4, 12, 28)  # on a CPU that a large model keeps busy for seconds
LARGE = 3 * 10**8  # parameters
DRAWN = 1 << 18  # logits of the rows whose tokens are drawn
NEW = 2  # tokens generated, the second by a decode forward
FIRST_DECODE = 3  # the first forward after the prompt's and that of its last token
# Captures take one part in so many of the budget. On a CPU they go to the disk, whose pages the system keeps
# while it can; on a GPU they would go to the CPU's memory.
CAPTURES = {"cpu": 16, "cuda": 4}


class Memory:
    """The budget of a loaded model, and the footprint of its batches; shared by the backends of all
    threads."""

    def __init__(self, loaded: Loaded, budget: int | None) -> None:
        """budget in bytes; None: a share of what is free now (`backends.torch.budget`)."""
        devices = list(dict.fromkeys(device for device, _ in loaded.layer_places))
        self._lock = threading.Lock()
        self._footprint: Footprint | None = None
        self._host = host_share()
        self.budget = default_budget(devices) if budget is None else budget
        self._captures = self.budget // CAPTURES.get(loaded.device.type, 4)

    def footprint(self, loaded: Loaded) -> Footprint:
        """Measured when it is first asked for; loaded: the model, in modules that nobody runs now."""
        with self._lock:
            if self._footprint is None:
                self._footprint = measured(loaded, self.budget - self._captures)
            return self._footprint

    def store(self) -> Sources:
        """An empty store of captures with its share of the budget."""
        return Sources(self._captures, self._host)


@torch.inference_mode()
def measured(loaded: Loaded, budget: int) -> Footprint:
    """Bytes of batches of a model. A few short ones are run; how the most that is alive in them grows with
    the length of their prompts is what any batch needs."""
    gauge = CudaGauge(loaded) if loaded.device.type == "cuda" else HostGauge(loaded)
    lengths = _lengths(loaded)
    if loaded.device.type == "cuda":
        _decoded(loaded, gauge, lengths[0])  # so that libraries have their workspaces
    begun, stepped = zip(*(_decoded(loaded, gauge, length) for length in lengths), strict=True)
    cached = _cached(loaded)
    # In decode: a part of each row, and one of each token that its cache holds.
    by_token = max(cached, (stepped[2] - stepped[0]) / (lengths[2] - lengths[0]))
    by_row = max(each - by_token * (n + NEW) for each, n in zip(stepped, lengths, strict=True))
    # Before it: the square through the three points, the slots of new tokens aside.
    points = [each - cached * NEW for each in begun]
    near, far = ((points[at + 1] - points[at]) / (lengths[at + 1] - lengths[at]) for at in range(2))
    by_pair = max(0.0, (far - near) / (lengths[2] - lengths[0]))
    by_prompt_token = max(cached, near - by_pair * (lengths[0] + lengths[1]))
    by_prompt = max(
        each - by_prompt_token * n - by_pair * n * n for each, n in zip(points, lengths, strict=True)
    )
    # A text that is scored: both for each of its tokens, the second with its length.
    short, long = (_scored(loaded, gauge, n) for n in lengths[::2])
    by_scored_pair = max(0.0, (long - short) / (lengths[2] - lengths[0]))
    return Footprint(
        bytes_per_token=math.ceil(by_token),
        bytes_per_row=math.ceil(max(by_row, _drawn(loaded, gauge))),
        budget=budget,
        bytes_per_prompt=max(0, math.ceil(by_prompt)),
        bytes_per_prompt_token=math.ceil(by_prompt_token),
        bytes_per_pair=math.ceil(by_pair),
        bytes_per_scored_token=math.ceil(short - by_scored_pair * lengths[0]),
        bytes_per_scored_pair=math.ceil(by_scored_pair),
    )


def _lengths(loaded: Loaded) -> tuple[int, int, int]:
    on_cpu = loaded.device.type == "cpu"
    short, middle, long = SHORT if on_cpu and loaded.info.parameters > LARGE else LENGTHS
    room = max(12, loaded.info.context - NEW)
    return (short, middle, long) if long <= room else (room // 6, room // 2, room)


def _prompt(loaded: Loaded, row: int, length: int) -> tuple[int, ...]:
    """A prompt that no other row has: equal ones would be run once."""
    return tuple((row + 3 * at) % loaded.info.vocabulary for at in range(length))


def _decoded(loaded: Loaded, gauge: Gauge, length: int) -> tuple[float, float]:
    """The most that was alive for each row of a batch with prompts of a length: until it decodes, and while
    it does."""
    sampling = Sampling(0.0, NEW)
    rows = [Row(_prompt(loaded, row, length), sampling, stream=row) for row in range(ROWS)]
    until: list[int] = []
    forwards = 0

    def count(*_: object) -> None:
        nonlocal forwards
        forwards += 1
        if forwards == FIRST_DECODE:
            until.append(gauge.lap())

    hook = loaded.model.register_forward_pre_hook(count)
    try:
        with gauge:
            chooser = Sampler.of(rows, loaded.info.vocabulary, loaded.device)  # so that no text ends early
            plans = [plan_row(row) for row in rows]
            generate(loaded, Board(loaded), Sources(0), plans, {}, chooser=chooser)
            after = gauge.lap()
    finally:
        hook.remove()
    return (until[0] if until else after) / ROWS, after / ROWS


def _cached(loaded: Loaded) -> int:
    """Bytes of one token in the cache."""
    cache = new_cache(loaded, 1, 1)
    layers = [cache.slot_layer(layer) for layer in range(loaded.info.layers)]
    both = [each for layer in layers for each in (layer.keys, layer.values) if each is not None]
    return sum(each.numel() * each.element_size() for each in both)


def _drawn(loaded: Loaded, gauge: Gauge) -> float:
    """The most that was alive for each row while tokens are drawn, top_k and top_p among them, which take
    most. Rows are many, for the noise is made for some at a time."""
    count = max(ROWS, DRAWN // loaded.info.vocabulary)
    rows = [Row((0,), Sampling(1.0, 1, top_k=2, top_p=0.9), stream=row) for row in range(count)]
    with gauge:
        logits = torch.zeros(count, loaded.info.vocabulary, dtype=loaded.model.dtype, device=loaded.device)
        Sampler.of(rows, loaded.info.vocabulary, loaded.device).draw(logits, 0)
        return gauge.lap() / count


def _scored(loaded: Loaded, gauge: Gauge, length: int) -> float:
    """The most that was alive for each token of texts of a length whose perplexity is measured."""
    rows = [
        ScoreRow(Row(_prompt(loaded, row, 1), GREEDY), _prompt(loaded, row + ROWS, length - 1), {}, {})
        for row in range(ROWS)
    ]
    with gauge:
        perplexity(loaded, rows, ROWS * length)
        return gauge.lap() / (ROWS * length)


class Gauge(Protocol):
    """Watches, as a context, how many bytes of tensors are alive that were not before."""

    def __enter__(self) -> object: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    def lap(self) -> int:
        """The most since the context began, or since the lap before."""
        ...


class HostGauge(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the storages that this thread's operations make, each once whatever views there are of it, until
    they are freed. What an operation allocates on the inside is not seen, but for those of `_INSIDE`."""

    def __init__(self, loaded: Loaded) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        weights = (*loaded.model.parameters(), *loaded.model.buffers())
        self._weights = {each.untyped_storage()._cdata for each in weights}
        self._alive: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self._now = self._most = 0

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: object,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        found = func(*args, **({} if kwargs is None else kwargs))
        if func in _INSIDE:
            self._most = max(self._most, self._now + args[0].numel() * args[0].element_size())
        for tensor in found if isinstance(found, tuple | list) else (found,):
            if isinstance(tensor, torch.Tensor):
                self._meet(tensor.untyped_storage())
        return found

    def _meet(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if size == 0 or key in self._alive or key in self._weights:
            return

        def freed(_: object) -> None:
            if self._alive.pop(key, None) is not None:
                self._now -= size

        self._alive[key] = weakref.ref(storage, freed)
        self._now += size
        self._most = max(self._most, self._now)

    def __enter__(self) -> HostGauge:
        self._alive.clear()
        self._now = self._most = 0
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def lap(self) -> int:
        most, self._most = self._most, self._now
        return most


# Their kernels make one more tensor as large as what they are given.
_INSIDE = (torch.ops.aten.logsumexp.default,)


class CudaGauge:
    """Asks the allocator of every device that the model is on."""

    def __init__(self, loaded: Loaded) -> None:
        self._devices = list(dict.fromkeys(device for device, _ in loaded.layer_places))
        self._before = 0

    def __enter__(self) -> CudaGauge:
        for device in self._devices:
            torch.cuda.synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
        self._before = sum(torch.cuda.memory_allocated(device) for device in self._devices)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        return None

    def lap(self) -> int:
        most = sum(torch.cuda.max_memory_allocated(device) for device in self._devices) - self._before
        for device in self._devices:
            torch.cuda.reset_peak_memory_stats(device)
        return most
