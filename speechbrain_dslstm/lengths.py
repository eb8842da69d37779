"""Relative lengths <-> samples <-> frames, and the masks made of them.

SpeechBrain hands lengths around as fractions of the longest item of a batch.
A fraction times a *frame* count is wrong by one frame in a quarter to three
quarters of all cases, whatever the rounding, so a fraction is turned into
samples here, once, and each stage maps integer counts through its own
``num_frames``. No other file multiplies a relative length.

Symbols: B batch, S samples of the padded batch, T frames.
"""

import torch

__all__ = [
    "check_later",
    "length_mask",
    "to_counts",
    "to_relative",
    "zero_padding",
]


def check_later(condition, expected):
    """Whether a CUDA graph is being captured, which cannot ask the host.

    Arguments
    ---------
    condition : torch.Tensor, bool, []
        What is to be checked; in a graph, whenever that is replayed.
    expected : str
        What has not been so if the replay fails.

    Returns
    -------
    bool
        False: the caller checks the condition itself, and says what is wrong.

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


def to_counts(lengths, size, batch=None, device=None):
    """Turn lengths of either kind into integer counts.

    Arguments
    ---------
    lengths : torch.Tensor, list or None, [batch]
        Floats in (0, 1]: SpeechBrain's relative lengths of a padded axis of
        ``size`` steps. Integers: counts already. None: every item is full.
    size : int
        Steps (samples or frames) of the padded axis.
    batch : int, optional
        Number of items; needed where ``lengths`` is None, checked otherwise.
    device : torch.device, optional
        Where the counts are wanted; that of ``lengths`` if left out.

    Returns
    -------
    torch.Tensor, int64, [batch]
        Valid steps of each item.

    Raises
    ------
    ValueError
        A count below 1 or above ``size``, NaN, a relative length outside
        (0, 1], or as many lengths as there are no items.

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
    if lengths.is_floating_point():
        counts = (lengths.double() * size).round()
    else:
        counts = lengths
    fit = ((counts >= 1) & (counts <= size)).all()
    expected = f"lengths must be relative in (0, 1] or counts in 1..{size}"
    # One transfer to the host for all checks
    if not check_later(fit, expected) and not bool(fit):
        raise ValueError(f"{expected}, got {lengths.tolist()}")
    return counts.to(torch.int64)


def to_relative(counts, size):
    """Turn integer counts into SpeechBrain's relative lengths.

    Arguments
    ---------
    counts : torch.Tensor, int64, [batch]
        Valid steps of each item.
    size : int
        Steps of the padded axis.

    Returns
    -------
    torch.Tensor, float32, [batch]
        Fractions in (0, 1]; ``to_counts`` gives the same counts back for
        every ``size`` up to 2**23 steps.

    Example
    -------
    >>> to_relative(torch.tensor([4, 3]), 4)
    tensor([1.0000, 0.7500])
    """
    return (counts.double() / size).float()


def length_mask(counts, size):
    """Mask of the valid steps.

    Arguments
    ---------
    counts : torch.Tensor, int64, [batch]
        Valid steps of each item.
    size : int
        Steps of the padded axis.

    Returns
    -------
    torch.Tensor, bool, [batch, size]
        True at valid steps.

    Example
    -------
    >>> length_mask(torch.tensor([2, 1]), 2)
    tensor([[ True,  True],
            [ True, False]])
    """
    steps = torch.arange(size, device=counts.device)
    return steps < counts.unsqueeze(1)


def zero_padding(x, counts):
    """Set every padded step to zero, also one that holds NaN.

    Arguments
    ---------
    x : torch.Tensor, [batch, time, ...]
        Padded sequences.
    counts : torch.Tensor, int64, [batch]
        Valid steps of each item.

    Returns
    -------
    torch.Tensor, [batch, time, ...]
        The same values at valid steps, zero elsewhere.

    Example
    -------
    >>> zero_padding(torch.ones(2, 2), torch.tensor([2, 1]))
    tensor([[1., 1.],
            [1., 0.]])
    """
    mask = length_mask(counts, x.shape[1])
    mask = mask.view(*mask.shape, *[1] * (x.dim() - 2))
    return x.masked_fill(~mask, 0)
