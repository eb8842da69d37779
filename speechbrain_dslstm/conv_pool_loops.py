"""Loops of a convolution of one channel and its max pooling, by numba.

Imported only when they run; see ``conv_pool_numba``. For each pooled value the
window's convolutions stay in registers: neither the patches nor the
convolution's output, as large as 64 images, is ever written to memory.

Arrays: image [batch, rows, columns], padded; filters [K, channel]; out and
grad [batch, time', frequency', channel]. ``corners`` tells where the patches
of a window begin in a flat image and ``under`` where the values of a patch
stand from there: tuples, whose lengths the compiler knows, so that it unrolls
the loops over them. The innermost loops run along the channels, because LLVM
makes vector code of those.
"""

import numpy as np

from speechbrain_dslstm.jit import compiled

__all__ = ["backward", "forward"]


@compiled()
def _gather(patch, image, first, corners, under):
    """The patches of one window."""
    for q in range(len(corners)):
        for k in range(len(under)):
            patch[q, k] = image[first + corners[q] + under[k]]


@compiled()
def _pool(patch, filters, shift, rectify, corners, under, out):
    """Maxima over one window, shifted."""
    for c in range(out.shape[0]):
        found = patch[0, 0] * filters[0, c]
        for k in range(1, len(under)):
            found += patch[0, k] * filters[k, c]
        for q in range(1, len(corners)):
            value = patch[q, 0] * filters[0, c]
            for k in range(1, len(under)):
                value += patch[q, k] * filters[k, c]
            # NaN wherever there is one, as torch's
            larger = (value > found) | (value != value)
            found = value if larger else found
        found += shift[c]
        out[c] = found if not ((found < 0) & rectify) else 0


@compiled()
def _locate(patch, filters, corners, under, place):
    """Where the maximum of a window is: the first of equals."""
    for c in range(place.shape[0]):
        found = patch[0, 0] * filters[0, c]
        for k in range(1, len(under)):
            found += patch[0, k] * filters[k, c]
        where = found * 0
        for q in range(1, len(corners)):
            value = patch[q, 0] * filters[0, c]
            for k in range(1, len(under)):
                value += patch[q, k] * filters[k, c]
            larger = (value > found) | (value != value)
            where = q if larger else where
            found = value if larger else found
        place[c] = where


@compiled()
def _route(grad, place, at):
    """The gradients of the window's values."""
    for q in range(at.shape[0]):
        for c in range(grad.shape[0]):
            at[q, c] = grad[c] if place[c] == q else 0


@compiled()
def _multiply(patch, at, corners, under, total):
    """Add the products of a window's values and their gradients."""
    for k in range(len(under)):
        for c in range(at.shape[1]):
            value = total[k, c]
            for q in range(len(corners)):
                value += patch[q, k] * at[q, c]
            total[k, c] = value


@compiled()
def forward(image, filters, shift, rectify, frames, rows, places, out):
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
    places : tuple
        ``corners``, ``under`` and the pool size.
    out : numpy.ndarray, [batch, time', frequency', channel]
        These rows of it are filled.

    Example
    -------
    >>> image = np.float32([[[1, 2], [3, 4]]])
    >>> filters, shift = np.float32([[1, -1]]), np.float32([0, 0.5])
    >>> out, frames = np.empty((1, 1, 1, 2), np.float32), np.array([1])
    >>> places = (0, 1, 2, 3), (0,), 2
    >>> forward(image, filters, shift, False, frames, (0, 1), places, out)
    >>> out.ravel().tolist()
    [4.0, -0.5]
    """
    corners, under, pool = places
    _, time, bins, _ = out.shape
    patch = np.empty((len(corners), len(under)), image.dtype)
    for row in range(rows[0], rows[1]):
        b, t = row // time, row % time
        if t >= frames[b]:
            out[b, t] = 0
            continue
        flat = image[b].ravel()
        for f in range(bins):
            first = pool * (t * image.shape[2] + f)
            _gather(patch, flat, first, corners, under)
            _pool(patch, filters, shift, rectify, corners, under, out[b, t, f])


@compiled()
def backward(image, filters, grad, frames, rows, places, grad_filters):
    """Add what some rows of a batch give to the filters' gradient.

    Arguments
    ---------
    image : numpy.ndarray, [batch, rows, columns]
        Padded images.
    filters : numpy.ndarray, [K, channel]
        Filters.
    grad : numpy.ndarray, [batch, time', frequency', channel]
        Gradient of the pooled values.
    frames : numpy.ndarray, int64, [batch]
        Valid frames of the output.
    rows : tuple of int
        As of ``forward``.
    places : tuple
        As of ``forward``.
    grad_filters : numpy.ndarray, [K, channel]
        Is added to.

    Example
    -------
    >>> image = np.float32([[[1, 2], [3, 4]]])
    >>> filters, total = np.float32([[1, -1]]), np.zeros((1, 2), np.float32)
    >>> grad, frames = np.ones((1, 1, 1, 2), np.float32), np.array([1])
    >>> places = (0, 1, 2, 3), (0,), 2
    >>> backward(image, filters, grad, frames, (0, 1), places, total)
    >>> total.tolist()
    [[4.0, 1.0]]
    """
    corners, under, pool = places
    _, time, bins, channels = grad.shape
    patch = np.empty((len(corners), len(under)), image.dtype)
    place = np.empty(channels, image.dtype)
    at = np.empty((len(corners), channels), image.dtype)
    part = np.empty((len(under), channels), image.dtype)
    for row in range(rows[0], rows[1]):
        b, t = row // time, row % time
        if t >= frames[b]:
            continue
        # A row's sum first, so that rounding does not grow with the batch
        part[:] = 0
        flat = image[b].ravel()
        for f in range(bins):
            first = pool * (t * image.shape[2] + f)
            _gather(patch, flat, first, corners, under)
            _locate(patch, filters, corners, under, place)
            _route(grad[b, t, f], place, at)
            _multiply(patch, at, corners, under, part)
        grad_filters += part
