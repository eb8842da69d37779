"""Evaluate a model without changing it, also where it is being trained."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["evaluation_mode"]

# Held while modules in training mode are in evaluation mode
_LOCK = threading.RLock()


@contextmanager
def evaluation_mode(modules: torch.nn.Module) -> Iterator[None]:
    """Set modules to evaluation mode within the block, and back at its end.

    >>> dropout = torch.nn.Dropout(0.5)
    >>> with evaluation_mode(dropout):
    ...     float(dropout(torch.ones(1)))
    1.0
    >>> dropout.training
    True
    """
    if not any(module.training for module in modules.modules()):
        yield
        return
    with _LOCK:
        trained = [module for module in modules.modules() if module.training]
        modules.eval()
        try:
            yield
        finally:
            for module in trained:
                module.training = True
