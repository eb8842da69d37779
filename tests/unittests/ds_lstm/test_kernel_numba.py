"""The numba backend, beyond the tests that every backend passes."""

import subprocess
import sys

import numba
import numpy as np
import pytest
import torch

from speechbrain_dslstm import DSLSTM
from speechbrain_dslstm.ds_lstm import (
    ds_lstm_naive,
    kernel_numba,
    kernel_numba_loops as numba_loops,
)
from speechbrain_dslstm.ds_lstm.kernel_numba import ds_lstm_numba, product

EXACT = {"atol": 1e-10, "rtol": 1e-10}


def random_arguments(batch=5, time=7, size_x=4, size_y=3, hidden=6):
    """Float64 arguments of a backend."""
    sizes = [(batch, time, size_x), (batch, time, size_y)]
    sizes += [(batch, hidden)] * 2 + [(5 * hidden, size_x)]
    sizes += [(5 * hidden, size_y), (6 * hidden, hidden), (6 * hidden,)]
    return [
        torch.randn(size, dtype=torch.float64).mul(0.5).requires_grad_()
        for size in sizes
    ]


def applied(function, values):
    """Apply a compiled function of a number to an array, in vector code."""

    @numba.njit(error_model="numpy")
    def loop(values, out):
        for k in range(len(values)):
            out[k] = function(values[k])

    out = np.empty_like(values)
    loop(values, out)
    return out


def all_values(kind):
    """Every order of magnitude of both signs, and the usual range densely."""
    info, random = np.finfo(kind), np.random.default_rng(0)
    top = np.log10(float(info.max))
    tiny = np.log10(float(info.smallest_subnormal))
    large = 10.0 ** random.uniform(tiny, top, 50_000)
    usual = random.standard_normal(200_000) * 5
    wide = random.uniform(-800, 800, 50_000)
    return np.concatenate([large, -large, usual, wide]).astype(kind)


@pytest.mark.parametrize("kind, ulps", [(np.float32, 3), (np.float64, 4)])
@pytest.mark.parametrize("name", ["sigmoid", "tanh"])
def test_accuracy(name, kind, ulps):
    """Relative to extended precision, wherever the result is not denormal."""
    values = all_values(kind)
    found = applied(getattr(numba_loops, name), values)
    wide = values.astype(np.longdouble)
    with np.errstate(over="ignore", under="ignore"):
        expected = {
            "sigmoid": lambda: 1 / (1 + np.exp(-wide)),
            "tanh": lambda: np.tanh(wide),
        }[name]()
    least = np.finfo(kind).tiny
    normal = np.abs(expected) > 8 * least
    error = np.abs(found - expected)
    bound = ulps * np.finfo(kind).eps * np.abs(expected)
    assert (error[normal] <= bound[normal]).all()
    assert (error[~normal] <= 8 * least).all()


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_infinity_zero_and_nan(kind):
    values = np.array([np.inf, -np.inf, 0.0, -0.0, np.nan], kind)
    sigmoid, tanh = (
        applied(f, values) for f in (numba_loops.sigmoid, numba_loops.tanh)
    )
    np.testing.assert_allclose(sigmoid, [1, 0, 0.5, 0.5, np.nan], atol=1e-37)
    np.testing.assert_array_equal(tanh, [1, -1, 0, 0, np.nan])
    assert list(np.signbit(tanh[:4])) == [False, True, False, True]


def gradients(backend, args, counts):
    args = [arg.detach().clone().requires_grad_() for arg in args]
    out, h, c = backend(*args, counts)
    ramp = torch.linspace(-1, 1, out.numel()).view_as(out)
    ((out * ramp).sum() + h.sum() - 2 * c.sum()).backward()
    return [out, h, c, *(arg.grad for arg in args)]


@pytest.mark.parametrize("ragged", [False, True])
def test_pieces_of_a_batch_equal_the_whole(monkeypatch, ragged):
    monkeypatch.setattr(kernel_numba, "PIECE_VALUES", 7 * 36 * 4)
    monkeypatch.setattr(kernel_numba, "PIECE_ITEMS", 2)
    args = random_arguments(batch=9)
    counts = torch.tensor([7, 1, 3, 7, 2, 5, 6, 4, 1]) if ragged else None
    found = gradients(ds_lstm_numba, args, counts)
    expected = gradients(ds_lstm_naive, args, counts)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, **EXACT)
    with torch.no_grad():
        for ours, theirs in zip(
            ds_lstm_numba(*args, counts), expected[:3], strict=True
        ):
            torch.testing.assert_close(ours, theirs, **EXACT)


def test_strided_inputs_and_two_backward_passes():
    args = random_arguments()
    with torch.no_grad():
        turned = [
            v.transpose(0, 1).contiguous().transpose(0, 1) for v in args[:2]
        ] + [v.t().contiguous().t() if v.dim() == 2 else v for v in args[2:]]
    turned = [v.requires_grad_() for v in turned]
    assert not turned[0].is_contiguous() and not turned[6].is_contiguous()
    out, _, _ = ds_lstm_numba(*turned)
    expected, _, _ = ds_lstm_naive(*args)
    torch.testing.assert_close(out, expected, **EXACT)
    once = torch.autograd.grad(out.sum(), turned, retain_graph=True)
    again = torch.autograd.grad(out.sum(), turned)
    theirs = torch.autograd.grad(expected.sum(), args)
    for first, second, third in zip(once, again, theirs, strict=True):
        torch.testing.assert_close(first, second, atol=0, rtol=0)
        torch.testing.assert_close(first, third, **EXACT)


def test_only_what_is_wanted_gets_a_gradient():
    args = [arg.detach() for arg in random_arguments()]
    args[4].requires_grad_()
    ds_lstm_numba(*args)[0].sum().backward()
    assert args[4].grad is not None
    assert all(arg.grad is None for k, arg in enumerate(args) if k != 4)
    expected = args[4].detach().clone().requires_grad_()
    ds_lstm_naive(*args[:4], expected, *args[5:])[0].sum().backward()
    torch.testing.assert_close(args[4].grad, expected.grad, **EXACT)


def test_second_derivatives_are_refused():
    """A penalty on a gradient would otherwise have no effect at all."""
    args = random_arguments()
    out, _, _ = ds_lstm_numba(*args)
    with pytest.raises(RuntimeError, match="no second derivatives.*eager"):
        torch.autograd.grad(out.sum(), args[0], create_graph=True)


def test_nan_is_passed_on():
    args = random_arguments()
    with torch.no_grad():
        args[0][2, 3, 0] = float("nan")
    out, h, _ = ds_lstm_numba(*args)
    assert out[2, 3:].isnan().all() and h[2].isnan().all()
    assert out[2, :3].isfinite().all() and out[3].isfinite().all()


def test_refuses_what_it_cannot():
    args = [arg.detach().half() for arg in random_arguments()]
    with pytest.raises(ValueError, match="not float16; use backend='auto'"):
        ds_lstm_numba(*args)


def test_under_autocast_states_keep_the_precision():
    torch.manual_seed(0)
    net, x, y = DSLSTM(4, 5, 6), torch.randn(3, 7, 4), torch.randn(3, 7, 5)
    expected, _ = net(x, y)
    with torch.autocast("cpu", torch.bfloat16):
        out, _ = net(x.bfloat16(), y.bfloat16())
        loss = out.sum()
        loss.backward()
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, expected, atol=0.02, rtol=0.02)
    assert net.weight_x_l0.grad.dtype == torch.float32


def test_a_layer_does_not_import_numba():
    """The package and a model come up without waiting for a compiler."""
    code = (
        "import sys, speechbrain_dslstm\n"
        "before = 'numba' in sys.modules\n"
        "speechbrain_dslstm.DSLSTM(2, 3, 4)\n"
        "assert ('numba' in sys.modules) == before\n"
        "assert 'speechbrain_dslstm.ds_lstm.kernel_numba_loops' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_folder_that_cannot_be_written_to(tmp_path):
    """Compiled code is then not kept, and everything else is the same."""
    code = (
        "import numba.core.caching as caching\n"
        "caching.CacheImpl._locator_classes = []\n"
        "import numpy as np\n"
        "from speechbrain_dslstm.ds_lstm import kernel_numba_loops as loops\n"
        "assert loops.tanh(np.float64(0.5)) > 0.4\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture
def calls(monkeypatch):
    """Shapes of the products that oneDNN computes; skipped if torch lacks it."""
    found, linear = [], kernel_numba._onednn()
    if linear is None:
        pytest.skip("this torch has no oneDNN product")

    def counted(left, right, *rest):
        found.append((left.shape, right.shape))
        return linear(left, right, *rest)

    monkeypatch.setattr(kernel_numba, "_onednn", lambda: counted)
    return found


@pytest.mark.parametrize("rows", [2, 30, 700])
@pytest.mark.parametrize("turn", [False, True])
def test_product_equals_torch(calls, rows, turn):
    left, right = torch.randn(rows, 600), torch.randn(600, 500)
    if turn:
        left = left.t().contiguous().t()
        right = right.t().contiguous().t()
    expected = left.double() @ right.double()
    torch.testing.assert_close(
        product(left, right).double(), expected, atol=1e-4, rtol=0
    )
    assert len(calls) == 1


def test_small_double_and_switched_off_products_go_to_torch(calls):
    left, right = torch.randn(30, 600), torch.randn(600, 500)
    for one, other in [
        (left[:, :9], right[:9]),
        (left[:1], right),
        (left.double(), right.double()),
        (torch.randn(600, 0), torch.randn(0, 500)),
    ]:
        assert torch.equal(product(one, other), one @ other)
    with torch.backends.mkldnn.flags(enabled=False):
        assert torch.equal(product(left, right), left @ right)
    assert not calls


@pytest.mark.parametrize("batch, time", [(1, 40), (20, 30)])
def test_layer_of_the_papers_size_equals_the_equations(calls, batch, time):
    """Large enough that oneDNN computes every product but that of weight_h."""
    torch.manual_seed(0)
    hidden = 200
    shapes = [(batch, time, 496), (batch, time, 1008)]
    shapes += [(batch, hidden)] * 2 + [(5 * hidden, 496), (5 * hidden, 1008)]
    shapes += [(6 * hidden, hidden), (6 * hidden,)]
    tensors = [0.05 * torch.randn(shape) for shape in shapes]
    counts = torch.randint(1, time + 1, (batch,))
    found = []
    for backend, kind in ((ds_lstm_numba, 32), (ds_lstm_naive, 64)):
        kind = getattr(torch, f"float{kind}")
        args = [v.to(kind, copy=True).requires_grad_() for v in tensors]
        out, h, c = backend(*args, counts)
        ramp = torch.linspace(-1, 1, out.numel()).view_as(out)
        ((out * ramp).sum() + h.sum() - 2 * c.sum()).backward()
        grads = [arg.grad for arg in args]
        found.append([v.detach() for v in (out, h, c, *grads)])
    for ours, exact in zip(*found, strict=True):
        bound = 2e-6 * float(exact.abs().max()) * max(1, batch * time) ** 0.5
        torch.testing.assert_close(ours.double(), exact, atol=bound, rtol=0)
    assert len(calls) >= 4
