"""Lengths: exact both ways, strict, and masks that agree with them."""

import pytest
import torch
from hypothesis import given, strategies as st

from speechbrain_dslstm.lengths import (
    length_mask,
    to_counts,
    to_relative,
    zero_padding,
)

sizes = st.integers(1, 2**23)


@given(st.data(), sizes)
def test_relative_and_back_is_exact(data, size):
    """Every count survives float32, up to the size that is promised."""
    counts = data.draw(st.lists(st.integers(1, size), min_size=1, max_size=8))
    relative = to_relative(torch.tensor(counts), size)
    assert relative.dtype == torch.float32
    # A count may be so small beside the size that it is still above zero
    assert (relative > 0).all() and (relative <= 1).all()
    assert to_counts(relative, size).tolist() == counts


@given(st.data(), st.integers(1, 500_000))
def test_speechbrain_relative_lengths(data, size):
    """SpeechBrain divides in float32: length / longest; we get it back."""
    counts = data.draw(st.lists(st.integers(1, size), min_size=1, max_size=8))
    counts = [*counts, size]
    wav_lens = torch.tensor(counts).float() / size
    assert to_counts(wav_lens, size).tolist() == counts


def test_host_batch():
    """The lengths that SpeechBrain's own collation makes."""
    from speechbrain.utils.data_utils import batch_pad_right

    counts = [16001, 3, 9999, 12345]
    wavs, wav_lens = batch_pad_right([torch.ones(n) for n in counts])
    assert to_counts(wav_lens, wavs.shape[1]).tolist() == counts


def test_counts_stay_counts():
    counts = torch.tensor([3, 1, 5], dtype=torch.int32)
    assert to_counts(counts, 5).tolist() == [3, 1, 5]
    assert to_counts(counts, 5).dtype == torch.int64
    assert to_counts([3, 1, 5], 5).tolist() == [3, 1, 5]


def test_no_lengths_mean_full_items():
    counts = to_counts(None, 7, batch=3)
    assert counts.tolist() == [7, 7, 7] and counts.dtype == torch.int64


@pytest.mark.parametrize(
    "lengths",
    [
        [0, 3],
        [4, 6],
        [-1, 3],
        [1.0, 0.0],
        [1.0, 1.5],
        [1.0, -0.5],
        [1.0, float("nan")],
        [1.0, float("inf")],
    ],
)
def test_impossible_lengths(lengths):
    with pytest.raises(ValueError, match=r"1\.\.5"):
        to_counts(lengths, 5)


@pytest.mark.parametrize("lengths", [torch.ones(3), torch.ones(2, 1)])
def test_wrong_number_of_lengths(lengths):
    with pytest.raises(ValueError, match="expected 2 lengths"):
        to_counts(lengths, 5, batch=2)


@given(st.lists(st.integers(1, 20), min_size=1, max_size=5))
def test_mask_is_the_counts(counts):
    mask = length_mask(torch.tensor(counts), 20)
    assert mask.shape == (len(counts), 20) and mask.dtype == torch.bool
    for row, count in zip(mask.tolist(), counts, strict=True):
        assert row == [True] * count + [False] * (20 - count)


@pytest.mark.parametrize("tail", [(), (4,), (4, 2)])
def test_zero_padding(tail):
    """Padding becomes zero, NaN too; values and gradients else stay."""
    counts = torch.tensor([2, 5, 1])
    x = torch.randn(3, 5, *tail)
    mask = length_mask(counts, 5)
    dirty = x.clone()
    dirty[~mask] = float("nan")
    dirty.requires_grad_()
    clean = zero_padding(dirty, counts)
    torch.testing.assert_close(clean[mask], x[mask], rtol=0, atol=0)
    assert clean[~mask].abs().sum() == 0
    clean.sum().backward()
    torch.testing.assert_close(
        dirty.grad,
        mask.view(3, 5, *[1] * len(tail)).expand_as(x).float(),
        rtol=0,
        atol=0,
    )
