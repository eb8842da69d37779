"""Compile loops with numba and keep the machine code on disk.

This imports numba: only modules of compiled loops import it, and those are
imported when their loops first run (``utils.loops``).
"""

import functools
from collections.abc import Callable
from typing import Any

from numba import njit
from numba.core.caching import FunctionCache, NullCache
from speechbrain.utils.logger import get_logger

__all__ = ["compiled"]

logger = get_logger(__name__)


VARIABLE = "NUMBA_CACHE_DIR"  # numba's own name of the cache's folder
REMEDY = f"set {VARIABLE} to a folder that can be written to"


@functools.cache
def _say_once(message: str) -> None:
    logger.warning(message)


class _Cache(FunctionCache):
    """numba's cache, which only warns if its file cannot be written."""

    def load_overload(self, *args: Any) -> Any:
        """Load compiled code, or say that the compiler is about to run."""
        found = super().load_overload(*args)
        if found is None:
            _say_once(
                "compiling loops: up to half a minute, the first time on this "
                "machine"
            )
        return found

    def save_overload(self, *args: Any) -> None:
        """Keep compiled code on disk, if there is room."""
        try:
            super().save_overload(*args)
        except OSError as error:
            _say_once(
                "cannot keep the compiled code, so every process compiles it "
                f"again: {error}; {REMEDY}"
            )


class _NoCache(NullCache):
    """Where no folder can be written to: says so when the compiler runs."""

    def load_overload(self, *args: Any) -> None:
        """Say that this process compiles the code for itself."""
        _say_once(
            "compiling loops: up to half a minute in every process, because "
            f"no folder for the compiled code can be written to; {REMEDY}"
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
        try:
            dispatcher._cache = _Cache(function)
        except RuntimeError:
            dispatcher._cache = _NoCache()
        return dispatcher

    return decorate
