"""Convolution of one channel and max pooling by compiled loops, on a CPU.

The first convolution of a spectrogram makes 64 values of each of its own, and
pooling keeps one of four: written to memory, they cost more time than their
computing. Here a window's stay in registers; the way back computes them again
to see which was the largest. Reference: ``conv_pool_reference``.
"""

import numpy as np
import torch
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from speechbrain_dslstm.utils.loops import Loops, in_threads

__all__ = ["conv_pool_image", "conv_pool_problem", "fill_rows"]

# Above this LLVM no longer unrolls the loops over a window
MOST_PRODUCTS = 64

LOOPS = Loops("speechbrain_dslstm.kernels.conv_pool_loops")


def conv_pool_problem(x, weight, pool_size):
    """Why the compiled loops cannot do a convolution, if they cannot.

    Arguments
    ---------
    x : torch.Tensor, [batch, in_channels, time, frequency]
        Images.
    weight : torch.Tensor, [channel, in_channels, height, width]
        Filters.
    pool_size : int
        Size and stride of the pooling.

    Returns
    -------
    str or None
        The reason; None if they can.

    Example
    -------
    >>> image, filters = torch.zeros(1, 2, 9, 9), torch.zeros(4, 2, 2, 2)
    >>> conv_pool_problem(image, filters, 2)
    '2 input channels, not one'
    """
    if weight.shape[1] != 1:
        return f"{weight.shape[1]} input channels, not one"
    if x.requires_grad:
        return "the images want a gradient"
    if x.dtype not in (torch.float32, torch.float64):
        return f"{str(x.dtype).removeprefix('torch.')} images"
    if weight[0].numel() * pool_size**2 > MOST_PRODUCTS:
        return "too large filters and windows"
    return LOOPS.problem


def conv_pool_image(x, weight, padding, pool_size, shift=None, counts=None):
    """What ``conv_pool`` computes, for images that want no gradient.

    Arguments
    ---------
    x : torch.Tensor, [batch, 1, time, frequency]
        Images, float32 or float64.
    weight : torch.Tensor, [channel, 1, height, width]
        Filters.
    padding : tuple of int, (time, frequency)
        Zeros around the images.
    pool_size : int
        Size and stride of the pooling.
    shift : torch.Tensor, [channel], optional
        Added after the pooling, and followed by a ReLU.
    counts : torch.Tensor, int64, [batch], optional
        Valid frames of the output; those behind them become zero.

    Returns
    -------
    torch.Tensor, [batch, channel, time', frequency']
        Pooled images, in channels-last memory.

    Example
    -------
    >>> x, weight = torch.ones(1, 1, 4, 4), torch.ones(2, 1, 1, 1)
    >>> conv_pool_image(x, weight, (0, 0), 2).shape
    torch.Size([1, 2, 2, 2])
    """
    return _ConvPoolImage.apply(x, weight, padding, pool_size, shift, counts)


def fill_rows(image, filters, shift, rectify, frames, sides, out):
    """Convolve and pool a batch into the memory given, in threads.

    Arguments
    ---------
    image, filters, shift, frames : torch.Tensor
        As the arrays of ``conv_pool_loops.forward``.
    rectify : bool
        As there.
    sides : tuple of int
        Pool size, and height and width of the filters.
    out : torch.Tensor, [batch, time', frequency', channel]
        Is filled.

    Example
    -------
    >>> image, out = torch.ones(1, 2, 2), torch.empty(1, 1, 1, 3)
    >>> filters, shift = torch.ones(1, 3), torch.arange(3.0)
    >>> frames, sides = torch.tensor([1]), (2, 1, 1)
    >>> fill_rows(image, filters, shift, False, frames, sides, out)
    >>> out.flatten()
    tensor([1., 2., 3.])
    """
    tensors = (image, filters, shift, frames, out)
    image, filters, shift, frames, values = (v.numpy() for v in tensors)
    sides = tuple(tuple(range(side)) for side in sides)

    def work(_, share):
        """Some rows of the batch."""
        LOOPS.load().forward(
            image, filters, shift, rectify, frames, share, sides, values
        )

    in_threads(work, len(out) * out.shape[1], out.numel())


class _ConvPoolImage(torch.autograd.Function):
    """``conv_pool_image`` and its gradients."""

    @staticmethod
    def forward(ctx, x, weight, padding, pool_size, shift, counts):
        """Pooled values of all clips, [batch, channel, time', frequency']."""
        channels, _, high, wide = weight.shape
        rows, columns = padding
        image = pad(x[:, 0], (columns, columns, rows, rows)).contiguous()
        filters = weight.flatten(1).t().contiguous()
        time, bins = (
            (size - side + 1) // pool_size
            for size, side in zip(image.shape[1:], (high, wide), strict=True)
        )
        sides = pool_size, high, wide
        ctx.sides = tuple(tuple(range(side)) for side in sides)
        out = image.new_empty(len(x), time, bins, channels)
        frames = torch.full((len(x),), time) if counts is None else counts
        moved = image.new_zeros(channels) if shift is None else shift.detach()
        ctx.shape, ctx.shifted = weight.shape, shift is not None
        ctx.save_for_backward(image, filters, frames, out)
        given = image.detach(), filters.detach(), moved
        fill_rows(*given, ctx.shifted, frames, sides, out)
        return out.permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        """Gradients of the filters and the shift."""
        image, filters, frames, out = ctx.saved_tensors
        grad = grad.permute(0, 2, 3, 1).contiguous()
        arrays = [v.numpy() for v in (image, filters, grad, out)]
        taps, channels = filters.shape
        parts = np.zeros(
            (torch.get_num_threads(), taps + 1, channels), arrays[0].dtype
        )

        def work(thread, share):
            """What some rows of the batch give."""
            LOOPS.load().backward(
                *(*arrays, ctx.shifted, frames.numpy()),
                *(share, ctx.sides, parts[thread]),
            )

        in_threads(work, len(grad) * grad.shape[1], grad.numel())
        *grad_filters, grad_shift = torch.from_numpy(parts.sum(0))
        grad_weight = torch.stack(grad_filters, 1).reshape(ctx.shape)
        grad_shift = grad_shift if ctx.shifted else None
        return None, grad_weight, None, None, grad_shift, None
