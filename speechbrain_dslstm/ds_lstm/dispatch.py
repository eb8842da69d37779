"""Which implementation of the recurrence runs, and why.

The order of precedence: the environment variable ``DSLSTM_BACKEND``, then the
layer's ``backend`` argument, then the fastest one that fits. No maths here.
"""

import os
from typing import NamedTuple

from speechbrain_dslstm.ds_lstm.equations import ds_lstm_naive
from speechbrain_dslstm.ds_lstm.kernel_eager import ds_lstm_eager

__all__ = ["BACKENDS", "ENVIRONMENT_VARIABLE", "Choice", "choose_backend"]

BACKENDS = {"naive": ds_lstm_naive, "eager": ds_lstm_eager}
ENVIRONMENT_VARIABLE = "DSLSTM_BACKEND"


class Choice(NamedTuple):
    """A backend and the reason it was taken.

    Arguments
    ---------
    name : str
        A key of ``BACKENDS``.
    reason : str
        Why this one, for logs.
    function : callable
        The implementation, with the signature of ``ds_lstm_naive``.

    Example
    -------
    >>> choose_backend("naive").name
    'naive'
    """

    name: str
    reason: str
    function: object


def choose_backend(requested="auto"):
    """Pick the implementation of the recurrence.

    Arguments
    ---------
    requested : str
        "auto" or a key of ``BACKENDS``.

    Returns
    -------
    Choice
        Name, reason and function.

    Raises
    ------
    ValueError
        No such backend.

    Example
    -------
    >>> choose_backend().name
    'eager'
    """
    override = os.environ.get(ENVIRONMENT_VARIABLE)
    if override and override != "auto":
        name, reason = override, f"{ENVIRONMENT_VARIABLE}={override}"
    elif requested != "auto":
        name, reason = requested, f"backend={requested!r}"
    else:
        name, reason = "eager", "auto: the fastest that runs everywhere"
    if name not in BACKENDS:
        known = ", ".join(["auto", *BACKENDS])
        raise ValueError(f"no DS-LSTM backend {name!r} ({reason}); use {known}")
    return Choice(name, reason, BACKENDS[name])
