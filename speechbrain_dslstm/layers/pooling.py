"""Pooling over time that sees valid frames only; it has no parameters."""

import torch

from speechbrain_dslstm.lengths import zero_padding

__all__ = ["MaskedMeanPooling"]


class MaskedMeanPooling(torch.nn.Module):
    """Mean over the valid frames of each item.

    Example
    -------
    >>> pool = MaskedMeanPooling()
    >>> x = torch.tensor([[[1.0], [3.0]], [[5.0], [9.0]]])
    >>> pool(x, torch.tensor([2, 1]))
    tensor([[2.],
            [5.]])
    """

    def forward(self, x, counts):
        """Average over time.

        Arguments
        ---------
        x : torch.Tensor, [batch, time, features]
            Padded sequences.
        counts : torch.Tensor, int64, [batch]
            Valid frames of each item.

        Returns
        -------
        torch.Tensor, [batch, features]
            Mean of each item's valid frames.
        """
        total = zero_padding(x, counts).sum(dim=1)
        return total / counts.unsqueeze(1).to(total)
