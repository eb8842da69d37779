"""Batch normalisation of the valid frames by compiled loops, on a CPU.

For masks, squares and differences, plain torch writes ten tensors of the batch's
size to memory and reads them again; here each pass only reads its arguments and
writes its result. Reference: ``masked_moments`` and ``affine`` of
``layers.batch_norm``, which run where the loops cannot.
"""

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from speechbrain_dslstm.utils.distributed import sum_over_ranks
from speechbrain_dslstm.utils.loops import Loops, in_threads

__all__ = ["batch_norm", "batch_norm_problem"]

LOOPS = Loops("speechbrain_dslstm.kernels.batch_norm_loops")


def batch_norm_problem(x: Tensor) -> str | None:
    """Reason why the compiled loops cannot normalise a batch, or None.

    >>> batch_norm_problem(torch.zeros(1, 2, 3, dtype=torch.bfloat16))
    'bfloat16 values'
    """
    if x.device.type != "cpu":
        return f"values on {x.device.type}"
    if x.dtype not in (torch.float32, torch.float64):
        return f"{str(x.dtype).removeprefix('torch.')} values"
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return "the batch is traced or compiled"
    return LOOPS.problem


def batch_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    counts: Tensor | None,
    eps: float,
    relu: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Normalise the valid frames of a batch; no second derivatives.

    x is [batch, time, ..., channel] in float32 or float64; weight and bias,
    [channel], are scale and shift. counts, int64 [batch], are the valid frames
    (None: all); eps is added to the variance; a ReLU follows if ``relu``.

    Returns the normalised values, zero at padded frames, and the mean, biased
    variance [channel] and number [] of the valid values of all ranks.

    >>> x, one = torch.tensor([[[1.0], [3.0], [9.0]]]), torch.ones(1)
    >>> out, mean, variance, count = batch_norm(
    ...     x, one, one, torch.tensor([2]), 0.0, relu=False
    ... )
    >>> out.flatten(), mean, variance, count
    (tensor([0., 2., 0.]), tensor([2.]), tensor([1.]), tensor(2.))
    """
    return _BatchNorm.apply(x, weight, bias, counts, eps, relu)


class _BatchNorm(torch.autograd.Function):
    """``batch_norm`` and its gradients."""

    @staticmethod
    def forward(ctx, x, weight, bias, counts, eps, relu):
        """Compute normalised values, mean, biased variance and count."""
        shape, x = x.shape, x.contiguous()
        x = x.view(*shape[:2], -1, shape[-1])
        frames = _check_frames(counts, *shape[:2])
        # The mean of the first valid frame, if there is one, is near the mean of all
        centre = torch.zeros_like(weight)
        if (frames > 0).any():
            centre = x[int((frames > 0).argmax()), 0].mean(0)
        above, squares = _add_up(
            LOOPS.load().moments, x.numpy(), frames, centre.numpy()
        )
        own = torch.tensor([float(frames.sum()) * x.shape[2]]).double()
        total = sum_over_ranks(torch.cat([above + own * centre, own]))
        count = total[-1].clone()
        # Nothing valid: moments of 0 instead of NaN
        mean = total[:-1] / count.clamp(min=1)
        offset = mean - centre
        squares = squares - 2 * offset * above + own * offset * offset
        variance = sum_over_ranks(squares.clamp(min=0)) / count.clamp(min=1)
        rstd = torch.rsqrt(variance + eps)
        terms = torch.stack([mean, weight.detach() * rstd, bias.detach()])
        terms, rstd, variance, count = (
            value.to(x.dtype) for value in (terms, rstd, variance, count)
        )
        mean = terms[0].clone()
        # Allocated in its own shape: autograd forbids in-place changes of a view
        out = x.new_empty(shape)
        into = out.view(x.shape).numpy()
        _run_over_clips(
            LOOPS.load().apply, x.numpy(), frames, terms.numpy(), relu, into
        )
        ctx.relu, ctx.shape, ctx.frames = relu, shape, frames
        rectified = [out] if relu else []
        ctx.save_for_backward(x, weight, mean, rstd, count, *rectified)
        ctx.mark_non_differentiable(mean, variance, count)
        return out, mean, variance, count

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, *_):
        """Gradients of the values, the scale and the shift."""
        x, weight, mean, rstd, count, *rectified = ctx.saved_tensors
        grad = grad.contiguous().view(x.shape)
        # Without a ReLU the loops do not read the output
        out = rectified[0].view(x.shape) if ctx.relu else x
        arrays = [v.numpy() for v in (x, grad, out)] + [ctx.frames]
        own = _add_up(LOOPS.load().slopes, *arrays, mean.numpy(), ctx.relu)
        own[1] *= rstd
        total = sum_over_ranks(own) / count.clamp(min=1)
        # scale * (grad - mean(grad) - normalised * mean(grad * normalised))
        scale = weight.detach() * rstd
        slope = -scale * rstd * total[1]
        level = -scale * total[0] - mean * slope
        terms = torch.stack([scale.double(), slope, level]).to(x.dtype)
        grad_x = torch.empty_like(x)
        arrays += [terms.numpy(), ctx.relu, grad_x.numpy()]
        _run_over_clips(LOOPS.load().propagate, *arrays)
        grad_bias, grad_weight = own.to(x.dtype)
        return grad_x.view(ctx.shape), grad_weight, grad_bias, None, None, None


def _check_frames(counts, batch, time):
    """Check the valid frames of each item, because compiled loops check no index."""
    if counts is None:
        return np.full(batch, time)
    frames = np.ascontiguousarray(counts.numpy(), np.int64)
    if len(frames) != batch or frames.min() < 0 or frames.max() > time:
        raise ValueError(
            f"expected {batch} counts from 0 to {time} frames, got "
            f"{frames.tolist()}"
        )
    return frames


def _run_over_clips(loop, x, *others):
    """Run a loop over all clips; it fills its last argument."""
    *given, out = others
    in_threads(
        lambda _, share: loop(x, *given, share, out), len(x), values=x.size
    )


def _add_up(loop, x, *others):
    """Run a loop that adds to two sums of each channel, [2, channel]."""
    parts = np.zeros((torch.get_num_threads(), 2, x.shape[-1]))
    in_threads(
        lambda thread, share: loop(x, *others, share, parts[thread]),
        len(x),
        values=x.size,
    )
    return torch.from_numpy(parts.sum(0))
