"""Loops of a batch normalisation over valid frames, compiled by numba.

Imported only when they run; see ``batch_norm_numba``. Each goes through its
arrays once, and takes no look at padded frames.

Arrays: x, out, grad and grad_x [batch, time, place, channel]; frames, int64,
[batch], the valid ones. ``share`` holds the first clip and the one behind the
last. The sums of a frame are added up in the arrays' precision, those of all
frames in float64. The innermost loops run along the channels and write one or
two arrays, because LLVM makes vector code of only those.
"""

import numpy as np

from speechbrain_dslstm.utils.compiled import compiled

__all__ = ["apply", "moments", "propagate", "slopes"]


@compiled()
def moments(x, frames, centre, share, total):
    """Sums of what the values are above a centre, and of its square.

    Arguments
    ---------
    x : numpy.ndarray, [batch, time, place, channel]
        Values.
    frames : numpy.ndarray, int64, [batch]
        Valid frames.
    centre : numpy.ndarray, [channel]
        Near the mean, so that no digits are lost.
    share : tuple of int
        First clip, and the one behind the last.
    total : numpy.ndarray, float64, [2, channel]
        Is added to.

    Example
    -------
    >>> total = np.zeros((2, 1))
    >>> x = np.arange(3.0).reshape(1, 3, 1, 1)
    >>> moments(x, np.array([2]), np.array([-1.0]), (0, 1), total)
    >>> total.ravel().tolist()
    [3.0, 5.0]
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
def apply(x, frames, terms, rectify, share, out):
    """Normalised values, rectified if wanted; zero at padded frames.

    Arguments
    ---------
    x : numpy.ndarray, [batch, time, place, channel]
        Values.
    frames : numpy.ndarray, int64, [batch]
        Valid frames.
    terms : numpy.ndarray, [3, channel]
        Mean, and the scale and shift of what is above it.
    rectify : bool
        Whether a ReLU follows.
    share : tuple of int
        First clip, and the one behind the last.
    out : numpy.ndarray, [batch, time, place, channel]
        Is filled.

    Example
    -------
    >>> x, terms = np.full((1, 2, 1, 1), 4.0), np.array([[1.0], [2.0], [3.0]])
    >>> out = np.empty_like(x)
    >>> apply(x, np.array([1]), terms, False, (0, 1), out)
    >>> out.ravel().tolist()
    [9.0, 0.0]
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
def slopes(x, grad, out, frames, mean, rectify, share, total):
    """Sums of the gradients, and of their products with the centred values.

    Arguments
    ---------
    x : numpy.ndarray, [batch, time, place, channel]
        Values.
    grad : numpy.ndarray, [batch, time, place, channel]
        Gradient of the output.
    out : numpy.ndarray, [batch, time, place, channel]
        Output; looked at where it was rectified.
    frames : numpy.ndarray, int64, [batch]
        Valid frames.
    mean : numpy.ndarray, [channel]
        Of the values.
    rectify : bool
        Whether a ReLU followed.
    share : tuple of int
        First clip, and the one behind the last.
    total : numpy.ndarray, float64, [2, channel]
        Is added to.

    Example
    -------
    >>> x, total = np.arange(3.0).reshape(1, 3, 1, 1), np.zeros((2, 1))
    >>> one = np.ones(1)
    >>> slopes(x, x, x, np.array([3]), one, False, (0, 1), total)
    >>> total.ravel().tolist()
    [3.0, 2.0]
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
def propagate(x, grad, out, frames, terms, rectify, share, grad_x):
    """Gradient of the values: scale * grad + slope * value + level.

    Arguments
    ---------
    x : numpy.ndarray, [batch, time, place, channel]
        Values.
    grad : numpy.ndarray, [batch, time, place, channel]
        Gradient of the output.
    out : numpy.ndarray, [batch, time, place, channel]
        Output; looked at where it was rectified.
    frames : numpy.ndarray, int64, [batch]
        Valid frames.
    terms : numpy.ndarray, [3, channel]
        Scale, slope and level.
    rectify : bool
        Whether a ReLU followed.
    share : tuple of int
        First clip, and the one behind the last.
    grad_x : numpy.ndarray, [batch, time, place, channel]
        Is filled; zero at padded frames.

    Example
    -------
    >>> x, terms = np.ones((1, 2, 1, 1)), np.array([[1.0], [10.0], [100.0]])
    >>> grad_x = np.empty_like(x)
    >>> propagate(x, x, x, np.array([1]), terms, False, (0, 1), grad_x)
    >>> grad_x.ravel().tolist()
    [111.0, 0.0]
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
