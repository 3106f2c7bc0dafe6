"""What a write costs: as many tensor operations for many rows and tokens as for few."""

from __future__ import annotations

import random

import pytest
from torch.utils._python_dispatch import TorchDispatchMode

from backends.positions import Positions
from backends.rows import Row, Sampling
from backends.torch.backend import TorchBackend
from backends.writes import Value, Write
from tests.models import CPU, make_model, prompt, write

WRITES: dict[str, tuple[Write, ...]] = {
    "none": (),
    "kv": (write("w", "kv_cache"),),
    "values of another": (write("w", "kv_cache", (1, 2), part="values", align="left"),),
    "random kv": (write("w", "kv_cache", value="random"),),
    "prompt": (write("w", "resid_post", positions="last:4"),),
    "random": (write("w", "v_proj", value="random", during="both"),),
    "cycle": (write("w", "v_proj", positions="last:4", during="decode", hold="cycle"),),
    "mean": (write("w", "resid_post", positions="all", during="both", hold="mean"),),
    "edges": (
        Write(
            "w",
            "attention_edge",
            (1, 2),
            "mask",
            Value("none"),
            Positions.parse("last:2"),
            "both",
            keys=Positions.parse("first:2"),
        ),
    ),
}


class Counter(TorchDispatchMode):
    """Counts the operations that reach torch."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def backend(tmp_path_factory):
    return TorchBackend(make_model(tmp_path_factory.mktemp("llama"), eos_token_id=119), CPU)


def operations(backend, writes, rows: int, tokens: int, length: int) -> int:
    rng = random.Random(1)
    batch = [
        Row(prompt(rng, length), Sampling(0.0, tokens), writes, {"donor": prompt(rng, length)})
        for _ in range(rows)
    ]
    backend.decode(batch)  # sources are captured once, and are not what is counted
    with Counter() as counter:
        for found in backend.decode(batch):
            assert len(found.output_ids) == tokens and found.invalid is None
    return counter.count


@pytest.mark.parametrize("name", sorted(WRITES))
def test_no_write_costs_a_loop_over_rows_or_tokens(backend, name):
    # More rows than those for which the attention is computed otherwise (attention.py).
    few = operations(backend, WRITES[name], 20, 2, 8)
    assert operations(backend, WRITES[name], 60, 2, 8) == few
    assert operations(backend, WRITES[name], 20, 2, 30) == few
