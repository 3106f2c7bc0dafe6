"""`python -m benchmarks` lists the benchmarks; `python -m benchmarks all [--quick] [--results FILE]` runs
them, `python -m benchmarks NAME ...` one of them."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from benchmarks.results_file import Goal, Section
from benchmarks.sizes import Size, run


@dataclass(frozen=True)
class Benchmark:
    """A module of this package. about: what it measures; prints: it prints its figures, and this module keeps
    them, with the words that it is given for a quick look."""

    name: str
    about: str
    prints: tuple[str, ...] | None = None


BENCHMARKS = (
    Benchmark("decode", "whole experiments, with and without writes in decode, against their script"),
    Benchmark("writes", "decode with writes at all layers against decode without"),
    Benchmark("generate", "decode against transformers' generate, batches of 1 to 512"),
    Benchmark("cells", "a back-patching grid against one forward per cell"),
    Benchmark("start_up", "seconds of --help, list and a configuration error"),
    Benchmark("oracle", "writes in decode against nnsight, where it is installed"),
    Benchmark("cuda", "Mistral-7B and Llama-3.1-8B shapes, where there is a GPU"),
    Benchmark("many_trials", "memory of 4,000 and of 400,000 trials", ("small=400", "large=4000")),
    Benchmark("analyses", "reading and analysing a million trials", ("rows=100000", "report_rows=2000")),
)
_TITLES = {"many_trials": "Memory of many trials", "analyses": "Analysing a run"}
_MEMORY = re.compile(r"peak memory: ([\d.]+)x")


def main(words: Sequence[str]) -> int:
    """Returns the worst status of what was run, or 2 where there is no such benchmark."""
    names = {each.name: each for each in BENCHMARKS}
    if not words:
        for each in BENCHMARKS:
            print(f"python -m benchmarks.{each.name:<12} {each.about}")
        print("python -m benchmarks all          every one of them; --quick for smaller sizes")
        return 0
    first, *rest = words
    if first != "all" and first not in names:
        print(f"{first}: expected all, {', '.join(names)}", file=sys.stderr)
        return 2
    return max(_run(each, rest) for each in (BENCHMARKS if first == "all" else [names[first]]))


def _run(benchmark: Benchmark, words: Sequence[str]) -> int:
    """Each in a process of its own, so that none has the threads or the memory of another."""
    started = time.perf_counter()
    if benchmark.prints is None:
        command = [sys.executable, "-m", f"benchmarks.{benchmark.name}", *words]
        status = subprocess.run(command, check=False).returncode
    else:
        status = run(partial(_printed, benchmark), benchmark.name, words)
    seconds = time.perf_counter() - started
    print(f"\n[{benchmark.name}: status {status}, {seconds:.0f} s]\n", flush=True)
    return status


def _printed(benchmark: Benchmark, size: Size) -> Section:
    """What a benchmark prints, as a section. Raises CalledProcessError where it fails."""
    command = ["python", "-m", f"benchmarks.{benchmark.name}"]
    if size.name != "full":
        command += benchmark.prints or ()
    done = subprocess.run([sys.executable, *command[1:]], check=True, stdout=subprocess.PIPE, text=True)
    machine, _, rest = done.stdout.strip().partition("\n")
    found = _MEMORY.search(rest)
    goals = (Goal("peak memory, many trials against few", float(found[1]), 1.3, most=True),) if found else ()
    title = _TITLES[benchmark.name]
    return Section(benchmark.name, title, " ".join(command), machine, goals, (rest.strip(),))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
