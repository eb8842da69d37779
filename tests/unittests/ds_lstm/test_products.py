"""Matrix products by oneDNN against torch's own."""

import pytest
import torch

from speechbrain_dslstm.ds_lstm import ds_lstm_naive, kernel_numba as products
from speechbrain_dslstm.ds_lstm.kernel_numba import ds_lstm_numba, product


@pytest.fixture
def calls(monkeypatch):
    """Shapes of what went to oneDNN; skipped where torch has none."""
    found, linear = [], products._onednn()
    if linear is None:
        pytest.skip("this torch has no oneDNN product")

    def counted(left, right, *rest):
        found.append((left.shape, right.shape))
        return linear(left, right, *rest)

    monkeypatch.setattr(products, "_onednn", lambda: counted)
    return found


@pytest.mark.parametrize("rows", [2, 30, 700])
@pytest.mark.parametrize("turn", [False, True])
def test_equals_torch(calls, rows, turn):
    left, right = torch.randn(rows, 600), torch.randn(600, 500)
    if turn:
        left = left.t().contiguous().t()
        right = right.t().contiguous().t()
    expected = left.double() @ right.double()
    torch.testing.assert_close(
        product(left, right).double(), expected, atol=1e-4, rtol=0
    )
    assert len(calls) == 1


def test_small_double_and_switched_off_go_to_torch(calls):
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
    """Large enough that every product but that of weight_h goes there."""
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
