"""Batch normalisation over the valid frames of a padded batch.

Source: Ioffe and Szegedy 2015, arXiv:1502.03167. ``MaskedBatchNorm`` has one
set of statistics for all frames, ``StepBatchNorm`` one for each step. Both sum
over the ranks of a distributed run, with gloo on the CPU as well as with NCCL,
so that two ranks give the statistics of one process.

Layout: [batch, time, ..., channel]; symbols: C channels, T frames.
"""

import torch
from torch import Tensor

from speechbrain_dslstm.kernels.batch_norm_numba import (
    batch_norm,
    batch_norm_problem,
)
from speechbrain_dslstm.lengths import length_mask
from speechbrain_dslstm.utils.distributed import sum_over_ranks

__all__ = ["MaskedBatchNorm", "StepBatchNorm", "masked_moments"]


def masked_moments(
    x: Tensor, mask: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and biased variance, [channel], over the valid positions of all ranks.

    ``mask``, broadcastable to [..., 1], is True at the valid positions of x
    [..., channel]; others may hold NaN. Without a mask all positions are valid.
    The number of valid positions is returned as well. All three are float32 if
    x has 16 bits.
    """
    return _moments(x if mask is None else x.masked_fill(~mask, 0), mask)


def _moments(x, mask):
    """Mean, variance and count of ``x``, which is zero at masked positions."""
    dims = tuple(range(x.dim() - 1))
    # Under autocast x has 16 bits, and float16 ends at 65504 positions
    wide = torch.promote_types(x.dtype, torch.float32)
    if mask is None:
        # new_tensor() would synchronise with the GPU
        count = x.new_full((), x.numel() // x.shape[-1], dtype=wide)
    else:
        repeats = x.numel() // x.shape[-1] // mask.numel()
        count = mask.sum().to(wide) * repeats
    sums = torch.cat([x.sum(dims, dtype=wide), count.view(1)])
    sums = sum_over_ranks(sums)
    # Without a valid position the moments are 0 instead of NaN
    count = sums[-1].detach().clamp(min=1)
    mean = sums[:-1] / count
    deviation = x - mean
    if mask is not None:
        deviation = deviation.masked_fill(~mask, 0)
    variance = sum_over_ranks(deviation.square().sum(dims)) / count
    return mean, variance, sums[-1].detach()


def _unbiased(variance, count):
    return variance * (count / (count - 1).clamp(min=1))


class _RunningStatistics(torch.nn.Module):
    """Scale, shift and running statistics of a batch normalisation."""

    def __init__(self, size, shape, eps, momentum, weight_init):
        super().__init__()
        self.eps = eps
        self.momentum = momentum
        self.weight_init = weight_init
        self.weight = torch.nn.Parameter(torch.empty(size))
        self.bias = torch.nn.Parameter(torch.empty(size))
        self.register_buffer("running_mean", torch.zeros(shape))
        self.register_buffer("running_var", torch.ones(shape))

    def reset_parameters(self) -> None:
        """Restore the initial scale, shift and running statistics."""
        torch.nn.init.constant_(self.weight, self.weight_init)
        torch.nn.init.zeros_(self.bias)
        self.running_mean.zero_()
        self.running_var.fill_(1)


class MaskedBatchNorm(_RunningStatistics):
    """Batch normalisation over the valid frames of a padded batch.

    With ``counts=None`` on one process it equals ``torch.nn.BatchNorm``.

    Arguments
    ---------
    num_features
        Channels C.
    eps
        Added to the variance.
    momentum
        Weight of a new batch in the running statistics.
    weight_init
        Initial value of the scale; the shift starts at 0.

    Example
    -------
    >>> norm = MaskedBatchNorm(2)
    >>> x = torch.tensor([[[1.0, 0.0], [3.0, 4.0]], [[9.0, 9.0], [9.0, 9.0]]])
    >>> x[1] = 2.0
    >>> norm(x, torch.tensor([2, 1]))[0]
    tensor([[-1.2247, -1.2247],
            [ 1.2247,  1.2247]], grad_fn=<SelectBackward0>)
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        weight_init: float = 1.0,
    ) -> None:
        super().__init__(num_features, num_features, eps, momentum, weight_init)
        self.num_features = num_features
        self.reset_parameters()

    def forward(
        self, x: Tensor, counts: Tensor | None = None, relu: bool = False
    ) -> Tensor:
        """Normalise x [batch, time, ..., channel]; padded frames become zero.

        ``counts``, [batch], are the valid frames, all if left out. ``relu``
        applies a ReLU in the same pass. Another number of channels, or counts
        that do not fit, raise ValueError.
        """
        if x.shape[-1] != self.num_features:
            raise ValueError(
                f"expected {self.num_features} channels in the last dimension, "
                f"got {x.shape[-1]}"
            )
        if self.training and batch_norm_problem(x) is None:
            out, *moments = batch_norm(
                x, self.weight, self.bias, counts, self.eps, relu
            )
            self._remember(*moments)
            return out
        moments = mask = None
        if counts is not None:
            mask = length_mask(counts, x.shape[1])
            mask = mask.view(*mask.shape, *[1] * (x.dim() - 2))
            # A NaN at a padded frame would reach the gradient of the scale
            x = x.masked_fill(~mask, 0)
        if self.training:
            moments = _moments(x, mask)
        scale, shift = self.affine(moments)
        out = x * scale + shift
        out = out.relu() if relu else out
        return out if mask is None else out.masked_fill(~mask, 0)

    def affine(
        self, moments: tuple[Tensor, Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Scale and shift that normalise each channel, both [channel].

        Callers fold them into a convolution. ``moments`` of a batch, from
        ``masked_moments``, are added to the running statistics; without them,
        scale and shift come from the running statistics.
        """
        if moments is None:
            mean, variance = self.running_mean, self.running_var
        else:
            mean, variance, _ = moments
            self._remember(*moments)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return scale, self.bias - mean * scale

    @torch.no_grad()
    def _remember(self, mean, variance, count):
        """Add the moments of a batch to the running statistics."""
        variance = _unbiased(variance, count).to(self.running_var)
        self.running_mean.lerp_(mean.to(self.running_mean), self.momentum)
        self.running_var.lerp_(variance, self.momentum)


class StepBatchNorm(_RunningStatistics):
    """Batch normalisation with separate running statistics for each step.

    In evaluation, steps past the last one that training has seen use the
    statistics of that one.

    Arguments
    ---------
    num_features
        Features per step, 4 * hidden for the gates of a DS-LSTM.
    steps
        Steps with statistics of their own; later ones share the last.
    eps
        Added to the variance.
    momentum
        Weight of a new batch in the running statistics.
    weight_init
        Initial value of the scale; the shift starts at 0.

    Example
    -------
    >>> norm = StepBatchNorm(1, steps=2)
    >>> norm(torch.tensor([[1.0], [3.0]]), 0).detach()
    tensor([[-0.1000],
            [ 0.1000]])
    >>> norm.running_mean
    tensor([[0.2000],
            [0.0000]])
    """

    def __init__(
        self,
        num_features: int,
        steps: int = 128,
        eps: float = 1e-5,
        momentum: float = 0.1,
        weight_init: float = 0.1,
    ) -> None:
        shape = steps, num_features
        super().__init__(num_features, shape, eps, momentum, weight_init)
        self.steps = steps
        self.register_buffer("steps_seen", torch.tensor(0))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Restore the initial scale, shift and running statistics."""
        super().reset_parameters()
        self.steps_seen.zero_()

    def forward(
        self, x: Tensor, step: int, valid: Tensor | None = None
    ) -> Tensor:
        """Normalise x [batch, features] of one step, counted from 0.

        ``valid``, [batch], is True for items that reach this step, all if left
        out; the output of the others is undefined.
        """
        if self.training:
            mask = None if valid is None else valid.unsqueeze(-1)
            if mask is not None:
                x = x.masked_fill(~mask, 0)
            mean, variance, count = _moments(x, mask)
            self.update(mean[None], variance[None], count[None], step)
        else:
            mean, variance = (v[step] for v in self.statistics(step + 1))
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (x - mean) * scale + self.bias

    def statistics(self, time: int) -> tuple[Tensor, Tensor]:
        """Running mean and variance in evaluation, both [time, features]."""
        steps = torch.arange(time, device=self.steps_seen.device)
        # Later steps use the statistics of the last step that training has seen
        steps = torch.minimum(steps, (self.steps_seen - 1).clamp(min=0))
        return self.running_mean[steps], self.running_var[steps]

    @torch.no_grad()
    def update(
        self, mean: Tensor, variance: Tensor, count: Tensor, first: int = 0
    ) -> None:
        """Add the moments of steps ``first``, ``first + 1``, ... to the statistics.

        ``mean`` and (biased) ``variance``, [time, features], are over the
        ``count``, [time], items that reach each step.
        """
        # A step that no item reaches changes nothing
        reached = (count > 0).unsqueeze(-1)
        weight = self.momentum * reached.to(self.running_mean)
        variance = _unbiased(variance, count.unsqueeze(-1).to(variance))
        own = max(0, min(len(mean), self.steps - first))
        parts = [(slice(first, first + own), slice(0, own))]
        # Later steps update the shared last entry, one after the other
        last = slice(self.steps - 1, self.steps)
        parts += [(last, slice(k, k + 1)) for k in range(own, len(mean))]
        for running, values in [
            (self.running_mean, mean.to(self.running_mean)),
            (self.running_var, variance.to(self.running_var)),
        ]:
            for to, part in parts:
                running[to].lerp_(values[part], weight[part])
        steps = torch.arange(first, first + len(mean), device=count.device)
        seen = (steps.clamp(max=self.steps - 1) + 1) * reached.squeeze(-1)
        self.steps_seen.clamp_(min=seen.max())
