"""Compile loops with numba and keep the machine code on disk.

This imports numba: only modules of compiled loops import it, and those are
imported when their loops first run (``utils.loops``).
"""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from numba import njit
from numba.core.caching import FunctionCache
from speechbrain.utils.logger import get_logger

__all__ = ["compiled"]

logger = get_logger(__name__)


class _Cache(FunctionCache):
    """numba's cache, which only warns if its file cannot be written."""

    def save_overload(self, *args: Any) -> None:
        """Keep compiled code on disk, if there is room."""
        try:
            super().save_overload(*args)
        except OSError as error:
            logger.warning(
                "cannot keep the compiled code of %s, so every process "
                "compiles it again: %s",
                self._name,
                error,
            )


def compiled(*fastmath: str) -> Callable[[Callable], Callable]:
    """Return a decorator that compiles a function on its first call.

    A product and a sum may be rounded once, a division by zero gives infinity,
    and the function releases the GIL. ``fastmath`` names further freedoms of
    LLVM, such as "reassoc".

    >>> @compiled()
    ... def halve(x):
    ...     return x / 2
    >>> halve(3.0)
    1.5
    """
    freedoms = {"contract", *fastmath}

    def decorate(function: Callable) -> Callable:
        dispatcher = njit(
            function, fastmath=freedoms, error_model="numpy", nogil=True
        )
        # As cache=True does, which raises where no folder can be written to
        with suppress(RuntimeError):
            dispatcher._cache = _Cache(function)
        return dispatcher

    return decorate
