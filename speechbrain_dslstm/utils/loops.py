"""Load modules of compiled loops on first use, and run loops in threads."""

import functools
import importlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType
from typing import Any

import numpy as np
import torch

__all__ = ["Loops", "in_threads", "reason_for_torch", "use_loops"]

# Fewer values than this are not worth another thread
THREAD_VALUES = 1 << 18
_ON = ContextVar("compiled loops are on", default=True)


@contextmanager
def use_loops(on: bool) -> Iterator[None]:
    """Prefer compiled loops within the block, in this thread, or plain torch.

    Loading them takes most of a second, which they save on a hundred short
    clips; compiling them, once on a machine, takes up to half a minute. A
    backend that is asked for by its name runs in any case.

    >>> with use_loops(False):
    ...     reason_for_torch()
    'compiled loops are off'
    """
    before = _ON.set(on)
    try:
        yield
    finally:
        _ON.reset(before)


def reason_for_torch() -> str | None:
    """Reason to prefer plain torch, or None."""
    return None if _ON.get() else "compiled loops are off"


class Loops:
    """A module of compiled loops, ``name`` in full, imported on first use.

    numba and triton take a while to import and are missing on some platforms.

    >>> Loops("speechbrain_dslstm.no_loops").problem
    "compiled loops do not import (No module named 'speechbrain_dslstm.no_loops')"
    """

    def __init__(self, name: str) -> None:
        self.name = name

    @functools.cached_property
    def problem(self) -> str | None:
        """Reason why the loops cannot be imported; None if they can."""
        try:
            self.load()
        except ImportError as error:
            return f"compiled loops do not import ({error})"
        return None

    def load(self) -> ModuleType:
        """Return the module, which the first call imports."""
        return self._module

    @functools.cached_property
    def _module(self) -> ModuleType:
        return importlib.import_module(self.name)


def in_threads(
    work: Callable[[int, tuple[int, int]], Any], rows: int, values: int
) -> None:
    """Share rows among as many threads as torch uses; an error in any is raised.

    ``work(thread, share)`` receives the number of its thread, below
    ``torch.get_num_threads()``, and its rows as (first, end). ``values`` is
    the total number of values written, because few are not worth a thread.

    >>> in_threads(lambda thread, share: print(thread, share), 3, values=3)
    0 (0, 3)
    """
    threads = min(
        torch.get_num_threads(), max(1, rows), max(1, values // THREAD_VALUES)
    )
    if threads == 1:
        work(0, (0, rows))
        return
    edges = np.linspace(0, rows, threads + 1).astype(int).tolist()
    shares = list(zip(edges[:-1], edges[1:], strict=True))
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, range(threads), shares))
