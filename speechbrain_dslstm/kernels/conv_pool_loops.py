"""Loops of a convolution of one channel and its max pooling, by numba.

Imported only when they run; see ``conv_pool_numba``. For each pooled value the
window's convolutions stay in registers: neither the patches nor the
convolution's output, as large as 64 images, is ever written to memory.

Arguments of both loops: image [batch, rows, columns], padded; filters
[K, channel], of height * width values each; out and grad
[batch, time', frequency', channel]; frames, int64 [batch], the valid frames of
the output; rows, the range (first, end) of output rows, counted through the
batch. sides are the pool size and the filters' height and width, each as the
tuple ``range(side)``, whose length the compiler knows, so that it unrolls the
loops over it.

The innermost loops run along the channels, because LLVM vectorises those.
Slicing an array there counts its references, which would cost as much as a
window.
"""

import numpy as np
from numpy import ndarray

from speechbrain_dslstm.utils.compiled import compiled

__all__ = ["backward", "forward"]


@compiled()
def _filter(image, b, y, x, filters, c, high, wide):
    """Compute one value of the convolution."""
    value = image[b, y, x] * filters[0, c]
    for k in range(1, len(high) * len(wide)):
        i, j = k // len(wide), k % len(wide)
        value += image[b, y + i, x + j] * filters[k, c]
    return value


@compiled()
def forward(
    image: ndarray, filters: ndarray, shift: ndarray, rectify: bool,
    frames: ndarray, rows: tuple[int, int], sides: tuple, out: ndarray,
) -> None:  # fmt: skip
    """Convolve and pool some rows of a batch into ``out``.

    shift [channel] is added after the pooling; if ``rectify``, a ReLU follows.
    Frames of the output that are not valid become zero.
    """
    pool, high, wide = sides
    _, time, bins, channels = out.shape
    for row in range(rows[0], rows[1]):
        b, t = row // time, row % time
        if t >= frames[b]:
            out[b, t] = 0
            continue
        for f in range(bins):
            y, x = len(pool) * t, len(pool) * f
            for c in range(channels):
                found = _filter(image, b, y, x, filters, c, high, wide)
                for q in range(1, len(pool) * len(pool)):
                    i, j = q // len(pool), q % len(pool)
                    value = _filter(
                        image, b, y + i, x + j, filters, c, high, wide
                    )
                    # As in torch, NaN is larger than any number
                    larger = (value > found) | (value != value)
                    found = value if larger else found
                found += shift[c]
                out[b, t, f, c] = found if not ((found < 0) & rectify) else 0


@compiled()
def backward(
    image: ndarray, filters: ndarray, grad: ndarray, out: ndarray,
    rectify: bool, frames: ndarray, rows: tuple[int, int], sides: tuple,
    total: ndarray,
) -> None:  # fmt: skip
    """Add the gradients from some rows of a batch to ``total``, [K + 1, channel].

    Its last row is the gradient of the shift. grad is the gradient of ``out``,
    which is read only if ``rectify``.
    """
    pool, high, wide = sides
    _, time, bins, channels = grad.shape
    windows, taps = len(pool) * len(pool), len(high) * len(wide)
    place = np.empty(channels, image.dtype)
    slope = np.empty(channels, image.dtype)
    at = np.empty((windows, channels), image.dtype)
    part = np.empty((taps + 1, channels), image.dtype)
    for row in range(rows[0], rows[1]):
        b, t = row // time, row % time
        if t >= frames[b]:
            continue
        # Each row is summed first, so that rounding does not grow with the batch
        part[:] = 0
        for f in range(bins):
            y, x = len(pool) * t, len(pool) * f
            # The place of the maximum: the first of equal values
            for c in range(channels):
                found = _filter(image, b, y, x, filters, c, high, wide)
                where = found * 0
                for q in range(1, windows):
                    i, j = q // len(pool), q % len(pool)
                    value = _filter(
                        image, b, y + i, x + j, filters, c, high, wide
                    )
                    larger = (value > found) | (value != value)
                    where = q if larger else where
                    found = value if larger else found
                place[c] = where
            for c in range(channels):
                gone = rectify & (out[b, t, f, c] <= 0)
                slope[c] = 0 if gone else grad[b, t, f, c]
                part[taps, c] += slope[c]
            for q in range(windows):
                for c in range(channels):
                    at[q, c] = slope[c] if place[c] == q else 0
            for k in range(taps):
                row_k, column_k = y + k // len(wide), x + k % len(wide)
                for c in range(channels):
                    value = part[k, c]
                    for q in range(windows):
                        i, j = q // len(pool), q % len(pool)
                        value += image[b, row_k + i, column_k + j] * at[q, c]
                    part[k, c] = value
        total += part
