"""Two sequences of different frame rate -> one length; no parameters.

Source: arXiv:1910.08874 and its authors' public code, where
x_i := mean(x[2i], x[2i+1], x[2i+2]) for i < T_x // 2 - 1, and y is cut to the
same length.
"""

import torch

__all__ = ["AveragePoolAlignment"]


class AveragePoolAlignment(torch.nn.Module):
    """Average pool of the faster sequence, then both cut to one length.

    Arguments
    ---------
    width : int
        Frames of x that one aligned frame averages.
    stride : int
        Frames of x between two aligned frames: the ratio of the frame rates.

    Example
    -------
    >>> align = AveragePoolAlignment()
    >>> x = torch.arange(8.0).view(1, 8, 1)
    >>> y = torch.zeros(1, 4, 5)
    >>> x, y, counts = align(x, y, torch.tensor([8]), torch.tensor([4]))
    >>> x.flatten(), y.shape, counts
    (tensor([1., 3., 5.]), torch.Size([1, 3, 5]), tensor([3]))
    """

    def __init__(self, width=3, stride=2):
        super().__init__()
        if not 1 <= stride <= width:
            raise ValueError(
                f"width must be at least stride and stride at least 1, "
                f"got width {width} and stride {stride}"
            )
        self.width = width
        self.stride = stride
        # Windows that would reach past the end
        self.trim = -((stride - width) // stride)

    def num_frames(self, frames_x, frames_y):
        """Aligned frames of so many frames of x and y.

        Arguments
        ---------
        frames_x : int or torch.Tensor
            Frames of the faster sequence.
        frames_y : int or torch.Tensor
            Frames of the slower sequence.

        Returns
        -------
        int or torch.Tensor
            min(frames_x // 2 - 1, frames_y) at the paper's sizes; never below 0.
        """
        aligned = frames_x // self.stride - self.trim
        if isinstance(aligned, torch.Tensor):
            return torch.minimum(aligned, frames_y).clamp(min=0)
        return max(0, min(aligned, frames_y))

    def forward(self, x, y, counts_x, counts_y):
        """Align a batch.

        Arguments
        ---------
        x : torch.Tensor, [batch, time_x, features_x]
            The faster sequence.
        y : torch.Tensor, [batch, time_y, features_y]
            The slower sequence.
        counts_x : torch.Tensor, int64, [batch]
            Valid frames of x.
        counts_y : torch.Tensor, int64, [batch]
            Valid frames of y.

        Returns
        -------
        x : torch.Tensor, [batch, time, features_x]
            Averages over ``width`` frames.
        y : torch.Tensor, [batch, time, features_y]
            The first frames of y.
        counts : torch.Tensor, int64, [batch]
            Aligned valid frames.

        Raises
        ------
        ValueError
            An item with fewer frames than one aligned frame needs.
        """
        time = self.num_frames(x.shape[1], y.shape[1])
        counts = self.num_frames(counts_x, counts_y)
        shortest = int(counts.argmin())
        if min(time, int(counts[shortest])) < 1:
            raise ValueError(
                f"{int(counts_x[shortest])} frames of x and "
                f"{int(counts_y[shortest])} of y are too few to align: "
                f"at least {self.min_frames} and 1 are needed"
            )
        last = self.stride * (time - 1) + 1
        # The window as a sum of strided views: no transposition, exact mean
        x = sum(
            x[:, k : k + last : self.stride] for k in range(self.width)
        ) / float(self.width)
        return x, y[:, :time], counts

    @property
    def min_frames(self):
        """Frames of x that one aligned frame needs."""
        return self.stride * (1 + self.trim)
