"""Stop signals: save a checkpoint first, then exit."""

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from speechbrain.utils.logger import get_logger

__all__ = ["StopSignals"]

logger = get_logger(__name__)


class StopSignals:
    """Turns SIGTERM and SIGUSR1 into a request to save and exit with code 143.

    Schedulers send these signals some time before they kill a job. Within
    ``deferred`` a signal sets ``requested``, which the training loop reads.
    Elsewhere there is nothing to save, and the process exits at once. Further
    signals have no effect. Windows has no SIGUSR1.

    Example
    -------
    >>> signals = StopSignals()
    >>> with signals:
    ...     with signals.deferred():
    ...         signal.raise_signal(signal.SIGUSR1)
    ...         print("saved")
    Traceback (most recent call last):
        ...
    SystemExit: 143
    >>> signals.restore()
    """

    NAMES = tuple(n for n in ("SIGTERM", "SIGUSR1") if hasattr(signal, n))
    CODE = 143

    def __init__(self) -> None:
        self.requested = False
        self._deferring = False
        self._previous = {}

    def __enter__(self) -> "StopSignals":
        for name in self.NAMES:
            number = getattr(signal, name)
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        _end_workers()
        if not self.requested:
            self.restore()
            return
        # The process is about to exit with CODE: no signal may end it before
        for number in self._previous:
            signal.signal(number, signal.SIG_IGN)

    def restore(self) -> None:
        """Restore the handlers that were in place before."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, *_: object) -> None:
        first, self.requested = not self.requested, True
        if first and not self._deferring:
            self.exit()

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Postpone signals within the block; a pending one exits at its end."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False
        if self.requested:
            self.exit()

    def exit(self) -> NoReturn:
        """End the process with ``CODE``."""
        raise SystemExit(self.CODE)


def _end_workers(seconds: float = 10) -> None:
    """End the loader's remaining workers, for which Python waits at exit.

    A worker ignores the first SIGTERM, and two that arrive at once count as
    one. So the signal is sent again until the worker has ended.
    """
    deadline = time.monotonic() + seconds
    for child in multiprocessing.active_children():
        while child.daemon and child.is_alive():
            last = time.monotonic() > deadline
            child.kill() if last else child.terminate()
            child.join(0.1)


def shield_worker(worker_id: int) -> None:
    """Shield a loader's worker from signals that are sent to a whole job.

    If a signal ended the worker, torch would end the main process before it
    could save. A second SIGTERM does end the worker: the main process sends
    one when it no longer needs it. Use this as ``worker_init_fn``.
    """

    def end(*_: object) -> None:
        # Code 0: torch, which watches its workers, takes any other for an error
        os._exit(0)

    def wait_for_second(*_: object) -> None:
        signal.signal(signal.SIGTERM, end)

    signal.signal(signal.SIGTERM, wait_for_second)
    if hasattr(signal, "SIGUSR1"):
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
