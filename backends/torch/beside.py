"""Several backends on the same weights, each for a thread of its own: how many, and what they share."""

from __future__ import annotations

import copy
import math
import os
import threading
from dataclasses import replace
from pathlib import Path

import torch

from backends.contract import BackendError, Stopped
from backends.torch.loading import SMALL_WIDTH, Loaded
from backends.torch.sites import find

_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of a container: microseconds of CPU time, and in how many


def usable_cores(quota: Path = _QUOTA) -> int:
    """The cores that this process may use: those it is bound to, and no more than its cgroup's quota."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        most, period = quota.read_text().split()[:2]
        allowed = math.ceil(int(most) / int(period))
    except (OSError, ValueError):  # no such file, or "max": nothing is held back
        return bound
    return max(1, min(bound, allowed))


def workers_for(asked: int | None, threads: int | None, loaded: Loaded, cores: int) -> int:
    """How many threads run batches of a model at the same time.

    asked, threads: what the configuration says, None for what is best here: on a CPU and a model so small
    that more threads within an operation do not pay, one for each of the cores, or for as many as each has
    threads; otherwise 1. Raises BackendError for several on a GPU, which one thread keeps busy.
    """
    on_cpu = loaded.device.type == "cpu"
    if asked is not None and asked > 1 and not on_cpu:
        raise BackendError(
            f"backend.workers: expected 1 or null on {loaded.device}, which runs one batch at a time, "
            f"got {asked}"
        )
    if asked is not None:
        return asked
    small = on_cpu and loaded.info.width <= SMALL_WIDTH
    return max(1, cores // (1 if threads is None else threads)) if small else 1


def twin(loaded: Loaded, stop: threading.Event | None) -> Loaded:
    """The same model in modules of its own: hooks and blocks that stand in for others on one are not on the
    other. Parameters and buffers are the very same tensors.

    stop: once it is set, a forward of the twin raises Stopped.
    """
    shared = (*loaded.model.parameters(), *loaded.model.buffers(), loaded.model.config)
    model = copy.deepcopy(loaded.model, {id(each): each for each in shared})
    if stop is not None:

        def heed(*_: object) -> None:
            if stop.is_set():
                raise Stopped

        model.register_forward_pre_hook(heed)
    blocks = find(model, loaded.layout.blocks)
    assert isinstance(blocks, torch.nn.ModuleList)
    return replace(loaded, model=model, blocks=list(blocks))
