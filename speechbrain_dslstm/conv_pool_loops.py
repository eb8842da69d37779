"""Loops of a convolution of one channel and its max pooling, by numba.

Imported only when they run; see ``conv_pool_numba``. For each pooled value the
window's convolutions stay in registers: neither the patches nor the
convolution's output, as large as 64 images, is ever written to memory.

Arrays: image [batch, rows, columns], padded; filters [K, channel], ``wide``
values in a row; out and grad [batch, time', frequency', channel]. The innermost loops run along the
channels, because LLVM makes vector code of those.
"""

import functools
import math

import numpy as np

from speechbrain_dslstm.jit import compiled

__all__ = ["make_loops"]


@functools.cache
def make_loops(taps, window):
    """Loops for one size of filter and window, which LLVM then unrolls.

    Arguments
    ---------
    taps : int
        Values under a filter, height times width.
    window : int
        Values that are pooled into one, the pool size squared.

    Returns
    -------
    forward : callable
        ``(image, wide, filters, shift, rectify, frames, rows, out)`` fills
        the given rows, counted through the batch, of ``out``.
    backward : callable
        ``(image, wide, filters, grad, frames, rows, grad_filters)`` adds to
        ``grad_filters`` what they give.

    Example
    -------
    >>> forward, _ = make_loops(taps=1, window=4)
    >>> image = np.float32([[[1, 2], [3, 4]]])
    >>> filters, shift = np.float32([[1, -1]]), np.float32([0, 0.5])
    >>> out = np.empty((1, 1, 1, 2), np.float32)
    >>> frames, rows = np.array([1]), (0, 1)
    >>> forward(image, 1, filters, shift, False, frames, rows, out)
    >>> out.ravel().tolist()
    [4.0, -0.5]
    """

    pool = math.isqrt(window)

    @compiled()
    def offsets(wide, columns):
        """Where the values under a filter stand, from its corner on."""
        found = np.empty(taps, np.int64)
        for k in range(taps):
            found[k] = k // wide * columns + k % wide
        return found

    @compiled()
    def gather(patch, image, under, columns, t, f):
        """The patches of one window."""
        corner = pool * (t * columns + f)
        for i in range(pool):
            for j in range(pool):
                for k in range(taps):
                    at = corner + i * columns + j + under[k]
                    patch[pool * i + j, k] = image[at]

    @compiled()
    def pooled(patch, filters, shift, rectify, out):
        """Maxima over one window, shifted."""
        for c in range(out.shape[0]):
            found = patch[0, 0] * filters[0, c]
            for k in range(1, taps):
                found += patch[0, k] * filters[k, c]
            for q in range(1, window):
                value = patch[q, 0] * filters[0, c]
                for k in range(1, taps):
                    value += patch[q, k] * filters[k, c]
                # NaN wherever there is one, as torch's
                larger = (value > found) | (value != value)
                found = value if larger else found
            found += shift[c]
            out[c] = found if not ((found < 0) & rectify) else 0

    @compiled()
    def forward(image, wide, filters, shift, rectify, frames, rows, out):
        """Convolve and pool some rows of a batch."""
        _, time, bins, _ = out.shape
        columns = image.shape[2]
        under = offsets(wide, columns)
        patch = np.empty((window, taps), image.dtype)
        for row in range(rows[0], rows[1]):
            b, t = row // time, row % time
            if t >= frames[b]:
                out[b, t] = 0
                continue
            flat = image[b].ravel()
            for f in range(bins):
                gather(patch, flat, under, columns, t, f)
                pooled(patch, filters, shift, rectify, out[b, t, f])

    @compiled()
    def located(patch, filters, place):
        """Where the maximum of a window is: the first of equals."""
        for c in range(place.shape[0]):
            found = patch[0, 0] * filters[0, c]
            for k in range(1, taps):
                found += patch[0, k] * filters[k, c]
            where = found * 0
            for q in range(1, window):
                value = patch[q, 0] * filters[0, c]
                for k in range(1, taps):
                    value += patch[q, k] * filters[k, c]
                larger = (value > found) | (value != value)
                where = q if larger else where
                found = value if larger else found
            place[c] = where

    @compiled()
    def routed(grad, place, at):
        """The gradients of the window's values."""
        for q in range(window):
            for c in range(grad.shape[0]):
                at[q, c] = grad[c] if place[c] == q else 0

    @compiled()
    def multiplied(patch, at, total):
        """Add the products of a window's values and their gradients."""
        for k in range(taps):
            for c in range(at.shape[1]):
                value = total[k, c]
                for q in range(window):
                    value += patch[q, k] * at[q, c]
                total[k, c] = value

    @compiled()
    def backward(image, wide, filters, grad, frames, rows, grad_filters):
        """Add what some rows of a batch give to the filters' gradient."""
        _, time, bins, channels = grad.shape
        columns = image.shape[2]
        under = offsets(wide, columns)
        patch = np.empty((window, taps), image.dtype)
        place = np.empty(channels, image.dtype)
        at = np.empty((window, channels), image.dtype)
        part = np.empty((taps, channels), image.dtype)
        for row in range(rows[0], rows[1]):
            b, t = row // time, row % time
            if t >= frames[b]:
                continue
            # A row's sum first, so that rounding does not grow with the batch
            part[:] = 0
            flat = image[b].ravel()
            for f in range(bins):
                gather(patch, flat, under, columns, t, f)
                located(patch, filters, place)
                routed(grad[b, t, f], place, at)
                multiplied(patch, at, part)
            grad_filters += part

    return forward, backward
