"""Alignment: the formula of the paper, counts, and nothing of the padding."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given, strategies as st

from speechbrain_dslstm.layers import AveragePoolAlignment, RateAlignment

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


rates = st.one_of(
    st.sampled_from(["62.5", "49.95", "15.625", "100", "50", "31.25", "16.65"]),
    st.fractions(Fraction(1, 20), 20, max_denominator=20).map(str),
)
modes = st.sampled_from(RateAlignment.MODES)
targets = st.sampled_from(RateAlignment.TARGETS)
lengths = st.lists(
    st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=4
)


def by_definition(kept, sampled, step, mode):
    """One item, frame by frame, in exact fractions: what the page says."""
    out = []
    for j in range(len(kept)):
        start = j * step
        if mode == "average" and start < len(sampled):
            overlap = [
                max(0, min(i + 1, start + step) - max(i, start))
                for i in range(len(sampled))
            ]
            weights = [w / sum(overlap) for w in overlap]
        elif mode == "nearest" and start <= len(sampled) - 1:
            nearest = int(start + Fraction(1, 2))
            weights = [i == nearest for i in range(len(sampled))]
        elif mode == "linear" and start <= len(sampled) - 1:
            weights = [max(0, 1 - abs(i - start)) for i in range(len(sampled))]
        else:
            break
        weights = torch.tensor([[float(w)] for w in weights])
        out.append((weights * sampled).sum(0))
    return torch.stack(out)


@given(lengths, rates, rates, modes, targets)
def test_rates(counts, rate_x, rate_y, mode, target):
    """Each item of a padded batch is what the definition gives it alone."""
    counts_x, counts_y = (torch.tensor(n) for n in zip(*counts, strict=True))
    x = torch.full((len(counts), 42, 2), float("nan"))
    y = torch.full((len(counts), 41, 3), float("nan"))
    for row, (n_x, n_y) in enumerate(counts):
        x[row, :n_x] = torch.randn(n_x, 2)
        y[row, :n_y] = torch.randn(n_y, 3)
    align = RateAlignment(rate_x, rate_y, mode, target)
    out_x, out_y, out = align(x, y, counts_x, counts_y)
    assert out_x.shape[1] == out_y.shape[1] == out.max()
    slower = "x" if Fraction(rate_x) < Fraction(rate_y) else "y"
    faster = "x" if slower == "y" else "y"
    keeps = {"slower": slower, "faster": faster}.get(target, target)
    ratio = Fraction(rate_x) / Fraction(rate_y)
    for row, (n_x, n_y) in enumerate(counts):
        if keeps == "y":
            kept, sampled, step = y[row, :n_y], x[row, :n_x], ratio
            found = out_y[row], out_x[row]
        else:
            kept, sampled, step = x[row, :n_x], y[row, :n_y], 1 / ratio
            found = out_x[row], out_y[row]
        expected = by_definition(kept, sampled, step, mode)
        count = len(expected)
        assert out[row] == count == align.num_frames(n_x, n_y) >= 1
        torch.testing.assert_close(found[0][:count], kept[:count])
        torch.testing.assert_close(found[1][:count], expected)


def test_rates_of_a_spectrogram_and_an_encoder():
    """62.5 Hz against 49.95 Hz: a minute of both ends within a frame."""
    align = RateAlignment(62.5, 49.95)
    assert align.target == "y" and align.step == Fraction(1250, 999)
    assert align.num_frames(3750, 2997) == 2997
    assert align.num_frames(3748, 2997) == 2996
    swapped = RateAlignment(49.95, 62.5)
    assert swapped.target == "x" and swapped.num_frames(2997, 3750) == 2997


def test_streams_ordered_either_way():
    x, y = torch.randn(2, 25, 3), torch.randn(2, 20, 2)
    counts = torch.tensor([25, 11]), torch.tensor([20, 13])
    one = RateAlignment(62.5, 50)(x, y, *counts)
    other = RateAlignment(50, 62.5)(y, x, *counts[::-1])
    for a, b in zip(one, (other[1], other[0], other[2]), strict=True):
        torch.testing.assert_close(a, b, atol=0, rtol=0)


def test_whole_ratio_is_an_average_pool():
    x, y = torch.randn(1, 10, 3), torch.randn(1, 5, 2)
    full = torch.tensor([10]), torch.tensor([5])
    ours = RateAlignment(2)(x, y, *full)
    paper = AveragePoolAlignment(2, 2)(x, y, *full)
    for a, b in zip(ours, paper, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("mode", RateAlignment.MODES)
def test_equal_rates_change_nothing(mode):
    x, y = torch.randn(2, 9, 3), torch.randn(2, 8, 2)
    counts = torch.tensor([9, 4]), torch.tensor([8, 8])
    out_x, out_y, out = RateAlignment(50, 50, mode)(x, y, *counts)
    assert out.tolist() == [8, 4]
    torch.testing.assert_close(out_x[1, :4], x[1, :4])
    torch.testing.assert_close(out_y, y)


@pytest.mark.parametrize("mode", RateAlignment.MODES)
def test_gradients_of_rates(mode):
    x = torch.randn(2, 6, 2, dtype=torch.float64, requires_grad=True)
    y = torch.randn(2, 5, 1, dtype=torch.float64, requires_grad=True)
    counts = torch.tensor([6, 3]), torch.tensor([5, 4])
    align = RateAlignment("62.5", "50", mode)

    def valid(x, y):
        x, y, out = align(x, y, *counts)
        return x[0], x[1, : out[1]], y[0], y[1, : out[1]]

    assert torch.autograd.gradcheck(valid, (x, y))
    valid(x, y)[1].sum().backward()
    assert x.grad[1, 3:].abs().max() == 0


def test_num_frames_of_tensors():
    align = RateAlignment(62.5, 50)
    frames = align.num_frames(torch.tensor([10, 1]), torch.tensor([9, 9]))
    assert frames.tolist() == [8, 1] and frames.dtype == torch.int64
    assert isinstance(align.num_frames(10, 9), int)
    assert align.num_frames(0, 9) == 0 == align.num_frames(9, 0)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ((0, 50), "got 0 for x and 50 for y"),
        ((62.5, -1), "got 62.5 for x and -1 for y"),
        ((2, 1, "cubic"), "unknown mode 'cubic'; expected one of average, "),
        ((2, 1, "linear", "z"), "unknown target 'z'; expected one of slower, "),
    ],
)
def test_bad_rates(options, match):
    with pytest.raises(ValueError, match=match):
        RateAlignment(*options)
    x, y = torch.zeros(1, 2, 1), torch.zeros(1, 2, 1)
    with pytest.raises(ValueError, match="at least one frame"):
        RateAlignment(2)(x, y, torch.tensor([2]), torch.tensor([0]))
