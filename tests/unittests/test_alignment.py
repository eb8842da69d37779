"""Alignment: the formula of the paper, counts, and nothing of the padding."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from speechbrain_dslstm.alignment import AveragePoolAlignment

pairs = st.lists(
    st.tuples(st.integers(4, 40), st.integers(1, 20)), min_size=1, max_size=5
)


def paper(x, y):
    """The formula, one item: x_i := mean(x[2i], x[2i+1], x[2i+2])."""
    count = min(len(x) // 2 - 1, len(y))
    aligned = [
        (x[2 * i] + x[2 * i + 1] + x[2 * i + 2]) / 3 for i in range(count)
    ]
    return torch.stack(aligned), y[:count]


def test_formula_of_the_paper():
    """Its own sizes: 56 and 29 frames -> 27."""
    x, y = torch.randn(2, 56, 5), torch.randn(2, 29, 3)
    full = torch.tensor([56, 56]), torch.tensor([29, 29])
    out_x, out_y, counts = AveragePoolAlignment()(x, y, *full)
    assert counts.tolist() == [27, 27]
    for row in range(2):
        expected_x, expected_y = paper(x[row], y[row])
        torch.testing.assert_close(out_x[row], expected_x)
        torch.testing.assert_close(out_y[row], expected_y, atol=0, rtol=0)


@given(pairs)
def test_each_item_of_a_padded_batch(counts):
    """Valid frames never average over padding, here NaN."""
    counts_x, counts_y = (torch.tensor(n) for n in zip(*counts, strict=True))
    x = torch.full((len(counts), 42, 2), float("nan"))
    y = torch.full((len(counts), 21, 3), float("nan"))
    for row, (n_x, n_y) in enumerate(counts):
        x[row, :n_x] = torch.randn(n_x, 2)
        y[row, :n_y] = torch.randn(n_y, 3)
    align = AveragePoolAlignment()
    out_x, out_y, out = align(x, y, counts_x, counts_y)
    assert out_x.shape[1] == out_y.shape[1] == align.num_frames(42, 21)
    for row, (n_x, n_y) in enumerate(counts):
        expected_x, expected_y = paper(x[row, :n_x], y[row, :n_y])
        assert out[row] == len(expected_x) == align.num_frames(n_x, n_y)
        torch.testing.assert_close(out_x[row, : out[row]], expected_x)
        torch.testing.assert_close(out_y[row, : out[row]], expected_y)


@given(
    st.integers(1, 5),
    st.integers(1, 5),
    st.integers(1, 40),
    st.integers(1, 20),
)
def test_other_widths_and_strides(stride, extra, time_x, time_y):
    """An average pool of that width and stride, less what would overhang."""
    width = stride + extra - 1
    align = AveragePoolAlignment(width, stride)
    frames = align.num_frames(time_x, time_y)
    x, y = torch.randn(1, time_x, 2), torch.randn(1, time_y, 3)
    counts = torch.tensor([time_x]), torch.tensor([time_y])
    assert align.num_frames(*counts).tolist() == [frames]
    assert (time_x >= align.min_frames) == (frames >= 1)
    if frames < 1:
        with pytest.raises(ValueError, match="too few to align"):
            align(x, y, *counts)
        return
    out_x, out_y, out = align(x, y, *counts)
    pooled = torch.nn.functional.avg_pool1d(x.transpose(1, 2), width, stride)
    assert out_x.shape[1] == out_y.shape[1] == out.item() == frames
    torch.testing.assert_close(out_x, pooled.transpose(1, 2)[:, :frames])


def test_num_frames():
    align = AveragePoolAlignment()
    assert [align.num_frames(n, 99) for n in range(8)] == [
        0,
        0,
        0,
        0,
        1,
        1,
        2,
        2,
    ]
    assert align.num_frames(56, 29) == 27 and align.num_frames(56, 5) == 5
    assert isinstance(align.num_frames(56, 29), int)
    frames = align.num_frames(torch.tensor([56, 1, 9]), torch.tensor([5, 5, 5]))
    assert frames.tolist() == [5, 0, 3] and frames.dtype == torch.int64


def test_gradients():
    x = torch.randn(1, 8, 2, dtype=torch.float64, requires_grad=True)
    y = torch.randn(1, 4, 1, dtype=torch.float64, requires_grad=True)
    counts = torch.tensor([8]), torch.tensor([4])
    assert torch.autograd.gradcheck(
        lambda *xy: AveragePoolAlignment()(*xy, *counts)[:2], (x, y)
    )


@pytest.mark.parametrize(
    ("time", "counts"),
    [((3, 5), ([3, 3], [5, 5])), ((9, 5), ([9, 3], [5, 5]))],
    ids=["batch", "one item"],
)
def test_too_short(time, counts):
    x, y = torch.zeros(2, time[0], 1), torch.zeros(2, time[1], 1)
    with pytest.raises(ValueError, match="3 frames of x and 5 of y .* 4 and 1"):
        AveragePoolAlignment()(x, y, *map(torch.tensor, counts))


@pytest.mark.parametrize(("width", "stride"), [(1, 2), (3, 0)])
def test_bad_options(width, stride):
    match = f"got width {width} and stride {stride}"
    with pytest.raises(ValueError, match=match):
        AveragePoolAlignment(width, stride)
