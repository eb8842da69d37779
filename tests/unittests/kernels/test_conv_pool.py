"""The fast convolution and pooling against plain torch, gradients included."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings, strategies as st

from speechbrain_dslstm.kernels import conv_pool_numba
from speechbrain_dslstm.kernels.conv_pool import (
    conv_moments,
    conv_pool,
    conv_pool_reference,
)
from speechbrain_dslstm.kernels.conv_pool_numba import conv_pool_problem
from speechbrain_dslstm.layers.batch_norm import masked_moments


def run(function, x, weight, shift, counts, padding, pool):
    """Output, and the gradients of all arguments that require one."""
    leaves = [
        value.detach().clone().requires_grad_(value.requires_grad)
        for value in (x, weight, shift)
        if value is not None
    ]
    given_shift = leaves[2] if shift is not None else None
    out = function(*leaves[:2], padding, pool, given_shift, counts)
    generator = torch.Generator().manual_seed(1)
    upstream = torch.randn(out.shape, generator=generator, dtype=out.dtype)
    (out * upstream).sum().backward()
    return [out.detach(), *(leaf.grad for leaf in leaves if leaf.requires_grad)]


@given(
    st.integers(1, 3),
    st.sampled_from([(1, 1), (2, 4), (4, 2), (3, 1)]),
    st.integers(1, 3),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
@pytest.mark.parametrize("compiled", [True, False])
@settings(max_examples=30, deadline=None)
def test_equals_the_reference(
    compiled, channels, kernel, pool, want_x, shifted, cut
):
    padding = tuple((k - 1) // 2 for k in kernel)
    double = {"dtype": torch.float64}
    x = torch.randn(3, channels, 13, 11, **double, requires_grad=want_x)
    weight = torch.randn(5, channels, *kernel, **double, requires_grad=True)
    shift = torch.randn(5, **double, requires_grad=True) if shifted else None
    frames = (13 + 2 * padding[0] - kernel[0] + 1) // pool
    counts = torch.tensor([frames, 1, max(1, frames - 1)]) if cut else None
    args = x, weight, shift, counts, padding, pool
    with pytest.MonkeyPatch.context() as patch:
        if not compiled:
            problem = "numba does not import"
            patch.setattr(
                conv_pool_numba, "LOOPS", SimpleNamespace(problem=problem)
            )
        found = run(conv_pool, *args)
    expected = run(conv_pool_reference, *args)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_comes_out_as_from_torch(value):
    x, weight = torch.ones(1, 1, 9, 9), torch.randn(3, 1, 2, 2)
    x[0, 0, 4, 4] = value
    args = x, weight, (0, 0), 2, torch.zeros(3)
    found, expected = conv_pool(*args), conv_pool_reference(*args)
    torch.testing.assert_close(found, expected, equal_nan=True)


def test_the_first_of_equal_values_gets_the_gradient():
    x = torch.ones(1, 1, 5, 5)
    args = x, torch.ones(2, 1, 2, 2, requires_grad=True), None, None, (0, 0), 2
    assert conv_pool_problem(x, args[1], 2) is None
    torch.testing.assert_close(
        run(conv_pool, *args), run(conv_pool_reference, *args)
    )


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_share_the_rows(threads, monkeypatch):
    monkeypatch.setattr("speechbrain_dslstm.utils.loops.THREAD_VALUES", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    x = torch.randn(2, 1, 15, 9, dtype=torch.float64)
    weight = torch.randn(3, 1, 2, 4, dtype=torch.float64, requires_grad=True)
    counts = torch.tensor([7, 3])
    args = x, weight, torch.randn(3).double(), counts, (0, 1), 2
    found, expected = run(conv_pool, *args), run(conv_pool_reference, *args)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


def test_float32_at_the_sizes_of_the_paper():
    x, weight = torch.randn(2, 1, 230, 128), torch.randn(64, 1, 2, 4)
    args = x, weight.requires_grad_(), torch.randn(64), None, (0, 1), 2
    found, expected = run(conv_pool, *args), run(conv_pool_reference, *args)
    torch.testing.assert_close(found[0], expected[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(found[1], expected[1], atol=1e-2, rtol=1e-4)


def test_what_a_thread_raises_is_raised(monkeypatch):
    def fail(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr("speechbrain_dslstm.utils.loops.THREAD_VALUES", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(conv_pool_numba.LOOPS.load(), "forward", fail)
    with pytest.raises(OSError, match="no space left"):
        conv_pool(torch.randn(1, 1, 9, 9), torch.randn(3, 1, 2, 2), (0, 0), 2)


def test_no_second_derivative_but_an_error():
    weight = torch.randn(2, 1, 2, 2, requires_grad=True)
    out = conv_pool(torch.randn(1, 1, 5, 5), weight, (0, 0), 2)
    (grad,) = torch.autograd.grad(out.square().sum(), weight, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_moments_of_patches_are_those_of_the_output(offset):
    """Mean, variance and their gradients, padding and an offset included."""
    counts = torch.tensor([30, 12, 21])
    x = torch.randn(3, 1, 31, 17) + offset
    for row, count in enumerate(counts + 1):
        x[row, :, count:] = 0
    found = []
    for exact in (False, True):
        weight = torch.linspace(-1, 1, 4 * 8).view(4, 1, 2, 4).requires_grad_()
        if exact:
            image = torch.nn.functional.conv2d(
                x.double(), weight.double(), padding=(0, 1)
            )
            mask = torch.arange(30) < counts.unsqueeze(1)
            mean, variance, count = masked_moments(
                image.permute(0, 2, 3, 1), mask[:, :, None, None]
            )
        else:
            mean, variance, count = conv_moments(x, weight, (0, 1), counts)
        slope = torch.arange(1.0, 5.0)
        ((mean + variance.sqrt()) * slope).sum().backward()
        values = [mean, variance, count, weight.grad]
        found.append([value.detach().float() for value in values])
    torch.testing.assert_close(*found, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_moments_under_autocast(dtype):
    """Sums of squares of unnormalised features exceed float16's range."""
    x = 60 + 30 * torch.randn(3, 1, 31, 17)
    arguments = x, torch.randn(4, 1, 2, 4), (0, 1), torch.tensor([30, 30, 30])
    expected = conv_moments(*arguments)
    with torch.autocast("cpu", dtype):
        found = conv_moments(*arguments)
    torch.testing.assert_close(found, expected, atol=0, rtol=0)
