"""Convolution and max pooling of images, fast on a CPU.

The output of a spectrogram's first convolution is 64 times its input, and
pooling keeps a quarter of it. Computed clip by clip, that output stays in a
CPU's cache, and only the pooled values and their places are kept for the
backward pass. With one input channel the compiled loops of ``conv_pool_numba``
do all this; where they cannot run, the convolution is one product with the
image's patches. ``conv_moments`` derives the moments of the output from those
of the patches, without computing the output.

Images are [batch, channel, time, frequency] in channels-last memory. Symbols:
C channels, K = kernel height * kernel width, the values of a patch.
"""

import functools

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import conv2d, max_pool2d, pad

from speechbrain_dslstm.kernels.conv_pool_numba import (
    conv_pool_image,
    conv_pool_problem,
    pool_rows,
)
from speechbrain_dslstm.lengths import zero_padding
from speechbrain_dslstm.utils.distributed import sum_over_ranks

__all__ = [
    "ClipConvPool",
    "conv_moments",
    "conv_pool",
    "conv_pool_reference",
    "prefers_single_clips",
]

_POOL_BACKWARD = torch.ops.aten.max_pool2d_with_indices_backward


def conv_pool(
    x: Tensor,
    weight: Tensor,
    padding: tuple[int, int],
    pool_size: int,
    shift: Tensor | None = None,
    counts: Tensor | None = None,
) -> Tensor:
    """Convolution without bias, then max pooling, then shift and ReLU.

    On a CPU it has no second derivatives; elsewhere, and when a graph is
    exported or compiled, it is ``conv_pool_reference``.

    x is [batch, in_channels, time, frequency], weight [channel, in_channels,
    height, width]; padding is the number of zeros on either side of time and of
    frequency; pool_size is the size and stride of the pooling. shift [channel],
    if given, is added after the pooling and followed by a ReLU. counts, int64
    [batch], are the valid frames of the output; later ones become zero.
    Returns [batch, channel, time', frequency'], in channels-last memory on a CPU.
    """
    function = _ConvPool.apply
    with torch.autocast(x.device.type, enabled=False):
        weight = weight.to(x.dtype)
        if not prefers_single_clips(x):
            function = conv_pool_reference
        elif conv_pool_problem(x, weight, pool_size) is None:
            function = conv_pool_image
        shift = None if shift is None else shift.to(x.dtype)
        return function(x, weight, tuple(padding), pool_size, shift, counts)


def conv_pool_reference(
    x: Tensor,
    weight: Tensor,
    padding: tuple[int, int],
    pool_size: int,
    shift: Tensor | None = None,
    counts: Tensor | None = None,
) -> Tensor:
    """Same signature as ``conv_pool``, in plain torch."""
    out = max_pool2d(conv2d(x, weight, padding=tuple(padding)), pool_size)
    if shift is not None:
        out = (out + shift.view(-1, 1, 1)).relu()
    if counts is not None:
        out = zero_padding(out.transpose(1, 2), counts).transpose(1, 2)
    return out


def prefers_single_clips(x: Tensor) -> bool:
    """Whether a batch is faster clip by clip: on a CPU, unless a graph is made.

    A graph that is traced, compiled or exported must hold for batches of any
    size.
    """
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
    return x.device.type == "cpu" and not traced


class ClipConvPool:
    """``conv_pool`` for one clip after another, without gradients.

    Work that does not depend on the clip is done once, and torch's preparations
    for a gradient are left out, which saves a fifth of the time of a clip. weight
    is [channel, in_channels, height, width], on the CPU; shift is [channel].

    >>> x, weight = torch.randn(1, 1, 20, 16), torch.randn(8, 1, 2, 4)
    >>> shift = torch.randn(8)
    >>> found = ClipConvPool(weight, (0, 1), 2, shift)(x)
    >>> plain = conv_pool_reference(x, weight, (0, 1), 2, shift)
    >>> torch.allclose(found, plain, atol=1e-5)
    True
    """

    def __init__(
        self,
        weight: Tensor,
        padding: tuple[int, int],
        pool_size: int,
        shift: Tensor,
    ) -> None:
        weight, shift = weight.detach(), shift.detach()
        self.weight = weight.contiguous(memory_format=torch.channels_last)
        self.padding = tuple(padding)
        self.shift = shift
        self.sides = pool_size, *weight.shape[2:]
        self.filters = None
        if conv_pool_problem(weight[:, :1], weight, pool_size) is None:
            self.filters = weight.flatten(1).t().contiguous()

    def __call__(self, clip: Tensor) -> Tensor:
        """[1, in_channels, time, frequency] -> [1, channel, time', frequency']."""
        if self.filters is None:
            image = conv2d(clip, self.weight, padding=self.padding)
            image = _maximum(image, self.sides[0])
            return image.add_(self.shift.view(-1, 1, 1)).relu_()
        out, _, _ = pool_rows(
            clip, self.filters, self.padding, self.sides, self.shift, True
        )
        return out.permute(0, 3, 1, 2)


def conv_moments(
    x: Tensor, weight: Tensor, padding: tuple[int, int], counts: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, biased variance [channel] and number of a convolution's valid values.

    x is [batch, 1, time, frequency], zero at padded frames and without a
    gradient; counts [batch] are the valid frames of the output. The moments are
    over all ranks. The output is a linear map of the patches, so they are those of
    the patches (K and K * K numbers), mapped. The gradient reaches weight.

    >>> x, weight = torch.randn(2, 1, 9, 7), torch.randn(3, 1, 2, 4)
    >>> mean, variance, count = conv_moments(
    ...     x, weight, (0, 1), torch.tensor([8, 5])
    ... )
    >>> out = torch.nn.functional.conv2d(x, weight, padding=(0, 1))
    >>> valid = torch.cat([out[0].flatten(1), out[1, :, :5].flatten(1)], 1)
    >>> torch.allclose(mean, valid.mean(1), atol=1e-5), count.item()
    (True, 78.0)
    """
    size = weight[0].numel()
    total = x.new_zeros(size + 1, size + 1, dtype=torch.float64)
    exact = torch.autocast(x.device.type, enabled=False)
    with torch.no_grad(), exact:
        # Patches are centred first: near zero, float32 products are precise enough
        level = sum_over_ranks(torch.stack([x.mean(), x.new_ones(())]))
        level = level[0] / level[1]
        for clip, frames in zip(x.split(1), counts.tolist(), strict=True):
            patches = _patches(clip, weight.shape[2:], padding)[:, :frames]
            # With a row of ones, the product contains the sums, too
            patches = pad(patches - level, (0, 0, 0, 0, 0, 1), value=1.0)
            patches = patches.flatten(1)
            if x.is_cuda:
                # Where tf32 is allowed, products of float32 are not
                patches = patches.double()
            total += patches @ patches.t()
        total = sum_over_ranks(total)
        count = total[-1, -1].clamp(min=1)
        mean = total[-1, :-1] / count
        covariance = total[:-1, :-1] / count - torch.outer(mean, mean)
        mean = mean + level
    filters = weight.reshape(-1, size).double()
    variance = ((filters @ covariance) * filters).sum(1).clamp(min=0)
    moments = filters @ mean, variance, total[-1, -1]
    return tuple(value.to(weight.dtype) for value in moments)


def _patches(clip, kernel_size, padding):
    """Patches of a clip with one channel: [K, time', frequency']."""
    rows, columns = padding
    image = pad(clip[0, 0], (columns, columns, rows, rows))
    high, wide = kernel_size
    time, bins = image.shape[0] - high + 1, image.shape[1] - wide + 1
    places = ((i, j) for i in range(high) for j in range(wide))
    return torch.stack([image[i : i + time, j : j + bins] for i, j in places])


def _maximum(image, size):
    """Max pooling as maxima of strided views, without the places of the maxima."""
    for dim in (2, 3):
        steps = image.shape[dim] // size
        used = image.narrow(dim, 0, steps * size)
        views = used.unflatten(dim, (steps, size)).unbind(dim + 1)
        image = functools.reduce(torch.maximum, views)
    return image


def _images(like, shape):
    """Empty images in channels-last memory."""
    return torch.empty(
        shape, dtype=like.dtype, memory_format=torch.channels_last
    )


class _ConvPool(torch.autograd.Function):
    """``conv_pool`` clip by clip."""

    @staticmethod
    def forward(ctx, x, weight, padding, pool_size, shift, counts):
        """Pool clip by clip, keeping the pooled values and their places."""
        keep = any(ctx.needs_input_grad)
        filters = weight.contiguous(memory_format=torch.channels_last)
        kernel = weight.shape[2:]
        size = [
            (n + 2 * p - k + 1) // pool_size
            for n, p, k in zip(x.shape[2:], padding, kernel, strict=True)
        ]
        out = _images(x, (len(x), len(weight), *size))
        frames = [size[0]] * len(x) if counts is None else counts.tolist()
        reach = [
            min(x.shape[2], n * pool_size + kernel[0] - 1 - padding[0])
            for n in frames
        ]
        sizes, places = [], []
        for i, clip in enumerate(x.split(1)):
            # Nothing after the valid frames is computed
            clip = clip[:, :, : reach[i]]
            if weight.shape[1] == 1:
                patches = _patches(clip, weight.shape[2:], padding)
                image = patches.flatten(1).t() @ weight.flatten(1).t()
                image = image.view(1, *patches.shape[1:], -1)
                image = image.permute(0, 3, 1, 2)
            else:
                image = conv2d(clip, filters, padding=padding)
            if keep:
                found, place = max_pool2d(image, pool_size, return_indices=True)
                places.append(place)
            else:
                found = _maximum(image, pool_size)
            sizes.append(image.shape)
            found, into = found[0, :, : frames[i]], out[i, :, : frames[i]]
            if shift is None:
                into.copy_(found)
            else:
                torch.add(found, shift.view(-1, 1, 1), out=into).relu_()
            out[i, :, frames[i] :] = 0
        ctx.padding, ctx.pool_size = padding, [pool_size, pool_size]
        ctx.sizes, ctx.frames, ctx.reach = sizes, frames, reach
        saved = (out,) if shift is not None else ()
        ctx.save_for_backward(x, weight, *saved, *places)
        ctx.shifted = shift is not None
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        """Gradients of the images, if needed, of the filters and of the shift."""
        x, weight, *places = ctx.saved_tensors
        out = places.pop(0) if ctx.shifted else None
        filters = weight.contiguous(memory_format=torch.channels_last)
        want_x = ctx.needs_input_grad[0]
        as_product = weight.shape[1] == 1 and not want_x
        grad_weight = torch.zeros_like(filters)
        grad_x = torch.zeros_like(x) if want_x else None
        grad_shift = grad.new_zeros(len(weight)) if ctx.shifted else None
        one, none = [1, 1], [0, 0]
        for i, place in enumerate(places):
            frames, reach = ctx.frames[i], ctx.reach[i]
            clip = x[i : i + 1, :, :reach]
            found = grad[i : i + 1, :, :frames]
            if ctx.shifted:
                found = torch.ops.aten.threshold_backward(
                    found, out[i : i + 1, :, :frames], 0
                )
                grad_shift += found.permute(0, 2, 3, 1).flatten(0, 2).sum(0)
            back = _images(grad, place.shape)
            back[:, :, :frames] = found
            # The pooling may reach further than the valid frames
            back[:, :, frames:] = 0
            # Only its shape and memory layout are read
            image = _images(grad, ctx.sizes[i])
            back = _POOL_BACKWARD(
                back, image, ctx.pool_size, ctx.pool_size,
                none, one, False, place,
            )  # fmt: skip
            if as_product:
                patches = _patches(clip, weight.shape[2:], ctx.padding)
                back = back.permute(0, 2, 3, 1).flatten(0, 2)
                found = (patches.flatten(1) @ back).t()
                grad_weight += found.reshape(weight.shape)
                continue
            clip_grad, found, _ = torch.ops.aten.convolution_backward(
                back, clip, filters, None, one, list(ctx.padding), one,
                False, none, 1, [want_x, True, False],
            )  # fmt: skip
            grad_weight += found
            if want_x:
                grad_x[i : i + 1, :, :reach] = clip_grad
        return grad_x, grad_weight, None, None, grad_shift, None
