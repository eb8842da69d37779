"""Lengths of the items of a padded batch, and masks made from them.

SpeechBrain passes lengths as fractions of the longest item of a batch. A
fraction times a *frame* count is wrong by one frame in a quarter to three
quarters of all cases, whatever the rounding. So fractions become samples here,
once, and each stage maps integer counts through its own ``num_frames``. No
other module multiplies a relative length.

Symbols: B batch, S samples of the padded batch, T frames.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = [
    "check_later",
    "length_mask",
    "to_counts",
    "to_relative",
    "zero_padding",
]


def check_later(condition: Tensor, expected: str) -> bool:
    """Defer a check to the device while a CUDA graph is captured.

    A check on the CPU would need a synchronisation, which is impossible there.
    Outside a capture the result is False, and the caller must check.

    Arguments
    ---------
    condition : []
        Boolean that must hold, whenever the graph is replayed.
    expected
        Text of the error if the condition is false.

    Example
    -------
    >>> check_later(torch.tensor(False), "never")
    False
    """
    if not _is_capturing(condition):
        return False
    torch._assert_async(condition, expected)
    return True


def _is_capturing(x):
    return x.is_cuda and torch.cuda.is_current_stream_capturing()


def to_counts(
    lengths: Tensor | Sequence[float] | None,
    size: int,
    batch: int | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """Turn relative lengths or counts into counts, [batch], int64.

    Arguments
    ---------
    lengths : [batch]
        Floats in (0, 1]: SpeechBrain's relative lengths of a padded axis of
        ``size`` steps. Integers: counts already. None: every item is full.
    size
        Steps (samples or frames) of the padded axis.
    batch
        Number of items; required without ``lengths``, checked otherwise.
    device
        Device of the counts; that of ``lengths`` if left out.

    Raises
    ------
    ValueError
        A count is below 1 or above ``size``, a relative length is NaN or
        outside (0, 1], or the number of lengths is not the batch size.

    Example
    -------
    >>> to_counts(torch.tensor([1.0, 0.5]), 16000)
    tensor([16000,  8000])
    >>> to_counts([3, 2], 3)
    tensor([3, 2])
    """
    if lengths is None:
        return torch.full((batch,), size, dtype=torch.int64, device=device)
    lengths = torch.as_tensor(lengths, device=device)
    if lengths.dim() != 1 or (batch is not None and len(lengths) != batch):
        raise ValueError(
            f"expected {batch} lengths, one per item, "
            f"got a tensor of shape {list(lengths.shape)}"
        )
    counts = lengths
    if lengths.is_floating_point():
        counts = (lengths.double() * size).round()
    fit = ((counts >= 1) & (counts <= size)).all()
    expected = f"lengths must be relative in (0, 1] or counts in 1..{size}"
    # A single transfer to the CPU for all checks
    if not check_later(fit, expected) and not bool(fit):
        raise ValueError(f"{expected}, got {lengths.tolist()}")
    return counts.to(torch.int64)


def to_relative(counts: Tensor, size: int) -> Tensor:
    """Turn counts into SpeechBrain's relative lengths, [batch], float32.

    ``to_counts`` gives the same counts back for up to 2**23 steps.

    Arguments
    ---------
    counts : [batch]
        Valid steps of each item.
    size
        Steps of the padded axis.

    Example
    -------
    >>> to_relative(torch.tensor([4, 3]), 4)
    tensor([1.0000, 0.7500])
    """
    return (counts.double() / size).float()


def length_mask(counts: Tensor, size: int) -> Tensor:
    """Mask, [batch, size], which is True at the valid steps.

    Arguments
    ---------
    counts : [batch]
        Valid steps of each item.
    size
        Steps of the padded axis.

    Example
    -------
    >>> length_mask(torch.tensor([2, 1]), 2)
    tensor([[ True,  True],
            [ True, False]])
    """
    steps = torch.arange(size, device=counts.device)
    return steps < counts.unsqueeze(1)


def zero_padding(x: Tensor, counts: Tensor) -> Tensor:
    """Set every padded step to zero, even if it holds NaN.

    Arguments
    ---------
    x : [batch, time, ...]
        Padded sequences.
    counts : [batch]
        Valid steps of each item.

    Example
    -------
    >>> zero_padding(torch.ones(2, 2), torch.tensor([2, 1]))
    tensor([[1., 1.],
            [1., 0.]])
    """
    mask = length_mask(counts, x.shape[1])
    mask = mask.view(*mask.shape, *[1] * (x.dim() - 2))
    return x.masked_fill(~mask, 0)
