"""Several batches at the same time: how trials are shared out, what becomes of batches that fail, and that
results do not depend on who computed them."""

from __future__ import annotations

import math
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event, Thread
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from backends.clock import Clock
from backends.contract import BackendError, Footprint, OutOfMemory, Stopped
from backends.rows import Decoded, Row, Sampling
from backends.torch.backend import TorchBackend
from backends.torch.beside import twin, usable_cores, workers_for
from backends.torch.loading import SMALL_WIDTH
from backends.writes import Constant
from runner.config.readouts.readout import Readout
from runner.execute import Executor, Result
from runner.plan import Trial
from runner.prepare import prepare
from runner.schedule import LEAST_ROWS, MOST_TRIALS, Batch, batches
from tests.configuring import design, faults
from tests.models import CPU, SAMPLED, make_model, prompt, write

AMPLE = Footprint(bytes_per_token=1, bytes_per_row=1, budget=1 << 40)
TEXT = (Readout("degenerate", "degenerate", 1, {"degenerate": "number", "degenerate.run": "number"}),)


EXACT = ("output_ids", "text", "n_new", "finish", "reason")


def trial(number: int, prompt: int = 8, weights: Constant | None = None, recompute: bool = False) -> Trial:
    """A made-up trial: its prompt has so many tokens, its number says which it is."""
    row = Row((number,) * prompt, Sampling(0.0, 4), stream=number, weights=weights, recompute=recompute)
    key = f"{number:032x}"
    return Trial(key, "c", str(number), 0, "d", "t", "g", row, {}, None, more=4)


def sizes(found: Iterable[Batch]) -> list[int]:
    return [len(batch.trials) for batch in found]


# ---------------------------------------------------------------- how trials are shared out


def test_workers_get_equal_shares_and_the_last_batches_are_small() -> None:
    trials = [trial(number) for number in range(1000)]
    found = list(batches(trials, AMPLE, 1024, workers=2))
    assert sorted(t.key for batch in found for t in batch.trials) == sorted(t.key for t in trials)
    assert sizes(found) == sorted(sizes(found), reverse=True) and sizes(found)[:2] == [500, 250]
    assert min(sizes(found)) >= LEAST_ROWS // 2
    assert sizes(batches(trials, AMPLE, 1024)) == [1000]
    few = trials[: 2 * LEAST_ROWS - 1]
    assert len(list(batches(few, AMPLE, 1024, workers=2))) == 1, "too few for two to gain anything"
    assert sizes(batches(trials[: 2 * LEAST_ROWS], AMPLE, 1024, workers=2)) == [LEAST_ROWS, LEAST_ROWS]


def test_the_longest_come_first_and_trials_of_a_prompt_stand_together() -> None:
    lengths = [5, 9, 5, 7, 9, 9]
    trials = [trial(number % 3, prompt) for number, prompt in enumerate(lengths)]
    (batch,) = batches(trials, AMPLE, None)
    ids = [each.row.ids for each in batch.trials]
    assert list(map(len, ids)) == [9, 9, 9, 7, 5, 5]
    assert all(len(list(run)) == 1 for run in runs_of(ids).values())


def runs_of(things: Sequence[Any]) -> dict[Any, list[int]]:
    """Where runs of equal neighbours begin, by what they are of."""
    found: dict[Any, list[int]] = {}
    for at, each in enumerate(things):
        if at == 0 or things[at - 1] != each:
            found.setdefault(each, []).append(at)
    return found


def test_as_many_run_at_once_as_fit_in_a_workers_share_of_the_budget() -> None:
    trials = [trial(number) for number in range(100)]
    room = Footprint(bytes_per_token=10, bytes_per_row=80, budget=200 * 16)  # a row: 12 tokens, 200 bytes
    whole = next(batches(trials, room, None))
    assert whole.together == 16 and len(whole.trials) == 64
    assert next(batches(trials, room, None, workers=2)).together == 8
    assert sizes(batches(trials, room, None, entering=False)) == [16] * 6 + [4]
    anew = [trial(number, recompute=True) for number in range(20)]
    assert sizes(batches(anew, room, None)) == [16, 4], "rows without a cache do not enter"
    many = [trial(number) for number in range(3 * MOST_TRIALS)]
    assert max(sizes(batches(many, AMPLE, None))) == MOST_TRIALS
    assert next(batches(many, AMPLE, 7)).together == 7
    none = Footprint(bytes_per_token=10, bytes_per_row=80, budget=1)
    assert {batch.together for batch in batches(trials, none, None)} == {1}


def test_fewer_rows_at_once_make_smaller_batches_of_the_same_trials() -> None:
    trials = tuple(trial(number) for number in range(32))
    assert Batch(trials, 8).within(8) == [Batch(trials, 8)] == Batch(trials, 8).within(None)
    parts = Batch(trials, 8).within(4)
    assert [(len(p.trials), p.together) for p in parts] == [(16, 4), (16, 4)]
    assert tuple(t for part in parts for t in part.trials) == trials
    assert sizes(Batch(trials[:5], 5).halves()) == [3, 2]


# ------------------------------------------------------------------- what becomes of batches


Fails = Callable[["MadeBackend", Sequence[Row]], None]


@dataclass
class MadeBackend:
    """A backend that generates the row's own number, and fails where it is told to. fails: called with each
    batch's rows before anything is done, on the thread that runs it. most: the rows for which there is memory
    at once. seen: of each batch who ran it, rows, rows at once, and which."""

    fails: Fails
    workers: int = 2
    footprint: Footprint = AMPLE
    stop: Event | None = None
    most: int | None = None
    seen: list[tuple[str, int, int | None, tuple[int, ...]]] = field(default_factory=list)
    running: list[str] = field(default_factory=list)
    overlaps: list[tuple[str, ...]] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    done: list[int] = field(default_factory=list)
    clock: Clock = field(default_factory=Clock)

    def beside(self, stop: Event | None = None) -> MadeBackend:
        both = (self.seen, self.running, self.overlaps, self.changed, self.done)
        return MadeBackend(self.fails, 1, self.footprint, stop, self.most, *both)

    @contextmanager
    def orthogonalised(self, direction: np.ndarray) -> Iterator[None]:
        assert not self.running
        self.changed.append("on")
        yield
        self.changed.append("off")

    def decode(self, rows: Sequence[Row], start: None = None, together: int | None = None) -> list[Decoded]:
        who = threading.current_thread().name
        self.running.append(who)
        self.overlaps.append(tuple(self.running))
        self.seen.append((who, len(rows), together, tuple(row.stream for row in rows)))
        try:
            with self.clock.during("decode"):
                self.fails(self, rows)
            if self.most is not None and (len(rows) if together is None else together) > self.most:
                raise OutOfMemory("no room")
            if self.stop is not None and self.stop.is_set():
                raise Stopped
        finally:
            self.running.remove(who)
        self.done += [row.stream for row in rows]
        return [Decoded((row.stream,), "length", {}, 1.0, len(rows), 8) for row in rows]


@dataclass
class Watching:
    done: int = 0
    notes: list[str] = field(default_factory=list)
    failures: list[tuple[str, str]] = field(default_factory=list)
    threads: set[str] = field(default_factory=set)

    def advanced(self, trials: int, tokens: int) -> None:
        self.threads.add(threading.current_thread().name)
        self.done += trials

    def failed(self, trial: Trial, error: str) -> None:
        self.failures.append((trial.item, error))

    def note(self, sentence: str) -> None:
        self.notes.append(sentence)


@dataclass
class Run:
    """An executor on a made-up backend, and what it recorded."""

    fails: Fails
    workers: int = 2
    most_rows: int | None = 8
    results: list[Result] = field(default_factory=list)
    watcher: Watching = field(default_factory=Watching)

    def __post_init__(self) -> None:
        self.backend = MadeBackend(self.fails, self.workers)
        tokenizer: Any = SimpleNamespace(decode=lambda ids: " ".join(map(str, ids)))
        made: Any = (self.backend, tokenizer, TEXT, self._record, self.watcher, self.most_rows)
        self.executor = Executor(*made)

    def _record(self, results: Iterable[Result]) -> None:
        assert threading.current_thread() is threading.main_thread()
        self.results += results

    def of(self, status: str) -> list[int]:
        return sorted(int(result["key"], 16) for result in self.results if result["status"] == status)


def nothing(on: MadeBackend, rows: Sequence[Row]) -> None:
    """All is well."""


def test_workers_run_at_the_same_time_and_the_main_thread_records() -> None:
    both = threading.Barrier(2, timeout=10)
    run = Run(lambda on, rows: both.wait() and None, most_rows=16)
    run.executor.run([trial(number) for number in range(128)])
    assert run.of("ok") == list(range(128)) and run.watcher.done == 128
    assert {who for who, *_ in run.backend.seen} == {"worker 0", "worker 1"}
    assert run.watcher.threads == {threading.main_thread().name}
    assert all(result["text"] == str(int(result["key"], 16)) for result in run.results)
    assert run.backend.clock.times["decode"] > 0 and run.backend.clock.times["store"] > 0


def test_one_batch_makes_no_threads() -> None:
    run = Run(nothing)
    run.executor.run([trial(number) for number in range(20)])
    assert [who for who, *_ in run.backend.seen] == [threading.main_thread().name]
    assert run.of("ok") == list(range(20))


def test_a_trial_that_raises_fails_alone() -> None:
    def fails(on: MadeBackend, rows: Sequence[Row]) -> None:
        if any(row.stream in (3, 77) for row in rows):
            raise RuntimeError("a hook that raises")

    run = Run(fails)
    run.executor.run([trial(number) for number in range(128)])
    assert run.of("failed") == [3, 77] and len(run.of("ok")) == 126
    assert sorted(run.watcher.failures) == [
        ("3", "RuntimeError: a hook that raises"),
        ("77", "RuntimeError: a hook that raises"),
    ]


def test_out_of_memory_in_workers_is_remembered_for_all_later_batches_and_runs() -> None:
    run = Run(nothing)
    run.backend.most = 2
    run.executor.run([trial(number) for number in range(200)])
    assert run.of("ok") == list(range(200)) and run.executor.most_rows == 2
    assert run.watcher.notes == [
        "out of memory with 8 rows; going on with 4",
        "out of memory with 4 rows; going on with 2",
    ]
    before = len(run.backend.seen)
    run.executor.run([trial(number) for number in range(200, 300)])
    assert {together for _, _, together, _ in run.backend.seen[before:]} == {2}
    assert len(run.watcher.notes) == 2


def test_a_single_row_that_does_not_fit_is_a_failed_trial() -> None:
    def fails(on: MadeBackend, rows: Sequence[Row]) -> None:
        if any(row.stream == 5 for row in rows):
            raise OutOfMemory("no room at all")

    run = Run(fails)
    run.executor.run([trial(number) for number in range(100)])
    assert run.of("failed") == [5] and len(run.of("ok")) == 99
    assert run.watcher.failures == [("5", "out of memory with a single row: no room at all")]


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT as at a terminal: a process that was started in the background may ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_interrupted_while_two_are_running() -> None:
    """The batch that is done is recorded, the other is given up at its next step."""
    both = threading.Barrier(2, timeout=10)

    def fails(on: MadeBackend, rows: Sequence[Row]) -> None:
        if len(run.backend.seen) <= 2 and not run.backend.done:
            both.wait()
        if any(row.stream == 0 for row in rows):
            os.kill(os.getpid(), signal.SIGINT)
            assert on.stop is not None and on.stop.wait(10)  # a long step

    run = Run(fails)
    with pytest.raises(KeyboardInterrupt):
        run.executor.run([trial(number) for number in range(400)])
    assert run.backend.done and run.of("ok") == sorted(run.backend.done)
    assert not run.backend.running
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("worker")]


def test_what_was_done_when_a_backend_error_ended_the_run_is_recorded() -> None:
    broken = threading.Event()

    def fails(on: MadeBackend, rows: Sequence[Row]) -> None:
        if any(row.stream == 0 for row in rows):
            broken.set()
            raise BackendError("the device is gone")
        assert broken.wait(10)

    run = Run(fails)
    with pytest.raises(BackendError, match="the device is gone"):
        run.executor.run([trial(number) for number in range(300)])
    assert 0 not in run.of("ok") and len(run.backend.seen) <= 3


@pytest.mark.parametrize("error", [SystemExit(3), MemoryError("none")])
def test_no_exception_of_a_worker_is_lost(error: BaseException) -> None:
    def fails(on: MadeBackend, rows: Sequence[Row]) -> None:
        if any(row.stream == 9 for row in rows):
            raise error

    run = Run(fails)
    trials = [trial(number) for number in range(128)]
    if isinstance(error, Exception):
        run.executor.run(trials)
        assert run.of("failed") == [9] and len(run.of("ok")) == 127
    else:
        with pytest.raises(SystemExit):
            run.executor.run(trials)


def test_what_cannot_be_recorded_ends_the_run() -> None:
    run = Run(nothing)

    def full(results: Iterable[Result]) -> None:
        raise OSError("no space left")

    run.executor.record = full
    with pytest.raises(OSError, match="no space left"):
        run.executor.run([trial(number) for number in range(128)])
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("worker")]


def test_batches_that_change_the_weights_run_alone_and_last() -> None:
    out = Constant("v", np.ones(4, dtype=np.float32))
    run = Run(lambda on, rows: time.sleep(0.002))
    run.executor.run([trial(number, weights=out if number % 4 == 0 else None) for number in range(200)])
    assert run.of("ok") == list(range(200)) and run.backend.changed == ["on", "off"]
    main = threading.main_thread().name
    own = [number for who, _, _, streams in run.backend.seen if who == main for number in streams]
    assert sorted(own) == list(range(0, 200, 4))
    assert all(len(set(overlap)) == 1 for overlap in run.backend.overlaps if main in overlap)


# ------------------------------------------------------------------- backends beside each other


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> TorchBackend:
    source = make_model(tmp_path_factory.mktemp("beside"))
    return TorchBackend(source, replace(CPU, workers=3, threads=1))


def rows_of(number: int) -> list[Row]:
    rng = random.Random(5)
    writes = [(), (write("kv", "kv_cache"),), (write("v", "v_proj", (1, 2), during="both", hold="cycle"),)]
    return [
        Row(
            prompt(rng, rng.randint(5, 9)),
            SAMPLED,
            writes[index % 3],
            {"donor": prompt(rng, 7)},
            stream=index,
        )
        for index in range(number)
    ]


def test_weights_are_shared_hooks_and_blocks_are_not(backend: TorchBackend) -> None:
    one, other = backend._loaded, backend.beside()._loaded
    assert one.model is not other.model and one.info == other.info
    ours, theirs = dict(one.model.named_parameters()), dict(other.model.named_parameters())
    assert ours.keys() == theirs.keys() and all(ours[name] is theirs[name] for name in ours)
    buffers = dict(other.model.named_buffers())
    assert all(buffers[name] is each for name, each in one.model.named_buffers())
    assert not {id(module) for module in one.model.modules()} & {id(m) for m in other.model.modules()}
    assert [block is each for block, each in zip(other.blocks, other.model.model.layers, strict=True)]
    rows, beside = rows_of(3), backend.beside()
    before = backend.decode(rows)
    called: list[str] = []
    handle = one.blocks[0].register_forward_hook(lambda *_: called.append("one"))
    whole, one.model.model.layers = one.model.model.layers, torch.nn.ModuleList()
    found = beside.decode(rows)
    one.model.model.layers = whole
    handle.remove()
    assert found == before and not called


def test_a_tied_head_stays_tied(tmp_path: Path) -> None:
    source = make_model(tmp_path, "gpt2")
    loaded = TorchBackend(source, CPU)._loaded
    other = twin(loaded, None).model
    assert other.lm_head.weight is other.transformer.wte.weight is loaded.model.lm_head.weight


def test_threads_beside_each_other_give_what_one_gives(backend: TorchBackend) -> None:
    rows = rows_of(24)
    alone = backend.decode(rows)
    found: dict[int, list[Decoded]] = {}

    def decode(place: int, own: TorchBackend) -> None:
        found[place] = own.decode(rows[place::3], together=4)

    threads = [Thread(target=decode, args=(place, backend.beside())) for place in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for place in range(3):
        for ours, theirs in zip(found[place], alone[place::3], strict=True):
            assert (ours.output_ids, ours.finish, ours.invalid) == (theirs.output_ids, theirs.finish, None)
            assert ours.receipts.keys() == theirs.receipts.keys()


def test_a_backend_that_is_stopped_gives_up_at_its_next_forward(backend: TorchBackend) -> None:
    stop = Event()
    own = backend.beside(stop)
    assert own.decode(rows_of(1))
    stop.set()
    with pytest.raises(Stopped):
        own.decode(rows_of(1))
    assert backend.decode(rows_of(1)), "the one it was made from goes on"


def test_one_worker_for_each_core_where_a_model_is_small(backend: TorchBackend) -> None:
    small = backend._loaded
    large = replace(small, info=replace(small.info, width=SMALL_WIDTH + 1))
    assert workers_for(None, None, small, 4) == 4 and workers_for(None, 2, small, 5) == 2
    assert workers_for(None, 4, small, 2) == 1 and workers_for(None, None, large, 4) == 1
    assert workers_for(3, None, large, 1) == 3 == backend.workers
    gpu = replace(small, device=torch.device("cuda", 0))
    assert workers_for(None, None, gpu, 4) == 1 == workers_for(1, None, gpu, 4)
    with pytest.raises(BackendError, match=r"backend\.workers: expected 1 or null on cuda:0"):
        workers_for(2, None, gpu, 4)


@pytest.mark.parametrize(
    ("quota", "cores"), [("100000 100000", 1), ("50000 100000", 1), ("max 100000", None), (None, None)]
)
def test_cores_are_those_that_the_container_may_use(
    quota: str | None, cores: int | None, tmp_path: Path
) -> None:
    path = tmp_path / "cpu.max"
    if quota is not None:
        path.write_text(quota + "\n")
    bound = len(os.sched_getaffinity(0))
    assert usable_cores(path) == (bound if cores is None else cores)


def test_several_workers_are_refused_where_one_device_runs_all_batches() -> None:
    for words, told in (
        ("backend.device=cuda:1", "device cuda:1"),
        ("backend.device_map=auto", "device_map auto"),
    ):
        said = faults("+experiment=n300_kv_only", "backend.workers=2", words)
        assert "backend.workers: expected 1 or null" in said and told in said
    assert "expected more than 0" in faults("+experiment=n300_kv_only", "backend.workers=0")


def test_results_do_not_depend_on_who_computed_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same tokens, receipts and scores, in batches of any size."""
    words = ("+experiment=n300_kv_only", "limit=12", "sampling.max_new_tokens=12", "backend.threads=1")
    prepared = prepare(design(*words), None)
    found: dict[int, dict[str, Result]] = {}
    for workers, most_rows in ((1, None), (2, 6), (3, 5)):
        monkeypatch.setattr(prepared.backend, "workers", workers)
        results: list[Result] = []
        made = (prepared.backend, prepared.tokenizer, prepared.design.measured, results.extend, Watching())
        executor = Executor(*made, most_rows)
        shared = list(executor.batches(prepared.plan.trials))
        assert len(shared) >= workers
        how = "one after the other" if workers == 1 else f"{workers} at the same time"
        assert how in executor.in_words(shared)
        executor.run_batches(shared)
        found[workers] = {result["key"]: result for result in results}
        assert len(found[workers]) == 72 and {result["status"] for result in results} == {"ok"}
    for workers in (2, 3):
        for key, result in found[1].items():
            other = found[workers][key]
            assert [result[name] for name in EXACT] == [other[name] for name in EXACT]
            assert result["scores"] == pytest.approx(other["scores"], rel=1e-4)
            for ours, theirs in zip(result["receipts"], other["receipts"], strict=True):
                told = {name: math.nan if value is None else value for name, value in theirs.items()}
                own = {name: math.nan if value is None else value for name, value in ours.items()}
                assert own == pytest.approx(told, rel=1e-3, abs=1e-6, nan_ok=True)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_while_results_are_stored_waits_until_they_are() -> None:
    run = Run(nothing)

    def interrupted(results: Iterable[Result]) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        run.results += results

    run.executor.record = interrupted
    with pytest.raises(KeyboardInterrupt):
        run.executor.run([trial(number) for number in range(200)])
    done = run.of("ok")
    assert done == sorted(set(done)) == sorted(run.backend.done), "each once"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
