"""Compiled loops: loaded when they run, in as many threads as torch uses."""

import functools
import importlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

__all__ = ["import_problem", "in_threads"]

# Values that are worth a thread of their own
THREAD_VALUES = 1 << 18


@functools.cache
def import_problem(module):
    """Why a module of compiled loops cannot be imported, if it cannot.

    Arguments
    ---------
    module : str
        Its full name.

    Returns
    -------
    str or None
        The reason; None if it can.

    Example
    -------
    >>> import_problem("speechbrain_dslstm.no_loops")
    "compiled loops do not import (No module named 'speechbrain_dslstm.no_loops')"
    """
    try:
        importlib.import_module(module)
    except ImportError as error:
        return f"compiled loops do not import ({error})"
    return None


def in_threads(work, rows, values):
    """Have each thread do its share of some rows; what one raises is raised.

    Arguments
    ---------
    work : callable
        Takes the number of the thread, below ``torch.get_num_threads()``, and
        its share: a tuple of the first row and the one behind the last.
    rows : int
        Rows altogether.
    values : int
        Values that are written: few are not worth a thread.

    Example
    -------
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
