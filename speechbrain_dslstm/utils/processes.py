"""What a process must set up so that a model works: number type and forks."""

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["default_dtype", "survive_forks"]


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Set torch's default number type within the block.

    >>> with default_dtype(torch.float64):
    ...     layer = torch.nn.Linear(1, 1)
    >>> layer.weight.dtype, torch.get_default_dtype()
    (torch.float64, torch.float32)
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@functools.cache
def survive_forks() -> None:
    """Let processes that are forked from this one use one thread of torch.

    A fork copies none of the threads. GNU OpenMP, which torch uses, then waits
    for the threads of the parent forever, as in a web server that loads the
    model before it forks. With one thread it waits for none.
    """
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))
