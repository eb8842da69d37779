"""Pooling over the valid frames of a padded batch."""

import torch
from torch import Tensor

from speechbrain_dslstm.lengths import zero_padding

__all__ = ["MaskedMeanPooling", "MaskedStatisticsPooling", "make_pooling"]


class MaskedMeanPooling(torch.nn.Module):
    """Mean over the valid frames of each item; it has no parameters.

    Example
    -------
    >>> pool = MaskedMeanPooling()
    >>> x = torch.tensor([[[1.0], [3.0]], [[5.0], [9.0]]])
    >>> pool(x, torch.tensor([2, 1]))
    tensor([[2.],
            [5.]])
    """

    name = "mean"
    parts = 1  # outputs for each feature

    def forward(self, x: Tensor, counts: Tensor) -> Tensor:
        """Mean of x [batch, time, features] over counts [batch] valid frames."""
        total = zero_padding(x, counts).sum(dim=1)
        return total / counts.unsqueeze(1).to(total)

    def from_sums(
        self, total: Tensor, squares: Tensor | None, steps: int | Tensor
    ) -> Tensor:
        """Pool frames of which the sum and the sum of squares are known."""
        return total / steps


class MaskedStatisticsPooling(MaskedMeanPooling):
    """Mean and standard deviation over the valid frames of each item.

    Arguments
    ---------
    eps
        Smallest variance, such as that of an item with one frame.

    Example
    -------
    >>> pool = MaskedStatisticsPooling()
    >>> x = torch.tensor([[[1.0], [3.0], [99.0]]])
    >>> pool(x, torch.tensor([2]))
    tensor([[2., 1.]])
    """

    name = "statistics"
    parts = 2

    def __init__(self, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor, counts: Tensor) -> Tensor:
        """Map x [batch, time, features] to [batch, 2 * features]."""
        x = zero_padding(x, counts)
        mean = super().forward(x, counts)
        # Of the differences: a difference of sums would lose digits
        squares = (x - mean.unsqueeze(1)).square()
        variance = super().forward(squares, counts)
        return torch.cat([mean, self._deviation(variance)], dim=1)

    def from_sums(
        self, total: Tensor, squares: Tensor, steps: int | Tensor
    ) -> Tensor:
        """Pool frames of which the sum and the sum of squares are known."""
        mean = total / steps
        variance = squares / steps - mean.square()
        return torch.cat([mean, self._deviation(variance)], dim=-1)

    def _deviation(self, variance):
        # The gradient of the root is infinite at zero
        return variance.clamp(min=self.eps).sqrt()


def make_pooling(name: str) -> MaskedMeanPooling:
    """Make the pooling layer "mean" or "statistics" (mean and deviation)."""
    kinds = (MaskedMeanPooling, MaskedStatisticsPooling)
    known = {kind.name: kind for kind in kinds}
    if name not in known:
        raise ValueError(
            f"unknown pooling {name!r}; expected one of {', '.join(known)}"
        )
    return known[name]()
