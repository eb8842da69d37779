"""Loops of a batch normalisation over valid frames, compiled by numba.

Imported only when they run; see ``batch_norm_numba``. Each loop goes through
its arrays once and never reads a padded frame.

Arguments: x, out, grad and grad_x [batch, time, place, channel]; frames, int64
[batch], the valid frames; rectify, whether a ReLU follows the normalisation;
share, the range (first, end) of clips. Sums over a frame have the arrays'
precision; sums over all frames, total [2, channel], are float64. The innermost
loops run along the channels and write only one or two arrays, because LLVM does
not vectorise loops that write more.
"""

import numpy as np
from numpy import ndarray

from speechbrain_dslstm.utils.compiled import compiled

__all__ = ["apply", "moments", "propagate", "slopes"]


@compiled()
def moments(
    x: ndarray, frames: ndarray, centre: ndarray,
    share: tuple[int, int], total: ndarray,
) -> None:  # fmt: skip
    """Add the sums of x - centre and of its square to ``total``.

    centre [channel] is near the mean, so that no digits are lost.
    """
    _, _, places, channels = x.shape
    first, second = np.empty(channels, x.dtype), np.empty(channels, x.dtype)
    for b in range(share[0], share[1]):
        for t in range(frames[b]):
            first[:] = 0
            second[:] = 0
            for v in range(places):
                for c in range(channels):
                    value = x[b, t, v, c] - centre[c]
                    first[c] += value
                    second[c] += value * value
            for c in range(channels):
                total[0, c] += first[c]
                total[1, c] += second[c]


@compiled()
def apply(
    x: ndarray, frames: ndarray, terms: ndarray, rectify: bool,
    share: tuple[int, int], out: ndarray,
) -> None:  # fmt: skip
    """Write normalised values to ``out``; zero at padded frames.

    terms [3, channel] are the mean, and the scale and shift of x - mean.
    """
    _, _, places, channels = x.shape
    for b in range(share[0], share[1]):
        out[b, frames[b] :] = 0
        for t in range(frames[b]):
            for v in range(places):
                for c in range(channels):
                    above = x[b, t, v, c] - terms[0, c]
                    value = above * terms[1, c] + terms[2, c]
                    out[b, t, v, c] = (
                        value if not (rectify & (value < 0)) else 0
                    )


@compiled()
def slopes(
    x: ndarray, grad: ndarray, out: ndarray, frames: ndarray, mean: ndarray,
    rectify: bool, share: tuple[int, int], total: ndarray,
) -> None:  # fmt: skip
    """Add the sums of grad and of grad * (x - mean) to ``total``.

    grad is the gradient of ``out``, which is read only if ``rectify``.
    """
    _, _, places, channels = x.shape
    first, second = np.empty(channels, x.dtype), np.empty(channels, x.dtype)
    for b in range(share[0], share[1]):
        for t in range(frames[b]):
            first[:] = 0
            second[:] = 0
            for v in range(places):
                for c in range(channels):
                    g = grad[b, t, v, c]
                    g = 0 if rectify & (out[b, t, v, c] <= 0) else g
                    first[c] += g
                    second[c] += (x[b, t, v, c] - mean[c]) * g
            for c in range(channels):
                total[0, c] += first[c]
                total[1, c] += second[c]


@compiled()
def propagate(
    x: ndarray, grad: ndarray, out: ndarray, frames: ndarray, terms: ndarray,
    rectify: bool, share: tuple[int, int], grad_x: ndarray,
) -> None:  # fmt: skip
    """Write scale * grad + slope * x + level to ``grad_x``; zero at padding.

    terms [3, channel] are scale, slope and level.
    """
    _, _, places, channels = x.shape
    for b in range(share[0], share[1]):
        grad_x[b, frames[b] :] = 0
        for t in range(frames[b]):
            for v in range(places):
                for c in range(channels):
                    g = grad[b, t, v, c]
                    g = 0 if rectify & (out[b, t, v, c] <= 0) else g
                    value = terms[1, c] * x[b, t, v, c] + terms[2, c]
                    grad_x[b, t, v, c] = terms[0, c] * g + value
