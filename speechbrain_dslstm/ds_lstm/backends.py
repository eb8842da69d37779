"""Choose the backend that runs the recurrence, and say why.

The environment variable ``DSLSTM_BACKEND`` takes precedence over the layer's
``backend`` argument. "auto" in either means the fastest backend that can run.
"""

import functools
import os
from collections.abc import Callable
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
from speechbrain_dslstm.utils.loops import reason_for_torch

__all__ = ["Choice", "announce_backend", "check_backend", "choose_backend"]

BACKENDS = {
    "naive": ds_lstm_naive,
    "eager": ds_lstm_eager,
    "fused": ds_lstm_fused,
    "numba": ds_lstm_numba,
    "triton": ds_lstm_triton,
}
WITH_GATE_NORM = ("naive", "eager", "numba")
# Functions that return the reason why a backend cannot run, or None
PROBLEMS = {"numba": numba_problem, "triton": triton_problem}
# Type of device -> backends to try before plain torch, the fastest first
FASTEST = {"cpu": ["numba"], "cuda": ["triton"]}
ENVIRONMENT_VARIABLE = "DSLSTM_BACKEND"

logger = get_logger(__name__)


class Choice(NamedTuple):
    """A backend's name, the reason for choosing it, and its function."""

    name: str
    reason: str
    function: Callable[..., tuple[torch.Tensor, torch.Tensor, torch.Tensor]]


@functools.cache
def announce_backend(name: str, reason: str) -> None:
    """Log a choice once in the life of the process."""
    logger.info("DS-LSTM backend %s (%s)", name, reason)


def check_backend(
    requested: str = "auto", gate_norm: bool = False
) -> tuple[str, str]:
    """Return the requested backend's name and who requested it.

    Whether it can run on this machine is not checked. Raises ValueError for an
    unknown name, and for a backend without gate norm where one is needed.

    >>> check_backend("eager", gate_norm=True)
    ('eager', "backend='eager'")
    """
    name, reason = requested, f"backend={requested!r}"
    if override := os.environ.get(ENVIRONMENT_VARIABLE):
        name, reason = override, f"{ENVIRONMENT_VARIABLE}={override}"
    if name != "auto" and name not in BACKENDS:
        raise ValueError(
            f"unknown DS-LSTM backend {name!r} ({reason}); expected one of "
            + ", ".join(["auto", *BACKENDS])
        )
    if gate_norm and name not in ("auto", *WITH_GATE_NORM):
        raise ValueError(
            f"DS-LSTM backend {name!r} ({reason}) has no gate norm; use "
            + ", ".join(["auto", *WITH_GATE_NORM])
        )
    return name, reason


def choose_backend(
    requested: str = "auto",
    gate_norm: bool = False,
    like: torch.Tensor | None = None,
) -> Choice:
    """Choose the backend for a layer whose ``weight_x`` is ``like``.

    By default ``like`` is float32 on the CPU. Raises ValueError as
    ``check_backend`` does, and for a requested backend that cannot run.

    >>> half = torch.zeros(1, dtype=torch.float16)
    >>> choose_backend(like=half)[:2]
    ('fused', 'auto: numba computes in float32 and float64, not float16')
    """
    name, reason = check_backend(requested, gate_norm)
    like = torch.empty(0, dtype=torch.float32) if like is None else like
    if name != "auto":
        find_problem = PROBLEMS.get(name)
        problem = find_problem and find_problem(like, gate_norm)
        if problem:
            raise ValueError(
                f"DS-LSTM backend {name!r} ({reason}) cannot run: {problem}; "
                "use auto"
            )
        return Choice(name, reason, BACKENDS[name])
    problems = []
    for name in FASTEST.get(like.device.type, []):
        off = reason_for_torch() if name == "numba" else None
        problem = off or PROBLEMS[name](like, gate_norm)
        if not problem:
            reason = "; ".join(["auto: the fastest here", *problems])
            return Choice(name, reason, BACKENDS[name])
        problems.append(problem)
    name = "eager" if gate_norm else "fused"
    why = "; ".join(problems) or f"nothing faster on {like.device.type}"
    return Choice(name, f"auto: {why}", BACKENDS[name])
