"""Threads of torch beside other processes, and Python threads of one each."""

import subprocess
import sys
import threading
import time

import pytest
import torch

from speechbrain_dslstm.utils import threads as module
from speechbrain_dslstm.utils.threads import (
    Threads,
    Workers,
    adapted_threads,
    count_cpus,
)

BUSY = "while True: pass"


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def machine(monkeypatch):
    """A machine of 4 CPUs, of which ``free`` are idle or this process's."""

    class Machine:
        free, now, usable = 4.0, 0.0, 0.0

        def wait(self, seconds):
            self.now += seconds
            self.usable += seconds * self.free

    machine = Machine()
    monkeypatch.setattr(module, "count_cpus", lambda: 4)
    monkeypatch.setattr(
        module, "_measure", lambda: (machine.now, machine.usable)
    )
    monkeypatch.setattr(module.time, "perf_counter", lambda: machine.now)
    torch.set_num_threads(4)
    return machine


@pytest.mark.parametrize(
    ("free", "expected"),
    [(4.0, 4), (3.6, 3), (1.8, 2), (1.4, 1), (0.6, 1), (9.0, 4)],
)
def test_as_many_as_are_free(machine, free, expected):
    threads = Threads()
    assert torch.get_num_threads() == 1
    machine.free = free
    machine.wait(0.3)
    threads.adapt()
    assert torch.get_num_threads() == expected


def test_again_and_again(machine):
    """And at most once a second, as the clock of the CPUs is coarse."""
    threads, found = Threads(), []
    for free in (4, 1, 1, 4):
        machine.free = free
        for _ in range(2):
            machine.wait(0.6)
            threads.adapt()
            found.append(torch.get_num_threads())
    assert found == [4, 4, 2, 2, 1, 1, 2, 2]


def test_a_number_is_used_whatever_is_free(machine):
    machine.free = 0.5
    with adapted_threads(3) as threads:
        machine.wait(2)
        threads.adapt()
        assert torch.get_num_threads() == 3
    assert torch.get_num_threads() == 4


def test_no_more_than_the_process_had(machine):
    """As OMP_NUM_THREADS gives each of several processes its share."""
    torch.set_num_threads(2)
    threads = Threads()
    machine.wait(2)
    threads.adapt()
    assert torch.get_num_threads() == 2


def test_beside_real_processes():
    """With more busy processes than CPUs, one thread is left."""
    busy = [
        subprocess.Popen([sys.executable, "-c", BUSY])
        for _ in range(2 * count_cpus())
    ]
    try:
        time.sleep(0.5)
        with adapted_threads() as threads:
            for _ in range(3):
                end = time.perf_counter() + 0.5
                while time.perf_counter() < end:
                    torch.ones(200, 200) @ torch.ones(200, 200)
                threads.adapt()
            assert torch.get_num_threads() == 1
    finally:
        for process in busy:
            process.kill()
            process.wait()


def test_cpus_of_the_process():
    """Of all CPUs, those that the process may use."""
    code = (
        "import os; os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:1])\n"
        "from speechbrain_dslstm.utils.threads import count_cpus\n"
        "print(count_cpus())"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True
    )
    assert out.stdout.split() == [b"1"]


@pytest.mark.parametrize("number", [1, 3])
def test_workers_compute_with_one_thread(number):
    seen = []

    def work(value):
        seen.append((value, torch.get_num_threads()))

    with Workers(number) as workers:
        for value in range(20):
            workers.submit(work, value)
    assert sorted(seen) == [(value, 1) for value in range(20)]
    assert torch.get_num_threads() == 2


def test_few_calls_wait():
    """So that the batches in memory are few."""
    release, started = threading.Event(), []

    def work(value):
        started.append(value)
        release.wait(10)

    with Workers(2) as workers:
        threading.Timer(0.3, release.set).start()
        for value in range(8):
            workers.submit(work, value)
            if value == 3:
                assert not release.is_set()
        assert release.is_set()
    assert sorted(started) == list(range(8))


@pytest.mark.parametrize("number", [1, 2])
def test_an_error_is_raised(number):
    with pytest.raises(ZeroDivisionError), Workers(number) as workers:
        workers.submit(lambda: 1 / 0)
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("kind", [Threads, Workers])
def test_at_least_one_thread(kind):
    with pytest.raises(ValueError, match="threads must be at least 1, got 0"):
        kind(0)
