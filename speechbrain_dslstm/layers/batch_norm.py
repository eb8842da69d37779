"""Normalisation whose statistics never contain padding.

``MaskedBatchNorm`` and ``StepBatchNorm`` are batch normalisation (Ioffe and
Szegedy 2015, arXiv:1502.03167) over the valid frames of a padded batch. They
reduce their own sums over the ranks of a distributed run, with gloo on the CPU
as with NCCL, so that two ranks give the statistics of one process.
``FeatureNormalization`` standardises features with training-set statistics.

Layout: [batch, time, ..., channel]; symbols: C channels, T frames.
"""

import torch

from speechbrain_dslstm.kernels.batch_norm_numba import (
    batch_norm,
    batch_norm_problem,
)
from speechbrain_dslstm.lengths import length_mask
from speechbrain_dslstm.utils.distributed import sum_over_ranks

__all__ = ["masked_moments", "MaskedBatchNorm", "StepBatchNorm"]


def masked_moments(x, mask=None):
    """Mean and biased variance of each channel, over the valid positions.

    Arguments
    ---------
    x : torch.Tensor, [..., channel]
        Values; anything may stand at masked positions.
    mask : torch.Tensor, bool, broadcastable to [..., 1], optional
        True at valid positions; everything is valid if left out.

    Returns
    -------
    mean : torch.Tensor, [channel]
        Mean over the valid positions of all ranks.
    variance : torch.Tensor, [channel]
        Biased variance over the same positions.
    count : torch.Tensor, []
        Number of those positions.

    Example
    -------
    >>> x = torch.tensor([[1.0], [3.0], [float("nan")]])
    >>> masked_moments(x, torch.tensor([[True], [True], [False]]))
    (tensor([2.]), tensor([1.]), tensor(2.))
    """
    return _moments(x if mask is None else x.masked_fill(~mask, 0), mask)


def _moments(x, mask):
    """Moments of ``x``, which is zero at masked positions."""
    dims = tuple(range(x.dim() - 1))
    if mask is None:
        # new_tensor() would wait for a GPU
        count = x.new_full((), x.numel() // x.shape[-1])
    else:
        repeats = x.numel() // x.shape[-1] // mask.numel()
        count = mask.sum().to(x) * repeats
    sums = sum_over_ranks(torch.cat([x.sum(dims), count.view(1)]))
    # Nothing valid: moments of 0 instead of NaN
    count = sums[-1].detach().clamp(min=1)
    mean = sums[:-1] / count
    deviation = x - mean
    if mask is not None:
        deviation = deviation.masked_fill(~mask, 0)
    variance = sum_over_ranks(deviation.square().sum(dims)) / count
    return mean, variance, sums[-1].detach()


def _unbiased(variance, count):
    return variance * (count / (count - 1).clamp(min=1))


class MaskedBatchNorm(torch.nn.Module):
    """Batch normalisation over the valid frames of a padded batch.

    With ``counts=None`` on one process it is ``torch.nn.BatchNorm``.

    Arguments
    ---------
    num_features : int
        Channels C.
    eps : float
        Added to the variance.
    momentum : float
        Weight of a new batch in the running statistics.
    weight_init : float
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

    def __init__(self, num_features, eps=1e-5, momentum=0.1, weight_init=1.0):
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.momentum = momentum
        self.weight_init = weight_init
        self.weight = torch.nn.Parameter(torch.empty(num_features))
        self.bias = torch.nn.Parameter(torch.empty(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))
        self.reset_parameters()

    def reset_parameters(self):
        """Back to the initial scale, shift and running statistics."""
        torch.nn.init.constant_(self.weight, self.weight_init)
        torch.nn.init.zeros_(self.bias)
        self.running_mean.zero_()
        self.running_var.fill_(1)

    def forward(self, x, counts=None, relu=False):
        """Normalise each channel.

        Arguments
        ---------
        x : torch.Tensor, [batch, time, ..., channel]
            Padded sequences.
        counts : torch.Tensor, int64, [batch], optional
            Valid frames of each item; all of them if left out.
        relu : bool
            Set what is negative afterwards to zero, in the same pass.

        Returns
        -------
        torch.Tensor, [batch, time, ..., channel]
            Normalised values; zero at padded frames.

        Raises
        ------
        ValueError
            Another number of channels, or counts that do not fit.
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
            # A NaN there would come back through the gradient of the scale
            x = x.masked_fill(~mask, 0)
        if self.training:
            moments = _moments(x, mask)
        scale, shift = self.affine(moments)
        out = x * scale + shift
        out = out.relu() if relu else out
        return out if mask is None else out.masked_fill(~mask, 0)

    def affine(self, moments=None):
        """Scale and shift that normalise each channel.

        For a caller that applies them elsewhere, as to a convolution's
        weights.

        Arguments
        ---------
        moments : tuple of torch.Tensor, optional
            What ``masked_moments`` gives for the batch; they are added to the
            running statistics. The running statistics themselves if left out.

        Returns
        -------
        scale : torch.Tensor, [channel]
            Factor.
        shift : torch.Tensor, [channel]
            Summand.
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


class StepBatchNorm(torch.nn.Module):
    """Batch normalisation with running statistics of its own for each step.

    Steps past the last one that training has seen share that one's.

    Arguments
    ---------
    num_features : int
        Features per step, 4 * hidden for the gates of a DS-LSTM.
    steps : int
        Steps with statistics of their own; later ones share the last.
    eps : float
        Added to the variance.
    momentum : float
        Weight of a new batch in the running statistics.
    weight_init : float
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
        self, num_features, steps=128, eps=1e-5, momentum=0.1, weight_init=0.1
    ):
        super().__init__()
        self.steps = steps
        self.eps = eps
        self.momentum = momentum
        self.weight_init = weight_init
        self.weight = torch.nn.Parameter(torch.empty(num_features))
        self.bias = torch.nn.Parameter(torch.empty(num_features))
        self.register_buffer("running_mean", torch.zeros(steps, num_features))
        self.register_buffer("running_var", torch.ones(steps, num_features))
        self.register_buffer("steps_seen", torch.tensor(0))
        self.reset_parameters()

    def reset_parameters(self):
        """Back to the initial scale, shift and running statistics."""
        torch.nn.init.constant_(self.weight, self.weight_init)
        torch.nn.init.zeros_(self.bias)
        self.running_mean.zero_()
        self.running_var.fill_(1)
        self.steps_seen.zero_()

    def forward(self, x, step, valid=None):
        """Normalise the features of one step over the batch.

        Arguments
        ---------
        x : torch.Tensor, [batch, features]
            Features at this step.
        step : int
            Index of the step, from 0.
        valid : torch.Tensor, bool, [batch], optional
            Items that reach this step; all of them if left out.

        Returns
        -------
        torch.Tensor, [batch, features]
            Normalised values; those of other items have no meaning.
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

    def statistics(self, time):
        """Running statistics of the first steps, as evaluation uses them.

        Arguments
        ---------
        time : int
            Number of steps, from step 0 on.

        Returns
        -------
        mean : torch.Tensor, [time, features]
            Running means.
        variance : torch.Tensor, [time, features]
            Running variances.
        """
        steps = torch.arange(time, device=self.steps_seen.device)
        # Steps past the last one that training has seen share that one's
        steps = torch.minimum(steps, (self.steps_seen - 1).clamp(min=0))
        return self.running_mean[steps], self.running_var[steps]

    @torch.no_grad()
    def update(self, mean, variance, count, first=0):
        """Add the moments of consecutive steps to the running statistics.

        Arguments
        ---------
        mean : torch.Tensor, [time, features]
            Mean over the items that reach each step.
        variance : torch.Tensor, [time, features]
            Biased variance over the same items.
        count : torch.Tensor, [time]
            Number of those items.
        first : int
            Index of the first of these steps.
        """
        # A step that no item reaches leaves no trace
        reached = (count > 0).unsqueeze(-1)
        weight = self.momentum * reached.to(self.running_mean)
        variance = _unbiased(variance, count.unsqueeze(-1).to(variance))
        own = max(0, min(len(mean), self.steps - first))
        parts = [(slice(first, first + own), slice(0, own))]
        # The later ones share the last one's, one after the other
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
