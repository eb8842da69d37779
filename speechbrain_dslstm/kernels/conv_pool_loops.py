"""Loops of a convolution of one channel and its max pooling, by numba.

Imported only when they run; see ``conv_pool_numba``. For each pooled value the
window's convolutions stay in registers: neither the patches nor the
convolution's output, as large as 64 images, is ever written to memory.

Arrays: image [batch, rows, columns], padded; filters [K, channel], of high *
wide values each; out and grad [batch, time', frequency', channel]. The sides
are tuples ``range(side)``, whose lengths the compiler knows, so that it unrolls
the loops over them. The innermost loops run along the channels, because LLVM
makes vector code of those; a view of an array in there, which is counted,
would cost as much as a window.
"""

import numpy as np

from speechbrain_dslstm.utils.compiled import compiled

__all__ = ["backward", "forward"]


@compiled()
def _filter(image, b, y, x, filters, c, high, wide):
    """One value of the convolution."""
    value = image[b, y, x] * filters[0, c]
    for k in range(1, len(high) * len(wide)):
        i, j = k // len(wide), k % len(wide)
        value += image[b, y + i, x + j] * filters[k, c]
    return value


@compiled()
def forward(image, filters, shift, rectify, frames, rows, sides, out):
    """Convolve and pool some rows of a batch.

    Arguments
    ---------
    image : numpy.ndarray, [batch, rows, columns]
        Padded images.
    filters : numpy.ndarray, [K, channel]
        Filters.
    shift : numpy.ndarray, [channel]
        Added after the pooling.
    rectify : bool
        Whether a ReLU follows.
    frames : numpy.ndarray, int64, [batch]
        Valid frames of the output; those behind them become zero.
    rows : tuple of int
        First row of the output, counted through the batch, and the one
        behind the last.
    sides : tuple of tuple of int
        ``range`` of the pool size, and of the filters' height and width.
    out : numpy.ndarray, [batch, time', frequency', channel]
        These rows of it are filled.

    Example
    -------
    >>> image = np.float32([[[1, 2], [3, 4]]])
    >>> filters, shift = np.float32([[1, -1]]), np.float32([0, 0.5])
    >>> out, frames = np.empty((1, 1, 1, 2), np.float32), np.array([1])
    >>> sides = (0, 1), (0,), (0,)
    >>> forward(image, filters, shift, False, frames, (0, 1), sides, out)
    >>> out.ravel().tolist()
    [4.0, -0.5]
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
                    # NaN wherever there is one, as torch's
                    larger = (value > found) | (value != value)
                    found = value if larger else found
                found += shift[c]
                out[b, t, f, c] = found if not ((found < 0) & rectify) else 0


@compiled()
def backward(image, filters, grad, out, rectify, frames, rows, sides, total):
    """Add what some rows of a batch give to the gradients.

    Arguments
    ---------
    image : numpy.ndarray, [batch, rows, columns]
        Padded images.
    filters : numpy.ndarray, [K, channel]
        Filters.
    grad : numpy.ndarray, [batch, time', frequency', channel]
        Gradient of the pooled values.
    out : numpy.ndarray, [batch, time', frequency', channel]
        Those values; looked at where they were rectified.
    rectify : bool
        Whether a ReLU followed.
    frames : numpy.ndarray, int64, [batch]
        Valid frames of the output.
    rows : tuple of int
        As of ``forward``.
    sides : tuple of tuple of int
        As of ``forward``.
    total : numpy.ndarray, [K + 1, channel]
        Gradients of the filters and, last, of the shift; is added to.

    Example
    -------
    >>> image = np.float32([[[1, 2], [3, 4]]])
    >>> filters, total = np.float32([[1, -1]]), np.zeros((2, 2), np.float32)
    >>> grad, frames = np.ones((1, 1, 1, 2), np.float32), np.array([1])
    >>> out, sides = 0 * grad, ((0, 1), (0,), (0,))
    >>> backward(image, filters, grad, out, False, frames, (0, 1), sides, total)
    >>> total.tolist()
    [[4.0, 1.0], [1.0, 1.0]]
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
        # A row's sum first, so that rounding does not grow with the batch
        part[:] = 0
        for f in range(bins):
            y, x = len(pool) * t, len(pool) * f
            # Where the maximum is: the first of equals
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
