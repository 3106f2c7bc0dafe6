"""How much memory batches may take where nobody says: a share of what is free once the model is loaded."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

CPU_MOST = 2 << 30  # a computer's memory is its user's too, and larger batches gain nothing on a CPU
CPU_SHARE = 4  # of what is free, one part in so many
CUDA_SHARE = 0.75  # of what is free: the rest is for workspaces, and for what fragments leave unused
LEAST = 32 << 20  # bytes; below this nothing runs anyway


def default_budget(devices: Sequence[torch.device]) -> int:
    """Bytes that the batches of a model on these devices may take.

    CUDA: three quarters of what the fullest of them has free, times how many they are. CPU: a quarter of what
    is free, at most 2 GiB.
    """
    cuda = [device for device in devices if device.type == "cuda"]
    if cuda:
        # What torch has reserved and not given out is free too, though the device does not say so.
        free = [
            torch.cuda.mem_get_info(device)[0]
            + torch.cuda.memory_reserved(device)
            - torch.cuda.memory_allocated(device)
            for device in cuda
        ]
        return max(LEAST, int(CUDA_SHARE * min(free) * len(cuda)))
    return max(LEAST, min(CPU_MOST, host_share()))


def host_share() -> int:
    """A quarter of the memory of this machine that is free for this process, in bytes."""
    free = free_memory()
    return CPU_MOST if free is None else free // CPU_SHARE


def free_memory(root: Path = Path("/")) -> int | None:
    """Bytes that this process may still take: the least of what the machine has available, what its cgroup
    (v2 or v1, and those above it) leaves, and its own limit of address space. None where nothing is known.
    root: where /proc and /sys are."""
    found = [*_available(root), *_of_cgroups(root), *_of_address_space(root)]
    if not found and hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2]  # a system that does not tell
    return max(0, min(found)) if found else None


def _available(root: Path) -> Iterator[int]:
    for line in _lines(root / "proc/meminfo"):
        if line.startswith("MemAvailable:"):
            yield int(line.split()[1]) << 10


def _of_cgroups(root: Path) -> Iterator[int]:
    """What is left below each limit that holds for this process. Pages of files that nobody uses now count as
    used, and are given up when memory is short."""
    for line in _lines(root / "proc/self/cgroup"):
        number, controllers, name = line.split(":", 2)
        if number == "0" and not controllers:
            top, limit, usage, idle = "sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            top, limit = "sys/fs/cgroup/memory", "memory.limit_in_bytes"
            usage, idle = "memory.usage_in_bytes", "total_inactive_file"
        else:
            continue
        own = Path(name.strip().lstrip("/"))
        for group in (own, *own.parents):  # within a container the group may be the top itself
            folder = root / top / group
            most, used = _number(folder / limit), _number(folder / usage)
            if most is not None and used is not None:
                kept = (each.split() for each in _lines(folder / "memory.stat"))
                yield most - used + sum(int(size) for name, size in kept if name == idle)


def _of_address_space(root: Path) -> Iterator[int]:
    if sys.platform == "win32":
        return
    import resource

    most, _ = resource.getrlimit(resource.RLIMIT_AS)
    used = next(iter(_lines(root / "proc/self/statm")), None)
    if most != resource.RLIM_INFINITY and used is not None:
        yield most - int(used.split()[0]) * resource.getpagesize()


def _number(file: Path) -> int | None:
    """The number in a file; None where there is none, as in `max`."""
    for line in _lines(file):
        if line.strip().isdigit():
            return int(line)
    return None


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except OSError:
        return []
