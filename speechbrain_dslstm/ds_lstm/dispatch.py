"""Which implementation of the recurrence runs, and why.

The order of precedence: the environment variable ``DSLSTM_BACKEND``, then the
layer's ``backend`` argument, then the fastest one that fits. No maths here.
"""

import os
from typing import NamedTuple

from speechbrain_dslstm.ds_lstm.equations import ds_lstm_naive
from speechbrain_dslstm.ds_lstm.kernel_eager import ds_lstm_eager
from speechbrain_dslstm.ds_lstm.kernel_fused import ds_lstm_fused

__all__ = ["BACKENDS", "ENVIRONMENT_VARIABLE", "Choice", "choose_backend"]

BACKENDS = {
    "naive": ds_lstm_naive,
    "eager": ds_lstm_eager,
    "fused": ds_lstm_fused,
}
WITH_GATE_NORM = ("naive", "eager")
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


def choose_backend(requested="auto", gate_norm=False):
    """Pick the implementation of the recurrence.

    Arguments
    ---------
    requested : str
        "auto" or a key of ``BACKENDS``.
    gate_norm : bool
        Whether the layer normalises its gates.

    Returns
    -------
    Choice
        Name, reason and function.

    Raises
    ------
    ValueError
        No such backend, or it has no gate norm.

    Example
    -------
    >>> choose_backend().name, choose_backend(gate_norm=True).name
    ('fused', 'eager')
    """
    override = os.environ.get(ENVIRONMENT_VARIABLE)
    if override and override != "auto":
        name, reason = override, f"{ENVIRONMENT_VARIABLE}={override}"
    elif requested != "auto":
        name, reason = requested, f"backend={requested!r}"
    elif gate_norm:
        name, reason = "eager", "auto: the fastest with a gate norm"
    else:
        name, reason = "fused", "auto: the fastest that runs everywhere"
    if name not in BACKENDS:
        known = ", ".join(["auto", *BACKENDS])
        raise ValueError(f"no DS-LSTM backend {name!r} ({reason}); use {known}")
    if gate_norm and name not in WITH_GATE_NORM:
        raise ValueError(
            f"DS-LSTM backend {name!r} ({reason}) has no gate norm; use "
            + ", ".join(["auto", *WITH_GATE_NORM])
        )
    return Choice(name, reason, BACKENDS[name])
