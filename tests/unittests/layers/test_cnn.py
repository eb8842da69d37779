"""The CNN: sizes that come true, padding that does not matter, the paper."""

import pytest
import torch
from hypothesis import assume, given, settings, strategies as st

from speechbrain_dslstm.layers import LocalFeatureCNN
from speechbrain_dslstm.layers.cnn import LocalFeatureBlock

kernels = st.tuples(st.integers(1, 5), st.integers(1, 5))
# Of mel x and mel y: input_size, kernel_size
PAPER = {"x": (128, (2, 4)), "y": (256, (4, 2))}


def shaken(module):
    """Random scales, shifts and running statistics, as if trained."""
    with torch.no_grad():
        for name, value in module.state_dict().items():
            if name.endswith(("norm.bias", "running_mean")):
                value.normal_(std=0.3)
            elif name.endswith(("norm.weight", "running_var")):
                value.uniform_(0.5, 2)
    return module.eval()


@given(
    kernels,
    st.booleans(),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 40),
    st.integers(1, 30),
)
@settings(max_examples=60)
def test_sizes_are_those_that_come_out(
    kernel, pool_first, pool, blocks, time, bins
):
    channels = [3, 5, 2][:blocks]
    try:
        cnn = LocalFeatureCNN(bins, channels, kernel, pool, pool_first)
    except ValueError:
        # Too few bins; asked below
        assume(False)
    frames = cnn.num_frames(time)
    assert cnn.num_frames(torch.tensor([time, time])).tolist() == [frames] * 2
    x, counts = torch.randn(2, time, bins), torch.tensor([time, time])
    if frames < 1:
        with pytest.raises(ValueError, match=f"{time} frames is too short"):
            cnn(x, counts)
        return
    out, out_counts = cnn.eval()(x, counts)
    assert list(out.shape) == [2, frames, cnn.output_size]
    assert out_counts.tolist() == [frames] * 2


@given(kernels, st.integers(1, 3), st.integers(1, 20))
def test_min_frames_is_the_smallest_that_is_enough(kernel, blocks, frames):
    cnn = LocalFeatureCNN(200, [1] * blocks, kernel)
    least = cnn.min_frames(frames)
    assert cnn.num_frames(least) >= frames > cnn.num_frames(least - 1)


@given(kernels, st.booleans(), st.integers(2, 30), st.integers(1, 30))
@settings(max_examples=30)
def test_block_sizes(kernel, pool_first, time, bins):
    block = LocalFeatureBlock(2, 3, kernel, pool_first=pool_first).eval()
    sizes = [block.num_frames(time), block.num_bins(bins)]
    assume(min(sizes) >= 1)
    out = block(torch.randn(1, 2, time, bins), torch.tensor([time]))
    assert list(out.shape) == [1, 3, *sizes]


@pytest.mark.parametrize("pool_first", [True, False])
@pytest.mark.parametrize("garbage", [1e4, float("nan")])
@given(kernels, st.lists(st.integers(20, 40), min_size=1, max_size=4))
@settings(max_examples=15)
def test_padding_changes_nothing(pool_first, garbage, kernel, counts):
    """An item alone equals the item in a padded batch of garbage."""
    torch.manual_seed(0)
    cnn = shaken(LocalFeatureCNN(25, [4, 3], kernel, pool_first=pool_first))
    x = torch.randn(len(counts), 45, 25)
    for row, count in enumerate(counts):
        x[row, count:] = garbage
    out, out_counts = cnn(x, torch.tensor(counts))
    for row, count in enumerate(counts):
        alone, _ = cnn(x[row : row + 1, :count], torch.tensor([count]))
        frames = cnn.num_frames(count)
        assert out_counts[row] == frames == alone.shape[1]
        torch.testing.assert_close(out[row, :frames], alone[0])
        assert out[row, frames:].abs().sum() == 0


@pytest.mark.parametrize("pool_first", [True, False])
def test_training_does_not_see_padding(pool_first):
    """Outputs, running statistics and gradients, whatever the padding."""
    counts = torch.tensor([31, 20, 26])
    x = torch.randn(3, 31, 17)
    found = []
    for extra, garbage in [(0, 0.0), (9, float("nan"))]:
        torch.manual_seed(0)
        cnn = LocalFeatureCNN(17, [4, 3], pool_first=pool_first)
        padded = torch.nn.functional.pad(x, (0, 0, 0, extra))
        for row, count in enumerate(counts):
            padded[row, count:] = garbage
        out, _ = cnn(padded, counts)
        out = out[:, : cnn.num_frames(31)]
        for row, count in enumerate(counts):
            assert not out[row, cnn.num_frames(count) :].any()
        (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
        grads = {k: p.grad for k, p in cnn.named_parameters()}
        found.append((out.detach(), grads, dict(cnn.named_buffers())))
    torch.testing.assert_close(found[1], found[0])
    assert all(g.abs().max() > 0 for g in found[0][1].values())


@pytest.mark.parametrize("train", ["all", "norms", "none"])
@pytest.mark.parametrize("pool_first", [True, False])
def test_nothing_hangs_on_who_wants_gradients(pool_first, train):
    """Clip by clip without, all at once with them; statistics are of all."""
    x, counts = torch.randn(3, 30, 17), torch.tensor([30, 20, 26])
    found = []
    for grad in (True, False):
        torch.manual_seed(0)
        cnn = LocalFeatureCNN(17, [4, 3], pool_first=pool_first)
        cnn.train(train == "all")
        for block in cnn.blocks:
            block.norm.train(train != "none")
        with torch.set_grad_enabled(grad):
            out, out_counts = cnn(x, counts)
        found.append((out.detach(), out_counts, dict(cnn.named_buffers())))
    torch.testing.assert_close(found[1], found[0])


def plain_cnn(cnn):
    """The paper's blocks of torch's own layers, with the same parameters."""
    layers = []
    for block in cnn.blocks:
        conv = block.conv
        copy = torch.nn.Conv2d(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            padding=[(k - 1) // 2 for k in conv.kernel_size],
            bias=False,
        )
        copy.load_state_dict(conv.state_dict())
        norm = torch.nn.BatchNorm2d(conv.out_channels)
        norm.load_state_dict(block.norm.state_dict(), strict=False)
        layers += [copy, norm, torch.nn.ReLU(), torch.nn.MaxPool2d(2, 2)]
    return torch.nn.Sequential(*layers)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("name", PAPER)
def test_paper_order_is_conv_norm_relu_pool(name, train):
    bins, kernel = PAPER[name]
    cnn = shaken(LocalFeatureCNN(bins, (8, 4), kernel, pool_first=False)).train(
        train
    )
    plain = plain_cnn(cnn).train(train)
    x = torch.randn(2, 31, bins)
    out, counts = cnn(x, torch.tensor([31, 31]))
    expected = plain(x.unsqueeze(1))
    # Frequency by channel, the channel fastest
    expected = expected.permute(0, 2, 3, 1).flatten(2)
    torch.testing.assert_close(out, expected)
    assert counts.tolist() == [expected.shape[1]] * 2
    for ours, theirs in zip(cnn.blocks, plain[1::4], strict=True):
        torch.testing.assert_close(ours.norm.running_var, theirs.running_var)


@pytest.mark.parametrize("turned", [(), (0,), (1,), (0, 1)])
@pytest.mark.parametrize("grad", [True, False])
def test_pooling_first_is_pooling_first(turned, grad):
    """Also where it is computed the other way round, and where it cannot."""
    cnn = shaken(LocalFeatureCNN(40, (6, 5), pool_first=True))
    for block in cnn.blocks:
        torch.nn.init.zeros_(block.norm.weight[:1].detach())
    for index in turned:
        cnn.blocks[index].norm.weight.detach()[1::2] *= -1
    layers = list(plain_cnn(cnn))
    for start in (0, 4):
        layers.insert(start + 1, layers.pop(start + 3))
    plain = torch.nn.Sequential(*layers).eval()
    x = torch.randn(2, 31, 40)
    with torch.set_grad_enabled(grad):
        out, _ = cnn(x, torch.tensor([31, 31]))
        expected = plain(x.unsqueeze(1)).permute(0, 2, 3, 1).flatten(2)
    torch.testing.assert_close(out, expected)
    if grad:
        weights = torch.linspace(-1, 1, out.numel()).view_as(out)
        (out * weights).sum().backward()
        (expected * weights).sum().backward()
        for block, conv in zip(cnn.blocks, plain[::4], strict=True):
            torch.testing.assert_close(
                block.conv.weight.grad, conv.weight.grad, atol=1e-4, rtol=1e-4
            )


def test_both_orders_are_one_for_positive_scales():
    """Max pooling commutes with whatever does not turn the order around."""
    cnn = shaken(LocalFeatureCNN(40, pool_first=True))
    other = LocalFeatureCNN(40, pool_first=False).eval()
    other.load_state_dict(cnn.state_dict())
    x, counts = torch.randn(2, 30, 40), torch.tensor([30, 17])
    torch.testing.assert_close(cnn(x, counts), other(x, counts))


@pytest.mark.parametrize(
    ("name", "frames", "out_frames", "out_size"),
    [("x", 230, 56, 496), ("y", 120, 29, 1008)],
)
def test_sizes_of_the_paper(name, frames, out_frames, out_size):
    bins, kernel = PAPER[name]
    cnn = LocalFeatureCNN(bins, kernel_size=kernel).eval()
    out, counts = cnn(torch.randn(1, frames, bins), torch.tensor([frames]))
    assert list(out.shape) == [1, out_frames, out_size]
    assert counts.tolist() == [out_frames] and cnn.output_size == out_size
    channels = [block.conv.out_channels for block in cnn.blocks]
    assert channels == [64, 16]


@pytest.mark.parametrize("pool_first", [True, False])
def test_outputs_stay_channels_last(pool_first):
    """[batch, time, frequency * channel] is then a view, not a copy."""
    for train in (True, False):
        block = LocalFeatureBlock(2, 3, (2, 4), pool_first=pool_first)
        x = torch.randn(2, 2, 12, 9).to(memory_format=torch.channels_last)
        out = block.train(train)(x, torch.tensor([12, 8]))
        assert out.is_contiguous(memory_format=torch.channels_last)
        assert not out.is_contiguous()


def test_too_short():
    cnn = LocalFeatureCNN(20, [2, 2])
    assert cnn.min_frames(1) == 7
    with pytest.raises(ValueError, match="item of 6 frames is too short: .* 7"):
        cnn(torch.zeros(2, 9, 20), torch.tensor([9, 6]))
    cnn(torch.zeros(2, 9, 20), torch.tensor([9, 7]))


def test_wrong_bins():
    with pytest.raises(ValueError, match="expected 20 frequency bins, got 21"):
        LocalFeatureCNN(20, [2, 2])(torch.zeros(1, 9, 21), torch.tensor([9]))
    with pytest.raises(ValueError, match="4 frequency bins are too few for 2"):
        LocalFeatureCNN(4, [2, 2], (2, 4))


def test_hooks_and_other_blocks_are_seen_in_evaluation():
    """There the blocks are otherwise not called one by one."""
    cnn = LocalFeatureCNN(32, channels=(4, 2), kernel_size=(2, 4)).eval()
    x, counts, seen = torch.randn(2, 30, 32), torch.tensor([30, 20]), []
    with torch.no_grad():
        expected, _ = cnn(x, counts)
        cnn.blocks[0].register_forward_hook(lambda *args: seen.append(1))
        found, _ = cnn(x, counts)
        assert seen
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)

        class Other(type(cnn.blocks[1])):
            """Someone's own block."""

            def forward(self, x, counts):
                return 2 * super().forward(x, counts)

        cnn.blocks[1].__class__ = Other
        assert torch.equal(cnn(x, counts)[0], 2 * found)
