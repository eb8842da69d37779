"""Pooling: the mean of each item's own frames."""

import pytest
import torch
from hypothesis import given, strategies as st

from speechbrain_dslstm.layers import MaskedMeanPooling
from speechbrain_dslstm.lengths import length_mask


@pytest.mark.parametrize("garbage", [1e6, float("nan"), float("inf")])
@given(st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_mean_of_each_item(garbage, counts):
    x = torch.full((len(counts), 12, 3), garbage)
    for row, count in enumerate(counts):
        x[row, :count] = torch.randn(count, 3) + 5
    out = MaskedMeanPooling()(x, torch.tensor(counts))
    for row, count in enumerate(counts):
        torch.testing.assert_close(out[row], x[row, :count].mean(0))


def test_gradients():
    counts = torch.tensor([4, 1, 3])
    x = torch.randn(3, 4, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: MaskedMeanPooling()(x, counts), x)
    # Padding, here NaN, gets none
    padded = ~length_mask(counts, 4).unsqueeze(-1)
    x = x.detach().masked_fill(padded, float("nan")).requires_grad_()
    MaskedMeanPooling()(x, counts).sum().backward()
    expected = (1 / counts).view(3, 1, 1).expand(3, 4, 2)
    torch.testing.assert_close(
        x.grad, expected.masked_fill(padded, 0), check_dtype=False
    )
