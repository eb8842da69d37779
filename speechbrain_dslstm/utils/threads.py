"""How many threads torch uses, beside whatever else the machine does."""

import collections
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import psutil
import torch
from joblib import cpu_count

__all__ = [
    "Threads",
    "Workers",
    "adapted_threads",
    "check_threads",
    "count_cpus",
    "count_workers",
    "limit_threads",
]

# Between two measurements; the first comes sooner
SECONDS, FIRST_SECONDS = 1.0, 0.25
# A thread is added if so much of a CPU is free for it
LEAST_SHARE = 0.7
MOST_WORKERS = 4


def count_cpus() -> int:
    """Number of CPUs that this process may use, by affinity and cgroup."""
    return max(1, cpu_count())


def limit_threads() -> int:
    """Let torch have no more threads than the process has CPUs; return them.

    torch counts the CPUs of the machine, and knows no limit of a container.
    """
    threads = min(torch.get_num_threads(), count_cpus())
    torch.set_num_threads(threads)
    return threads


def count_workers() -> int:
    """Number of ``Workers`` if none is asked for: the CPUs, at most 4.

    Each of them holds a batch of audio.
    """
    return min(MOST_WORKERS, count_cpus())


def check_threads(number: int) -> None:
    """Raise ValueError for a number of threads below 1."""
    if number < 1:
        raise ValueError(f"threads must be at least 1, got {number}")


class Threads:
    """Adapts torch's number of threads to the CPUs that others leave free.

    Threads that wait for each other keep their CPU busy, so with more threads than
    free CPUs a step takes longer than with one thread. There are never more
    threads than torch had before, as ``OMP_NUM_THREADS`` sets them, nor more than
    CPUs. The first is alone for a quarter of a second, until the CPUs are measured.

    Arguments
    ---------
    number
        A fixed number of threads. None: adapt it.

    Raises
    ------
    ValueError
        ``number`` is below 1.

    Example
    -------
    >>> before = torch.get_num_threads()
    >>> threads = Threads(1)
    >>> threads.adapt()
    >>> torch.get_num_threads()
    1
    >>> torch.set_num_threads(before)
    """

    def __init__(self, number: int | None = None) -> None:
        if number is not None:
            check_threads(number)
        self.most = limit_threads()
        self.fixed = number is not None or self.most == 1
        torch.set_num_threads(number or 1)
        self.last = _measure()
        self.next = self.last[0] + FIRST_SECONDS

    def adapt(self) -> None:
        """Set torch's number of threads, at most once a second."""
        if self.fixed or time.perf_counter() < self.next:
            return
        now, usable = _measure()
        cpus = (usable - self.last[1]) / (now - self.last[0])
        threads = min(self.most, max(1, int(cpus + 1 - LEAST_SHARE)))
        if threads != torch.get_num_threads():
            torch.set_num_threads(threads)
        self.next, self.last = now + SECONDS, (now, usable)


def _measure() -> tuple[float, float]:
    """Time, and the CPU seconds until then that were idle or this process's."""
    times = psutil.cpu_times(percpu=True)
    usable = range(len(times))
    # Not on every system
    if hasattr(os, "sched_getaffinity"):
        usable = os.sched_getaffinity(0)
    idle = sum(times[cpu].idle for cpu in usable if cpu < len(times))
    return time.perf_counter(), idle + time.process_time()


@contextmanager
def adapted_threads(number: int | None = None) -> Iterator[Threads]:
    """``Threads`` for a block, after which torch has its number of before."""
    before = torch.get_num_threads()
    try:
        yield Threads(number)
    finally:
        torch.set_num_threads(before)


class Workers:
    """Python threads that each compute with one thread of torch, in a block.

    Torch's own threads wait for each other in every operation, these do not, and
    the results do not depend on their number. An error in a call is raised by a
    later ``submit`` or at the end of the block.

    Arguments
    ---------
    number
        Threads. With one, ``submit`` itself makes the call.

    Raises
    ------
    ValueError
        ``number`` is below 1.

    Example
    -------
    >>> found = []
    >>> with Workers(2) as workers:
    ...     for number in range(3):
    ...         workers.submit(found.append, number)
    >>> sorted(found)
    [0, 1, 2]
    """

    def __init__(self, number: int) -> None:
        check_threads(number)
        self.number, self.running = number, collections.deque()
        self.before = self.pool = None

    def __enter__(self) -> "Workers":
        self.before = torch.get_num_threads()
        # Of this thread only
        torch.set_num_threads(1)
        if self.number > 1:
            self.pool = ThreadPoolExecutor(
                self.number, initializer=torch.set_num_threads, initargs=(1,)
            )
        return self

    def submit(self, call: Callable[..., object], *args: object) -> None:
        """Run ``call(*args)`` in a thread.

        Waits while twice as many calls as threads are not done, which bounds the
        memory of their arguments.
        """
        if self.pool is None:
            call(*args)
            return
        while len(self.running) >= 2 * self.number:
            self.running.popleft().result()
        self.running.append(self.pool.submit(call, *args))

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if self.pool is not None:
                self.pool.shutdown(cancel_futures=kind is not None)
            while self.running and kind is None:
                self.running.popleft().result()
        finally:
            torch.set_num_threads(self.before)
