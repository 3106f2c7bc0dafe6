"""Threads that run batches side by side, each on a backend of its own. They only compute: what becomes of
their results is decided by the thread that made them."""

from __future__ import annotations

import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from queue import SimpleQueue
from threading import Event, Thread
from types import FrameType, TracebackType
from typing import Generic, TypeVar

from backends.clock import Clock
from backends.contract import Backend

Task = TypeVar("Task")
Found = TypeVar("Found")


@contextmanager
def undisturbed() -> Iterator[None]:
    """An interrupt by the user waits until this is left, so that what is within happens once and whole."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield  # interrupts are for the main thread
        return
    waiting: list[tuple[int, FrameType | None]] = []
    signal.signal(signal.SIGINT, lambda number, frame: waiting.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if waiting:
            before(*waiting[0])


class Workers(Generic[Task, Found]):
    """So many threads that wait for tasks. As a context: they have ended when it is left, and what they were
    running is given up."""

    def __init__(self, number: int, backend: Backend, work: Callable[[Backend, Task], Found]) -> None:
        """work: carries out a task on a backend beside the one given; whatever it raises comes back."""
        self._work = work
        self._stop = Event()
        self._tasks: SimpleQueue[Task | None] = SimpleQueue()
        self._done: deque[tuple[Task, Found | BaseException]] = deque()
        self._told: SimpleQueue[None] = SimpleQueue()  # as often as something was done
        self.running = 0  # tasks that were given and have not come back
        self._backends = [backend.beside(self._stop) for _ in range(number)]
        self._threads = [
            Thread(target=self._serve, args=(own,), name=f"worker {index}", daemon=True)
            for index, own in enumerate(self._backends)
        ]

    def __enter__(self) -> Workers[Task, Found]:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    @property
    def idle(self) -> int:
        """How many more tasks would be begun at once."""
        return len(self._threads) - self.running

    @property
    def clocks(self) -> Sequence[Clock]:
        """What each thread has spent its time on."""
        return [own.clock for own in self._backends]

    def give(self, task: Task) -> None:
        """Have a task carried out."""
        self.running += 1
        self._tasks.put(task)

    def finished(self) -> tuple[Task, Found | BaseException]:
        """The next task that is done, once there is one: what it gave, or what it raised. To be followed by
        `settled`: until then an interrupt leaves it among what `end` tells of."""
        self._told.get()
        self.running -= 1
        return self._done[0]

    def settled(self) -> None:
        """What `finished` told of last needs nothing more."""
        self._done.popleft()

    def end(self) -> list[tuple[Task, Found | BaseException]]:
        """Let the threads give up what they are running and wait for them. What is done and not settled."""
        self._stop.set()
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            thread.join()
        return list(self._done)

    def _serve(self, backend: Backend) -> None:
        while (task := self._tasks.get()) is not None and not self._stop.is_set():
            found: Found | BaseException
            try:
                found = self._work(backend, task)
            except BaseException as error:  # whatever it is, the other thread is told
                found = error
            self._done.append((task, found))
            self._told.put(None)
