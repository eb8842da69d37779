"""Convolution of one channel and max pooling by compiled loops, on a CPU.

The first convolution of a spectrogram makes 64 values of each input value, and
pooling keeps one in four: writing them to memory would take longer than
computing them. Here the values of a pooling window stay in registers, and the
backward pass computes them again to find the largest. Reference:
``conv_pool.conv_pool_reference``.
"""

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from speechbrain_dslstm.utils.loops import Loops, in_threads, reason_for_torch

__all__ = ["conv_pool_image", "conv_pool_problem", "pool_rows"]

LOOPS = Loops("speechbrain_dslstm.kernels.conv_pool_loops")
# Above this LLVM no longer unrolls the loops over a window
MOST_PRODUCTS = 64


def conv_pool_problem(x: Tensor, weight: Tensor, pool_size: int) -> str | None:
    """Reason why the compiled loops cannot do a convolution, or None.

    >>> image, filters = torch.zeros(1, 2, 9, 9), torch.zeros(4, 2, 2, 2)
    >>> conv_pool_problem(image, filters, 2)
    '2 input channels, not one'
    """
    if weight.shape[1] != 1:
        return f"{weight.shape[1]} input channels, not one"
    if x.requires_grad:
        return "the images need a gradient"
    if x.dtype not in (torch.float32, torch.float64):
        return f"{str(x.dtype).removeprefix('torch.')} images"
    if weight[0].numel() * pool_size**2 > MOST_PRODUCTS:
        return "filters and windows are too large"
    return reason_for_torch() or LOOPS.problem


def conv_pool_image(
    x: Tensor,
    weight: Tensor,
    padding: tuple[int, int],
    pool_size: int,
    shift: Tensor | None = None,
    counts: Tensor | None = None,
) -> Tensor:
    """Same signature as ``conv_pool``, for images that need no gradient."""
    return _ConvPoolImage.apply(x, weight, padding, pool_size, shift, counts)


def pool_rows(
    x: Tensor,
    filters: Tensor,
    padding: tuple[int, int],
    sides: tuple[int, int, int],
    shift: Tensor,
    rectify: bool,
    counts: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Convolve and pool x [batch, 1, time, frequency] in threads, without autograd.

    filters is [K, channel]; sides are (pool size, filter height, filter width);
    shift [channel] is added, a ReLU follows if ``rectify``. Returns the
    pooled values, [batch, time', frequency', channel], the padded images and
    the valid frames of each item.

    >>> filters, shift = torch.ones(1, 3), torch.arange(3.0)
    >>> x, sides = torch.ones(1, 1, 2, 2), (2, 1, 1)
    >>> out, _, _ = pool_rows(x, filters, (0, 0), sides, shift, False)
    >>> out.flatten()
    tensor([1., 2., 3.])
    """
    rows, columns = padding
    image = pad(x[:, 0], (columns, columns, rows, rows)).contiguous()
    time, bins = (
        (size - side + 1) // sides[0]
        for size, side in zip(image.shape[1:], sides[1:], strict=True)
    )
    out = image.new_empty(len(x), time, bins, filters.shape[1])
    frames = torch.full((len(x),), time) if counts is None else counts
    arrays = [v.detach().numpy() for v in (image, filters, shift)]
    ranges = _ranges(sides)

    def work(_: int, share: tuple[int, int]) -> None:
        LOOPS.load().forward(
            *arrays, rectify, frames.numpy(), share, ranges, out.numpy()
        )

    in_threads(work, len(x) * time, out.numel())
    return out, image, frames


def _ranges(sides):
    """Tuples ``range(side)``, whose lengths the compiler knows."""
    return tuple(tuple(range(side)) for side in sides)


class _ConvPoolImage(torch.autograd.Function):
    """``conv_pool_image`` and its gradients."""

    @staticmethod
    def forward(ctx, x, weight, padding, pool_size, shift, counts):
        """Pool all items, to [batch, channel, time', frequency']."""
        ctx.shape, ctx.shifted = weight.shape, shift is not None
        ctx.sides = pool_size, *weight.shape[2:]
        filters = weight.flatten(1).t().contiguous()
        moved = shift if ctx.shifted else x.new_zeros(len(weight))
        out, image, frames = pool_rows(
            x, filters, padding, ctx.sides, moved, ctx.shifted, counts
        )
        ctx.save_for_backward(image, filters, frames, out)
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
        ranges = _ranges(ctx.sides)

        def work(thread: int, share: tuple[int, int]) -> None:
            LOOPS.load().backward(
                *(*arrays, ctx.shifted, frames.numpy()),
                *(share, ranges, parts[thread]),
            )

        in_threads(work, len(grad) * grad.shape[1], grad.numel())
        *grad_filters, grad_shift = torch.from_numpy(parts.sum(0))
        grad_weight = torch.stack(grad_filters, 1).reshape(ctx.shape)
        grad_shift = grad_shift if ctx.shifted else None
        return None, grad_weight, None, None, grad_shift, None
