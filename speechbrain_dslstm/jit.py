"""Compiling loops with numba, kept on disk where there is a folder for it.

Imported only by modules of loops, which are imported only when they run.
"""

from numba import njit

__all__ = ["compiled"]


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
        try:
            return njit(function, cache=True, **options)
        except RuntimeError:  # no folder to write to
            return njit(function, **options)

    return decorate
