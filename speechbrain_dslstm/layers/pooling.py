"""Pooling over the valid frames of a padded batch."""

import torch
from torch import Tensor

from speechbrain_dslstm.lengths import zero_padding

__all__ = ["MaskedMeanPooling"]


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

    def forward(self, x: Tensor, counts: Tensor) -> Tensor:
        """Mean of x [batch, time, features] over counts [batch] valid frames."""
        total = zero_padding(x, counts).sum(dim=1)
        return total / counts.unsqueeze(1).to(total)
