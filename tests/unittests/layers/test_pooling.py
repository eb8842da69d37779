"""Pooling: mean and deviation of each item's own frames."""

import pytest
import torch
from hypothesis import given, strategies as st

from speechbrain_dslstm.layers import (
    MaskedMeanPooling,
    MaskedStatisticsPooling,
)
from speechbrain_dslstm.layers.pooling import make_pooling
from speechbrain_dslstm.lengths import length_mask


@pytest.mark.parametrize("garbage", [1e6, float("nan"), float("inf")])
@given(st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_mean_of_each_item(garbage, counts):
    x = torch.full((len(counts), 12, 3), garbage)
    for row, count in enumerate(counts):
        x[row, :count] = torch.randn(count, 3) + 5
    out = MaskedMeanPooling()(x, torch.tensor(counts))
    both = MaskedStatisticsPooling()(x, torch.tensor(counts))
    assert torch.equal(both[:, :3], out)
    for row, count in enumerate(counts):
        valid = x[row, :count]
        torch.testing.assert_close(out[row], valid.mean(0))
        deviation = valid.var(0, correction=0).clamp(min=1e-5).sqrt()
        torch.testing.assert_close(both[row, 3:], deviation)


@pytest.mark.parametrize("name", ["mean", "statistics"])
def test_sums_give_the_same(name):
    """A stream knows only the sums so far."""
    pooling, x = make_pooling(name), torch.randn(2, 7, 3)
    sums = x.sum(1), x.square().sum(1)
    expected = pooling(x, torch.tensor([7, 7]))
    torch.testing.assert_close(pooling.from_sums(*sums, 7), expected)
    assert expected.shape[1] == 3 * pooling.parts


def test_unknown_pooling():
    with pytest.raises(ValueError, match="'max'; expected one of mean, stat"):
        make_pooling("max")


def test_gradients():
    counts = torch.tensor([4, 1, 3])
    x = torch.randn(3, 4, 2, dtype=torch.float64, requires_grad=True)
    for pooling in (MaskedMeanPooling(), MaskedStatisticsPooling()):
        assert torch.autograd.gradcheck(lambda x, p=pooling: p(x, counts), x)
    # Neither equal frames nor a single one, nor NaN in the padding, give NaN
    equal = torch.ones(3, 4, 2).masked_fill(
        ~length_mask(counts, 4).unsqueeze(-1), float("nan")
    )
    equal.requires_grad_()
    MaskedStatisticsPooling()(equal, counts).sum().backward()
    assert equal.grad.isfinite().all()
    # Padding, here NaN, gets none
    padded = ~length_mask(counts, 4).unsqueeze(-1)
    x = x.detach().masked_fill(padded, float("nan")).requires_grad_()
    MaskedMeanPooling()(x, counts).sum().backward()
    expected = (1 / counts).view(3, 1, 1).expand(3, 4, 2)
    torch.testing.assert_close(
        x.grad, expected.masked_fill(padded, 0), check_dtype=False
    )
