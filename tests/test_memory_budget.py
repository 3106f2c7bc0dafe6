"""What batches need of memory, as measured on the model, and how much they may take."""

from __future__ import annotations

import random
import resource
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.autograd.profiler import profile

from backends.contract import Footprint, OutOfMemory
from backends.measures import Probe, ScoreRow
from backends.rows import Row, Sampling
from backends.torch import budget
from backends.torch.backend import TorchBackend, memory_as_ours
from tests.configuring import design, faults
from tests.models import CPU, make_model, prompt, write

GIB = 1 << 30


def most_allocated(work: Callable[[], object]) -> int:
    """The most bytes that torch's own allocator had given out at a time, beyond those before."""
    with profile(profile_memory=True, use_kineto=True) as found:
        work()
    now = most = 0
    for event in found.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most


def batch(rows: int, length: int, new: int, **more: object) -> list[Row]:
    sampling = Sampling(1.0, new, top_k=20, top_p=0.9)
    return [Row(prompt(random.Random(n), length), sampling, stream=n, **more) for n in range(rows)]


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {"num_hidden_layers": 2}),
        (
            "gemma2",
            {"num_hidden_layers": 2},
        ),  # eager attention: scores grow with the prompt squared
        ("gpt2", {"num_hidden_layers": 1, "vocab_size": 3000}),  # logits take more than the cache
        ("qwen3", {"num_hidden_layers": 6, "head_dim": 24}),  # the cache takes more than logits
    ],
)
def test_what_larger_batches_need_is_foretold(tmp_path, family, changes):
    backend = TorchBackend(make_model(tmp_path, family, eos_token_id=None, **changes), CPU)
    found = backend.footprint
    for rows, length, new in ((48, 40, 12), (20, 150, 3)):
        given = batch(rows, length, new)
        decoded = most_allocated(lambda given=given: backend.decode(given))
        assert 0.9 < found.of_batch(rows, length, new) / decoded < 1.6, (rows, length, new)
        scored = [ScoreRow(row, prompt(random.Random(1), new), {"some": (3,)}, {}) for row in given]
        read = Probe("next_token", "p", tokens="some")
        needed = most_allocated(lambda scored=scored, read=read: backend.score(scored, [read]))
        assert found.of_batch(rows, length, 1) / needed > 0.9, (rows, length)
        text = Probe("perplexity", "p")
        needed = most_allocated(lambda scored=scored, text=text: backend.score(scored, [text]))
        each = found.bytes_per_scored_token + (length + new) * found.bytes_per_scored_pair
        assert rows * (length + new) * each / needed > 0.9, (rows, length)


def test_rows_of_one_prompt_need_less_than_foretold_and_donors_no_more(tmp_path):
    backend = TorchBackend(make_model(tmp_path, eos_token_id=None), CPU)
    limit = backend.footprint.of_batch(48, 40, 12)
    same = [replace(row, ids=prompt(random.Random(0), 40)) for row in batch(48, 40, 12)]
    assert most_allocated(lambda: backend.decode(same)) < 0.9 * limit
    drawn = [
        replace(row, writes=(write("w", "v_proj"),), sources={"donor": prompt(random.Random(n % 8), 40)})
        for n, row in enumerate(batch(48, 40, 12))
    ]
    assert most_allocated(lambda: backend.decode(drawn)) < 1.1 * limit


def test_the_measurement_takes_a_few_short_forwards_once_and_leaves_nothing(tmp_path):
    backend = TorchBackend(make_model(tmp_path), CPU)
    seen: list[torch.Size] = []
    hook = backend._loaded.model.register_forward_pre_hook(
        lambda module, args, given: seen.append(given["input_ids"].shape), with_kwargs=True
    )
    first = backend.footprint
    assert len(seen) <= 11 and sum(shape.numel() for shape in seen) < 600
    assert backend.beside().footprint is backend.footprint is first and len(seen) <= 11
    hook.remove()
    assert not backend._loaded.model._forward_pre_hooks
    assert backend._sources.bytes_in() == {"near": 0, "host": 0, "disk": 0}


def test_a_short_context_is_measured_within_it(tmp_path):
    backend = TorchBackend(make_model(tmp_path, "gpt2", max_position_embeddings=32), CPU)
    assert backend.footprint.of_batch(4, 16, 8) > 0


@pytest.mark.parametrize("asked", [64 << 20, 640 << 20])
def test_batches_and_what_is_scored_at_once_stay_within_the_budget(tmp_path, asked):
    footprint = TorchBackend(make_model(tmp_path), replace(CPU, budget=asked)).footprint
    assert 0.5 * asked < footprint.budget < asked
    each = footprint.of_batch(1, 50, 100)
    assert footprint.budget // each * each <= asked
    tokens = footprint.prompt_tokens(200)
    assert footprint.of_prompt(200) * (tokens // 200) <= asked
    assert footprint.scored_tokens(200) < footprint.scored_tokens(20)


def test_sums_of_a_footprint():
    found = Footprint(
        2, 10, 5000, bytes_per_prompt=3, bytes_per_prompt_token=5, bytes_per_pair=1, bytes_per_scored_token=4
    )
    assert found.of_batch(3, 4, 6) == 3 * (3 + 4 * 5 + 16 + 6 * 2)  # until it decodes
    assert found.of_batch(3, 4, 100) == 3 * (3 + 4 * 5 + 16 + 100 * 2)
    assert replace(found, bytes_per_row=1000).of_batch(3, 4, 6) == 3 * (1000 + 10 * 2)  # while it does
    assert found.prompt_tokens(20) == 5000 // 25 and found.scored_tokens(7) == 1250
    assert replace(found, budget=1).prompt_tokens(20) == 1


def made(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


MACHINE = {"proc/meminfo": "MemTotal: 16000000 kB\nMemAvailable: 8388608 kB\n"}
V2 = {
    "proc/self/cgroup": "0::/user/job\n",
    "sys/fs/cgroup/user/job/memory.max": "max\n",
    "sys/fs/cgroup/user/job/memory.current": f"{GIB}\n",
    "sys/fs/cgroup/user/memory.max": f"{4 * GIB}\n",  # of the group above, which holds too
    "sys/fs/cgroup/user/memory.current": f"{3 * GIB}\n",
    "sys/fs/cgroup/user/memory.stat": f"anon 5\ninactive_file {GIB // 2}\n",
}
V1 = {
    "proc/self/cgroup": "5:cpu,cpuacct:/\n4:memory:/job\n",
    "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{3 * GIB}\n",  # where a container sees its own group
    "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{2 * GIB}\n",
    "sys/fs/cgroup/memory/memory.stat": "total_inactive_file 0\n",
}


@pytest.mark.parametrize(
    ("files", "free"),
    [({}, 8 * GIB), (V2, 3 * GIB // 2), (V1, GIB)],
    ids=["machine", "cgroup v2", "cgroup v1"],
)
def test_free_memory_is_the_least_that_any_limit_leaves(tmp_path, files, free):
    assert budget.free_memory(made(tmp_path, MACHINE | files)) == free


def test_a_limit_of_address_space_counts(tmp_path, monkeypatch):
    pages = resource.getpagesize()
    monkeypatch.setattr(resource, "getrlimit", lambda which: (3 * GIB, -1))
    root = made(tmp_path, MACHINE | {"proc/self/statm": f"{GIB // pages} 5 5\n"})
    assert budget.free_memory(root) == 2 * GIB


@pytest.mark.parametrize(
    ("free", "expected"), [(64 * GIB, 2 * GIB), (4 * GIB, GIB), (None, 2 * GIB), (0, budget.LEAST)]
)
def test_without_a_word_batches_take_a_quarter_of_what_is_free_and_never_gigabytes(
    monkeypatch, free, expected
):
    monkeypatch.setattr(budget, "free_memory", lambda: free)
    assert budget.default_budget([torch.device("cpu")]) == expected


def test_a_gpu_gives_three_quarters_of_what_the_fullest_has_free(monkeypatch):
    free, reserved, given = {0: 80 * GIB, 1: 40 * GIB}, 3 * GIB, GIB
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free[device.index], 96 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: reserved)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: given)
    one, two = torch.device("cuda:0"), torch.device("cuda:1")
    assert budget.default_budget([one]) == int(0.75 * 82 * GIB)
    assert budget.default_budget([one, two]) == int(0.75 * 42 * GIB) * 2


def test_the_budget_is_asked_for_in_yaml_and_null_leaves_it_to_the_machine():
    words = ("+experiment=n300_kv_only", "limit=7")
    assert design(*words).backend.memory_budget is None
    assert design(*words, "backend.memory_budget=256MiB").backend.memory_budget == 256 << 20
    assert "such as 2GiB" in faults(*words, "backend.memory_budget=much")


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:113] err == 0. DefaultCPUAllocator: can't allocate memory"
        ),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("std::bad_alloc"),
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore."),
    ],
    ids=lambda error: str(error)[:30],
)
def test_every_way_of_running_out_of_memory_is_told_as_one(error):
    with pytest.raises(OutOfMemory) as told, memory_as_ours():
        raise error
    assert "\n" not in str(told.value) and told.value.__cause__ is error and str(told.value)


def test_real_allocations_that_fail_are_told_so_and_other_errors_as_they_are():
    with pytest.raises(OutOfMemory), memory_as_ours():
        torch.empty(1 << 58)
    with pytest.raises(OutOfMemory), memory_as_ours():
        np.empty(1 << 58)
    with pytest.raises(RuntimeError, match="shapes"), memory_as_ours():
        raise RuntimeError("shapes do not fit")


def test_what_a_batch_held_is_free_while_its_error_is_still_known():
    held: list[weakref.ref[torch.Tensor]] = []

    def runs() -> None:
        large = torch.zeros(1000)
        held.append(weakref.ref(large))
        raise MemoryError

    with pytest.raises(OutOfMemory) as told, memory_as_ours():
        runs()
    assert told.value.__cause__ is not None and held[0]() is None
