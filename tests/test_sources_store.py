"""The store of captures: shared by threads, each capture made once, moved out of memory and back."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from backends.positions import Positions
from backends.rows import Row, SourceRun
from backends.torch.backend import TorchBackend
from backends.torch.footprint import Memory
from backends.torch.sources import Sources
from backends.torch.spill import Spill, roomy_folder
from backends.writes import PromptSet, Under, Value, Write
from tests.models import CPU, GREEDY, SAMPLED, make_model, prompt, write

ALL = Positions.parse("all")


def run_of(number: int) -> SourceRun:
    return SourceRun((number, 1, 2))


def tensors(seed: int, dtype: torch.dtype = torch.float32) -> dict[tuple[str, int], torch.Tensor]:
    made = torch.Generator().manual_seed(seed)
    found = torch.randn(3, 5, generator=made).to(dtype)
    found[0, 0] = torch.nan
    return {("resid_pre", 0): found, ("keys", 1): torch.randn(2, 3, 4, generator=made).to(dtype)}


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> TorchBackend:
    return TorchBackend(make_model(tmp_path_factory.mktemp("llama")), CPU)


def fresh(backend: TorchBackend, sources: Sources) -> TorchBackend:
    """The backend with another store."""
    other = backend.beside()
    other._sources = sources
    return other


@contextmanager
def counted(*backends: TorchBackend) -> Iterator[Counter[tuple[int, ...]]]:
    """How often each prompt is prefilled, whole or but for its last token, in any of the backends."""
    seen: Counter[tuple[int, ...]] = Counter()
    lock = threading.Lock()

    def look(module: object, args: object, given: dict[str, torch.Tensor]) -> None:
        if given["input_ids"].shape[1] > 1:
            with lock:
                seen.update(tuple(ids) for ids in given["input_ids"].tolist())

    hooks = [
        each._loaded.model.register_forward_pre_hook(look, with_kwargs=True)  # type: ignore[arg-type]
        for each in backends
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def at_once(works: list[Callable[[], object]]) -> list[object]:
    """What each gives, all begun together in threads of their own. Raises what the first to fail raised."""
    gate = threading.Barrier(len(works))
    found: list[object] = [None] * len(works)
    failed: list[BaseException] = []

    def go(place: int) -> None:
        gate.wait()
        try:
            found[place] = works[place]()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=go, args=(place,), daemon=True) for place in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
        assert not thread.is_alive(), "a thread waits for ever"
    if failed:
        raise failed[0]
    return found


def rows_of(seed: int, writes: tuple[Write, ...], roles: tuple[str, ...] = ("donor",)) -> list[Row]:
    """Six rows over three donors, all prompts of one length, so that none is padded."""
    rng = random.Random(seed)
    donors = [
        {role: prompt(random.Random(100 + 10 * n + at), 9) for at, role in enumerate(roles)} for n in range(3)
    ]
    return [Row(prompt(rng, 9), SAMPLED, writes, donors[n % 3], stream=n) for n in range(6)]


def under(inner: Write) -> Value:
    return Value("source", "donor", under=Under((inner,)))


PLAIN = (write("w", "v_proj", positions="last:4"),)
NESTED = (
    replace(
        write("outer", "resid_post", (2,), positions="last:4"),
        value=under(
            replace(write("inner", "resid_post", (1,), positions="last:4"), value=Value("source", "other"))
        ),
    ),
)


@pytest.mark.parametrize(("writes", "roles"), [(PLAIN, ("donor",)), (NESTED, ("donor", "other"))])
def test_threads_that_need_the_same_donors_have_them_captured_once(backend, writes, roles):
    alone = [fresh(backend, Sources(1 << 30)).decode(rows_of(seed, writes, roles)) for seed in range(4)]
    store = Sources(1 << 30)
    crew = [fresh(backend, store) for _ in range(4)]
    with counted(*crew) as seen:
        found = at_once(
            [lambda each=each, s=s: each.decode(rows_of(s, writes, roles)) for s, each in enumerate(crew)]
        )
    for got, expected in zip(found, alone, strict=True):
        assert [each.output_ids for each in got] == [each.output_ids for each in expected]
    donors = {ids for row in rows_of(0, writes, roles) for ids in row.sources.values()}
    assert len(donors) == 3 * len(roles)
    assert {ids: seen[ids] for ids in donors} == dict.fromkeys(donors, 1)


def test_what_is_on_disk_is_not_captured_again_and_gives_the_same_tokens(backend, tmp_path):
    store = Sources(0, spill=Spill(tmp_path))
    small = fresh(backend, store)
    rows = rows_of(0, NESTED, ("donor", "other"))
    expected = fresh(backend, Sources(1 << 30)).decode(rows)
    with counted(small) as seen:
        assert small.decode(rows) == expected
        assert store.bytes_in()["near"] == 0 and store.bytes_in()["disk"] > 0
        once = Counter(seen)
        assert small.decode(rows) == expected
    donors = {ids for row in rows for ids in row.sources.values()}
    assert all(seen[ids] == once[ids] == 1 for ids in donors)


def test_without_room_on_the_disk_captures_are_made_again(backend, tmp_path):
    store = Sources(0, spill=Spill(tmp_path, most=0))
    small = fresh(backend, store)
    rows = rows_of(0, PLAIN)
    assert small.decode(rows) == small.decode(rows) == fresh(backend, Sources(1 << 30)).decode(rows)
    assert store.forgotten == 6


def test_of_a_cache_only_the_layers_and_parts_that_are_read_are_kept(backend):
    store = Sources(1 << 30)
    rows = rows_of(0, (write("w", "kv_cache", (1, 3), part="values"),))
    fresh(backend, store).decode(rows)
    kept = store.get(SourceRun(rows[0].sources["donor"])).sites
    assert set(kept) == {("values", 1), ("values", 3)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_captures_come_back_bit_for_bit_and_leave_nothing_in_the_folder(tmp_path, dtype):
    given = {run_of(n): tensors(n, dtype) for n in range(5)}
    one = sum(t.numel() * t.element_size() for t in given[run_of(0)].values())
    store = Sources(2 * one, spill=Spill(tmp_path))
    for run, sites in given.items():
        store.keep(run, sites)
    assert store.bytes_in() == {"near": 2 * one, "host": 0, "disk": 3 * one}
    assert list(tmp_path.iterdir()) == []  # the file has no name: a crash leaves nothing either
    assert store.missing({run: set(sites) for run, sites in given.items()}) == {}
    for run, sites in given.items():
        back = store.get(run).sites
        assert back.keys() == sites.keys()
        assert all(bits(back[spot]) == bits(sites[spot]) and back[spot].dtype == dtype for spot in sites)
    store.close()
    assert store.bytes_in() == {"near": 0, "host": 0, "disk": 0}
    assert store.missing({run_of(0): {("resid_pre", 0)}}) == {run_of(0): {("resid_pre", 0)}}


def test_what_has_been_on_disk_can_be_added_to(tmp_path):
    store = Sources(0, spill=Spill(tmp_path))
    first = tensors(0)
    store.keep(run_of(0), first)
    more = {("resid_post", 3): torch.arange(6.0).view(3, 2)}
    store.keep(run_of(0), more)
    found = store.get(run_of(0)).sites
    assert {spot: bits(tensor) for spot, tensor in found.items()} == {
        spot: bits(tensor) for spot, tensor in (first | more).items()
    }


def test_nothing_pinned_leaves_and_the_last_used_stays_longest(tmp_path):
    one = sum(t.numel() * t.element_size() for t in tensors(0).values())
    store = Sources(one, spill=Spill(tmp_path))
    with store.holding() as held, store.holding() as another:
        held.pin([run_of(0), run_of(1)])
        another.pin([run_of(1)])
        for n in range(3):
            store.keep(run_of(n), tensors(n))
        pinned = store.get(run_of(0)).sites
        assert store.bytes_in() == {"near": 2 * one, "host": 0, "disk": one}  # the third is not pinned
        another.let_go()
        assert store.bytes_in()["near"] == 2 * one  # the first batch still runs
        store.get(run_of(0))
        assert store.get(run_of(0)).sites is pinned
    assert store.bytes_in() == {"near": one, "host": 0, "disk": 2 * one}
    with store.holding() as held:
        held.pin([run_of(2)])
        assert store.bytes_in()["near"] == one  # it came back, and the one used before it left
    assert store.forgotten == 0


def test_what_one_thread_fails_to_capture_the_one_that_waits_for_it_captures():
    store = Sources(1 << 20)
    wanted = {run_of(0): {("resid_pre", 0), ("keys", 1)}}
    has_it, waits = threading.Event(), threading.Event()
    left: list[object] = []

    def fails() -> None:
        try:
            with store.capturing(wanted) as mine:
                assert mine == wanted
                has_it.set()
                assert waits.wait(10)
                raise MemoryError
        except MemoryError:
            left.append("failed")

    def follows() -> None:
        assert has_it.wait(10)
        with store.capturing(wanted) as mine:
            assert mine == {}
        waits.set()
        store.wait(wanted)
        left.append("waited")
        with store.capturing(store.missing(wanted)) as mine:
            store.keep(run_of(0), {spot: tensors(0)[spot] for spot in mine[run_of(0)]})

    at_once([fails, follows])
    assert "waited" in left and store.missing(wanted) == {}


def test_a_mean_is_taken_once_by_many_threads(backend, monkeypatch):
    from backends.torch import capture

    taken: list[object] = []
    average = capture._average
    monkeypatch.setattr(capture, "_average", lambda *args: (taken.append(args[3]), average(*args)))
    store = Sources(1 << 30)
    among = PromptSet(tuple(prompt(random.Random(n), 7) for n in range(4)))
    writes = (
        replace(write("w", "resid_post", (1,), positions="last:2"), value=Value("mean", prompts=among)),
    )
    rows = [replace(row, sampling=GREEDY) for row in rows_of(0, writes)]
    crew = [fresh(backend, store) for _ in range(3)]
    found = at_once([lambda each=each: each.decode(rows) for each in crew])
    assert found[0] == found[1] == found[2] and len(taken) == 1


def test_changed_weights_have_a_store_of_their_own_that_is_closed_with_them(backend, monkeypatch):
    made: list[Sources] = []
    store = Memory.store

    def kept(self: Memory) -> Sources:
        made.append(store(self))
        return made[-1]

    monkeypatch.setattr(Memory, "store", kept)
    rows = rows_of(0, PLAIN)
    direction = torch.randn(backend.info.width, generator=torch.Generator().manual_seed(0)).numpy()
    plain = backend.decode(rows)
    with backend.orthogonalised(direction):
        changed = backend.decode(rows)
        assert made[0].bytes_in()["near"] > 0
    assert made[0].bytes_in()["near"] == 0
    assert [each.output_ids for each in changed] != [each.output_ids for each in plain]
    assert backend.decode(rows) == plain


def test_a_folder_in_memory_is_no_place_for_what_memory_has_no_room_for(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    table = tmp_path / "mounts"
    table.write_text(f"/dev/sda / ext4 rw 0 0\ntmpfs {tmp_path.resolve()} tmpfs rw 0 0\n")
    assert roomy_folder(table) == Path("/var/tmp").resolve()
    table.write_text("/dev/sda / ext4 rw 0 0\n")
    assert roomy_folder(table) == tmp_path.resolve()
    table.write_text("tmpfs / tmpfs rw 0 0\n")
    assert roomy_folder(table) is None
    assert Spill().write(tensors(0)) is None or roomy_folder() is not None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_from_a_gpu_captures_go_to_the_cpu_then_to_disk_and_back_to_the_gpu(tmp_path):
    given = {run_of(n): {k: v.cuda() for k, v in tensors(n).items()} for n in range(3)}
    one = sum(t.numel() * t.element_size() for t in given[run_of(0)].values())
    store = Sources(one, one, Spill(tmp_path))
    for run, sites in given.items():
        store.keep(run, sites)
    assert store.bytes_in() == {"near": one, "host": one, "disk": one}
    for run, sites in given.items():
        back = store.get(run).sites
        assert all(
            back[spot].is_cuda and torch.equal(back[spot].nan_to_num(), sites[spot].nan_to_num())
            for spot in sites
        )
