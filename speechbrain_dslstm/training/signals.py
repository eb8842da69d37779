"""Stop signals: a checkpoint first, then the exit."""

import multiprocessing
import os
import signal
import time
from contextlib import contextmanager

from speechbrain.utils.logger import get_logger

__all__ = ["StopSignals", "shield_worker"]

logger = get_logger(__name__)


class StopSignals:
    """Makes SIGTERM and SIGUSR1 a request to save and to end with code 143.

    Schedulers send them some time before they kill a job. While ``deferred``
    they set ``requested``, which the training loop looks at; elsewhere there
    is nothing to save, and the process ends at once. Further signals do
    nothing.

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

    NAMES = ("SIGTERM", "SIGUSR1")
    CODE = 143

    def __init__(self):
        self.requested = False
        self._deferring = False
        self._previous = {}

    def __enter__(self):
        for name in self.NAMES:
            number = getattr(signal, name)
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_):
        _end_workers()
        if not self.requested:
            self.restore()
            return
        # The process is about to end, with its code and not by a signal
        for number in self._previous:
            signal.signal(number, signal.SIG_IGN)

    def restore(self):
        """Give back the handlers that were there before."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, *_):
        first, self.requested = not self.requested, True
        if first and not self._deferring:
            self.exit()

    @contextmanager
    def deferred(self):
        """Where a signal only sets ``requested``; at the end it counts.

        Yields
        ------
        None
        """
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False
        if self.requested:
            self.exit()

    def exit(self):
        """End the process."""
        raise SystemExit(self.CODE)


def _end_workers(seconds=10):
    """End loader workers that are left; at exit Python waits for them.

    More than one signal, as they do not heed the first, and two that come
    before they can look are one.
    """
    deadline = time.monotonic() + seconds
    for child in multiprocessing.active_children():
        while child.daemon and child.is_alive():
            last = time.monotonic() > deadline
            child.kill() if last else child.terminate()
            child.join(0.1)


def shield_worker(worker_id):
    """Leave signals that reach a whole job to the process that saves.

    A loader's worker that died of one would take its parent along before the
    checkpoint. The second SIGTERM ends it, as parents end their workers.

    Arguments
    ---------
    worker_id : int
        As ``worker_init_fn`` of a ``DataLoader`` gets it.

    Example
    -------
    >>> import torch
    >>> data = torch.utils.data.DataLoader(
    ...     [1, 2], num_workers=1, worker_init_fn=shield_worker
    ... )
    >>> [batch.item() for batch in data]
    [1, 2]
    """

    def end(*_):
        """End the worker."""
        # Not an error in the eyes of torch, which watches its workers
        os._exit(0)

    def wait_for_second(*_):
        """Take the next one for the parent's."""
        signal.signal(signal.SIGTERM, end)

    signal.signal(signal.SIGTERM, wait_for_second)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
