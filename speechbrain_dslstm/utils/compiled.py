"""Compiling loops with numba, kept on disk where there is a folder for it.

Imported only by modules of loops, which are imported only when they run.
"""

from contextlib import suppress

from numba import njit
from numba.core.caching import FunctionCache
from speechbrain.utils.logger import get_logger

__all__ = ["compiled"]

logger = get_logger(__name__)


class _Cache(FunctionCache):
    """Numba's, but a call goes on where its file cannot be written."""

    def save_overload(self, *args):
        """Write what was compiled, if there is room."""
        try:
            super().save_overload(*args)
        except OSError as error:
            logger.warning(
                "%s is compiled again in every process, as its code cannot "
                "be kept: %s",
                self._name,
                error,
            )


def compiled(*fastmath):
    """Compile a function on its first call.

    A product and a sum may be rounded once, and a division by zero gives
    infinity. The interpreter is let go while it runs.

    Arguments
    ---------
    *fastmath : str
        LLVM's further freedoms, such as "reassoc".

    Returns
    -------
    callable
        The decorator.

    Example
    -------
    >>> @compiled()
    ... def halve(x):
    ...     return x / 2
    >>> halve(3.0)
    1.5
    """
    options = {
        "fastmath": {"contract", *fastmath},
        "error_model": "numpy",
        "nogil": True,
    }

    def decorate(function):
        """Decorate a function."""
        dispatcher = njit(function, **options)
        # What cache=True does; not where no folder can be written to
        with suppress(RuntimeError):
            dispatcher._cache = _Cache(function)
        return dispatcher

    return decorate
