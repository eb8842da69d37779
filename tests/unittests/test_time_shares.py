"""Where time goes: sums, gradients, and nothing left behind."""

import time

import pytest
import torch

from speechbrain_dslstm import DualLevelClassifier
from speechbrain_dslstm.time_shares import TimeShares, model_parts


class SlowBack(torch.autograd.Function):
    """Twice as slow on the way back as forward."""

    @staticmethod
    def forward(ctx, x):
        time.sleep(0.05)
        return x * 2

    @staticmethod
    def backward(ctx, grad):
        time.sleep(0.1)
        return grad * 2


class Slow(torch.nn.Module):
    def forward(self, x):
        return SlowBack.apply(x)


def test_gradients_belong_to_their_part():
    inner = Slow()
    net = torch.nn.Sequential(torch.nn.Linear(3, 3), inner)
    parts = {"slow": [(inner, "forward")], "rest": [(net, "forward")]}
    net(torch.randn(2, 3)).sum().backward()
    with TimeShares(parts, outside="loading") as shares:
        time.sleep(0.07)
        net(torch.randn(2, 3)).sum().backward()
    assert list(shares.seconds) == ["loading", "slow", "rest"]
    assert 0.15 <= shares.seconds["slow"] < 0.2
    assert shares.seconds["loading"] >= 0.07
    assert sum(shares.seconds.values()) == pytest.approx(shares.total)
    lines = shares.table().splitlines()
    assert [line.split()[0] for line in lines] == list(shares.seconds)
    assert all(line.endswith("%") for line in lines)


def test_nothing_is_left_behind_even_by_an_error():
    net = torch.nn.Linear(3, 3)
    with pytest.raises(ZeroDivisionError):
        with TimeShares({"net": [(net, "forward")]}):
            assert "forward" in vars(net)
            raise ZeroDivisionError
    assert "forward" not in vars(net)
    assert net(torch.randn(2, 3)).shape == (2, 3)


def test_parts_of_a_model_and_unchanged_gradients():
    torch.manual_seed(0)
    net = DualLevelClassifier(4)
    wavs = torch.randn(2, 8000)
    normalise = [(net, "normalize")]

    def gradients():
        net.zero_grad()
        torch.manual_seed(1)
        net(wavs).sum().backward()
        return [one.grad.clone() for one in net.parameters()]

    expected = gradients()
    parts = model_parts(net)
    assert list(parts) == ["CNNs", "DS-LSTM", "LSTMs"]
    assert len(parts["CNNs"]) == 2
    with TimeShares({"normalisation": normalise, **parts}) as shares:
        found = gradients()
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    assert all(seconds > 0 for seconds in shares.seconds.values())
