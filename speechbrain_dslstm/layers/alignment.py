"""Alignment: two sequences of different frame rates get one length.

``AveragePoolAlignment`` is the paper's. Source: arXiv:1910.08874 and its
authors' public code, where x_i := mean(x[2i], x[2i+1], x[2i+2]) for
i < T_x // 2 - 1, and y is cut to the same length. ``RateAlignment`` aligns any
two frame rates: two spectrograms, or a spectrogram and an encoder's frames.
Neither has parameters.

Symbols: T_x, T_y frames of the two sequences x and y.
"""

import math
from fractions import Fraction

import torch
from torch import Tensor

from speechbrain_dslstm.lengths import check_later, zero_padding

__all__ = ["AveragePoolAlignment", "RateAlignment"]


class AveragePoolAlignment(torch.nn.Module):
    """Average pooling of the faster sequence x; both are cut to one length.

    Arguments
    ---------
    width
        Frames of x that one aligned frame averages.
    stride
        Frames of x between two aligned frames: the ratio of the frame rates.

    Raises
    ------
    ValueError
        ``stride`` is below 1 or above ``width``.

    Example
    -------
    >>> align = AveragePoolAlignment()
    >>> x = torch.arange(8.0).view(1, 8, 1)
    >>> y = torch.zeros(1, 4, 5)
    >>> x, y, counts = align(x, y, torch.tensor([8]), torch.tensor([4]))
    >>> x.flatten(), y.shape, counts
    (tensor([1., 3., 5.]), torch.Size([1, 3, 5]), tensor([3]))
    """

    def __init__(self, width: int = 3, stride: int = 2) -> None:
        super().__init__()
        if not 1 <= stride <= width:
            raise ValueError(
                "width must be at least stride, and stride at least 1, "
                f"got width {width} and stride {stride}"
            )
        self.width = width
        self.stride = stride
        # Windows that would reach past the end of x
        self.trim = -((stride - width) // stride)

    def get_config(self) -> dict[str, int]:
        """Constructor arguments that build the same layer."""
        return {"width": self.width, "stride": self.stride}

    def num_frames(
        self, frames_x: int | Tensor, frames_y: int | Tensor
    ) -> int | Tensor:
        """Aligned frames, min(frames_x // 2 - 1, frames_y) in the paper, or 0."""
        aligned = frames_x // self.stride - self.trim
        if isinstance(aligned, Tensor):
            return torch.minimum(aligned, frames_y).clamp(min=0)
        return max(0, min(aligned, frames_y))

    def forward(
        self, x: Tensor, y: Tensor, counts_x: Tensor, counts_y: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Align x [batch, time_x, size_x] and y [batch, time_y, size_y].

        ``counts_x`` and ``counts_y``, [batch], are their valid frames.
        Returns x, averaged over ``width`` frames, the first frames of y, and the
        aligned valid frames, [batch]. An item with too few frames for one
        aligned frame raises ValueError.
        """
        time = self.num_frames(x.shape[1], y.shape[1])
        counts = self.num_frames(counts_x, counts_y)
        deferred = check_later((counts >= 1).all(), "enough frames to align")
        shortest = 0 if deferred else int(counts.argmin())
        if time < 1 or not deferred and int(counts[shortest]) < 1:
            raise ValueError(
                f"{int(counts_x[shortest])} frames of x and "
                f"{int(counts_y[shortest])} of y are too few to align: "
                f"at least {self.min_frames} and 1 are needed"
            )
        last = self.stride * (time - 1) + 1
        # A sum of strided views: an exact mean, without a transposition
        x = sum(
            x[:, k : k + last : self.stride] for k in range(self.width)
        ) / float(self.width)
        return x, y[:, :time], counts

    @property
    def min_frames(self) -> int:
        """Frames of x that one aligned frame needs."""
        return self.stride * (1 + self.trim)


class RateAlignment(torch.nn.Module):
    """Resample two sequences of any frame rates to the rate of one of them.

    Frame i of a sequence at r frames per second covers the time from i / r to
    (i + 1) / r. One sequence keeps its frames and is only cut; the other one is
    sampled at these frames:

    - "average": mean over the time of the kept frame, each sampled frame
      weighted by its overlap; at the end over the frames that exist.
    - "nearest": the frame nearest to the start of the kept frame; of two
      equally near ones the later.
    - "linear": interpolation between the two frames around that start.

    No value depends on padding, and every item keeps at least one frame.

    Arguments
    ---------
    rate_x
        Frames of x per second, such as 62.5 or "16000/256"; without
        ``rate_y``, the ratio of both rates.
    rate_y
        Frames of y per second.
    mode
        "average", "nearest" or "linear".
    target
        Sequence that keeps its rate: "slower", "faster", "x" or "y".

    Raises
    ------
    ValueError
        A rate is not positive, or mode or target is unknown.

    Example
    -------
    >>> align = RateAlignment(62.5, 50)
    >>> x = torch.arange(10.0).view(1, 10, 1)
    >>> y = torch.zeros(1, 9, 3)
    >>> x, y, counts = align(x, y, torch.tensor([10]), torch.tensor([9]))
    >>> x.flatten()
    tensor([0.2000, 1.4000, 2.6000, 3.8000, 5.2000, 6.4000, 7.6000, 8.8000])
    >>> y.shape, counts
    (torch.Size([1, 8, 3]), tensor([8]))
    """

    MODES = ("average", "nearest", "linear")
    TARGETS = ("slower", "faster", "x", "y")

    def __init__(
        self,
        rate_x: float | str | Fraction,
        rate_y: float | str | Fraction = 1,
        mode: str = "average",
        target: str = "slower",
    ) -> None:
        super().__init__()
        # Through str, so that 62.4 is 312/5 and not a binary fraction
        rates = [Fraction(str(rate)) for rate in (rate_x, rate_y)]
        if min(rates) <= 0:
            raise ValueError(
                f"rates must be positive, got {rate_x} for x and {rate_y} for y"
            )
        for name, value, known in (
            ("mode", mode, self.MODES),
            ("target", target, self.TARGETS),
        ):
            if value not in known:
                raise ValueError(
                    f"unknown {name} {value!r}; expected one of "
                    f"{', '.join(known)}"
                )
        self.rates = rate_x, rate_y
        self.mode = mode
        self.ratio = rates[0] / rates[1]
        if target in ("slower", "faster"):
            target = "y" if (self.ratio >= 1) == (target == "slower") else "x"
        self.target = target
        # Frames of the sampled sequence for each kept frame
        self.step = self.ratio if target == "y" else 1 / self.ratio

    def get_config(self) -> dict[str, float | str]:
        """Constructor arguments that build the same layer.

        A rate that is given as a fraction comes as the nearest float.
        """
        rate_x, rate_y = (
            rate if isinstance(rate, int | float) else float(Fraction(rate))
            for rate in self.rates
        )
        return {
            "rate_x": rate_x,
            "rate_y": rate_y,
            "mode": self.mode,
            "target": self.target,
        }

    def num_frames(
        self, frames_x: int | Tensor, frames_y: int | Tensor
    ) -> int | Tensor:
        """Frames of the kept sequence that begin before the other one ends."""
        kept, sampled = frames_x, frames_y
        if self.target == "y":
            kept, sampled = frames_y, frames_x
        up, down = self.step.numerator, self.step.denominator
        if self.mode == "average":
            reached = -(-sampled * down // up)
        else:
            # Kept frame j lies at j * step, the last sampled one at sampled - 1
            reached = (sampled - 1) * down // up + 1
        if isinstance(kept, Tensor) or isinstance(reached, Tensor):
            kept, reached = torch.as_tensor(kept), torch.as_tensor(reached)
            return torch.minimum(kept, reached).clamp(min=0)
        return max(0, min(kept, reached))

    def _taps(self, time: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Frames to sum and their weights, both [time, taps]."""
        up, down = self.step.numerator, self.step.denominator
        # Exact, because times are integers, in units of 1 / down sampled frames
        start = torch.arange(time, device=device).unsqueeze(1) * up
        if self.mode == "nearest":
            index = (2 * start + down) // (2 * down)
            return index, torch.ones_like(index, dtype=torch.float64)
        if self.mode == "linear":
            index = start // down + torch.arange(2, device=device)
            later = (start % down).double() / down
            return index, torch.cat([1 - later, later], dim=1)
        taps = math.ceil(self.step) + 1
        index = start // down + torch.arange(taps, device=device)
        begin = torch.maximum(index * down, start)
        end = torch.minimum((index + 1) * down, start + up)
        return index, (end - begin).clamp(min=0).double() / up

    def _sample(self, x: Tensor, counts: Tensor, time: int) -> Tensor:
        """Sample x at ``time`` kept frames: [batch, time, features]."""
        x = zero_padding(x, counts)
        index, weight = self._taps(time, x.device)
        # Taps past an item's end get no weight; the others are scaled up
        inside = index.unsqueeze(0) < counts.view(-1, 1, 1)
        weight = weight * inside
        total = weight.sum(dim=2, keepdim=True)
        weight = (weight / total.clamp(min=1e-9)).to(x.dtype)
        index = index.clamp(max=x.shape[1] - 1)
        return sum(
            x[:, index[:, k]] * weight[:, :, k : k + 1]
            for k in range(index.shape[1])
        )

    def forward(
        self, x: Tensor, y: Tensor, counts_x: Tensor, counts_y: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Align x [batch, time_x, size_x] and y [batch, time_y, size_y].

        ``counts_x`` and ``counts_y``, [batch], are their valid frames; one below
        1 raises ValueError. Returns x and y at the kept rate and the aligned
        valid frames, [batch]; values past these are undefined.
        """
        if int(torch.minimum(counts_x, counts_y).min()) < 1:
            raise ValueError(
                "every item needs at least one frame of x and of y, got "
                f"{counts_x.tolist()} and {counts_y.tolist()}"
            )
        counts = self.num_frames(counts_x, counts_y)
        time = int(counts.max())
        if self.target == "y":
            x, y = self._sample(x, counts_x, time), y[:, :time]
        else:
            x, y = x[:, :time], self._sample(y, counts_y, time)
        return x, y, counts

    @property
    def min_frames(self) -> int:
        """Frames of x that one aligned frame needs."""
        return 1
