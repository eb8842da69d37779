"""Which implementation of the recurrence runs, and why.

The order of precedence: the environment variable ``DSLSTM_BACKEND``, then the
layer's ``backend`` argument, then the fastest one that fits. No maths here.
"""

import functools
import os
from typing import NamedTuple

import torch
from speechbrain.utils.logger import get_logger

from speechbrain_dslstm.ds_lstm.equations import ds_lstm_naive
from speechbrain_dslstm.ds_lstm.kernel_numba import ds_lstm_numba, numba_problem
from speechbrain_dslstm.ds_lstm.kernel_torch import ds_lstm_eager, ds_lstm_fused
from speechbrain_dslstm.ds_lstm.kernel_triton import (
    ds_lstm_triton,
    triton_problem,
)

__all__ = [
    "BACKENDS",
    "ENVIRONMENT_VARIABLE",
    "Choice",
    "announce_backend",
    "check_backend",
    "choose_backend",
]

BACKENDS = {
    "naive": ds_lstm_naive,
    "eager": ds_lstm_eager,
    "fused": ds_lstm_fused,
    "numba": ds_lstm_numba,
    "triton": ds_lstm_triton,
}
WITH_GATE_NORM = ("naive", "eager", "numba")
# Name -> why it cannot run on a tensor
PARTICULAR = {"numba": numba_problem, "triton": triton_problem}
# Kind of device -> those of them that are looked at, the fastest first
FASTEST = {"cpu": ["numba"], "cuda": ["triton"]}
ENVIRONMENT_VARIABLE = "DSLSTM_BACKEND"


logger = get_logger(__name__)


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


@functools.cache
def announce_backend(name, reason):
    """Log which backend runs and why, once for each such pair.

    Arguments
    ---------
    name : str
        A key of ``BACKENDS``.
    reason : str
        Why this one.

    Example
    -------
    >>> announce_backend(*choose_backend("naive")[:2])
    >>> announce_backend.cache_info().currsize > 0
    True
    """
    logger.info("DS-LSTM backend %s (%s)", name, reason)


def check_backend(requested="auto", gate_norm=False):
    """What was asked for, without looking at what this machine offers.

    Arguments
    ---------
    requested : str
        "auto" or a key of ``BACKENDS``.
    gate_norm : bool
        Whether the layer normalises its gates.

    Returns
    -------
    name : str
        "auto" or a key of ``BACKENDS``.
    reason : str
        Who asked for it.

    Raises
    ------
    ValueError
        No such backend, or it has no gate norm.

    Example
    -------
    >>> check_backend("eager", gate_norm=True)
    ('eager', "backend='eager'")
    """
    override = os.environ.get(ENVIRONMENT_VARIABLE)
    if override:
        name, reason = override, f"{ENVIRONMENT_VARIABLE}={override}"
    else:
        name, reason = requested, f"backend={requested!r}"
    if name != "auto" and name not in BACKENDS:
        known = ", ".join(["auto", *BACKENDS])
        raise ValueError(f"no DS-LSTM backend {name!r} ({reason}); use {known}")
    if gate_norm and name not in ("auto", *WITH_GATE_NORM):
        raise ValueError(
            f"DS-LSTM backend {name!r} ({reason}) has no gate norm; use "
            + ", ".join(["auto", *WITH_GATE_NORM])
        )
    return name, reason


def choose_backend(requested="auto", gate_norm=False, like=None):
    """Pick the implementation of the recurrence.

    Arguments
    ---------
    requested : str
        "auto" or a key of ``BACKENDS``.
    gate_norm : bool
        Whether the layer normalises its gates.
    like : torch.Tensor, optional
        ``weight_x``, for device, type and size; float32 on the CPU if left
        out.

    Returns
    -------
    Choice
        Name, reason and function.

    Raises
    ------
    ValueError
        No such backend, it has no gate norm, or it cannot run.

    Example
    -------
    >>> half = torch.zeros(1, dtype=torch.float16)
    >>> choose_backend(like=half)[:2]
    ('fused', 'auto: numba computes in float32 and float64, not float16')
    """
    name, reason = check_backend(requested, gate_norm)
    like = torch.empty(0, dtype=torch.float32) if like is None else like
    if name != "auto":
        find_problem = PARTICULAR.get(name)
        problem = find_problem and find_problem(like, gate_norm)
        if problem:
            raise ValueError(
                f"DS-LSTM backend {name!r} ({reason}) cannot run: {problem}; "
                "use auto"
            )
        return Choice(name, reason, BACKENDS[name])
    problems = []
    for name in FASTEST.get(like.device.type, []):
        problem = PARTICULAR[name](like, gate_norm)
        if not problem:
            reason = "; ".join(["auto: the fastest here", *problems])
            return Choice(name, reason, BACKENDS[name])
        problems.append(problem)
    name = "eager" if gate_norm else "fused"
    why = "; ".join(problems) or f"nothing faster on {like.device.type}"
    return Choice(name, f"auto: {why}", BACKENDS[name])
